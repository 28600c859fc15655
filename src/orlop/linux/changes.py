"""What the upper directory of an overlay changes in the directories below it.

The kernel's own words for that (Documentation/filesystems/overlayfs.rst): a character device of the number
0:0 hides what has its name below, and a directory with ``trusted.overlay.opaque`` all that is in it there.

Who writes to the overlay may do so meanwhile, and is not trusted: a directory of the upper one is opened from
the one that it is in, and no link is followed. Those below are read only.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

ADDED, CHANGED, DELETED = "A", "C", "D"

MAX_PATH = 4095
"""Bytes of a path (PATH_MAX)."""

MAX_DEPTH = 256
"""Directories in one another, each of which is open meanwhile."""

_OPAQUE = "trusted.overlay.opaque"
_KINDS = frozenset((ADDED, CHANGED, DELETED))


_OURS = ("/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


def mounted_in(volumes: Iterable[str]) -> frozenset[bytes]:
    """Where a container does not see its own files: the places of ``volumes``, and of what Orlop mounts."""
    return frozenset(os.path.normpath(os.fsencode(place)) for place in (*_OURS, *volumes))


class Change(NamedTuple):
    """One of them: ``kind`` is A, C or D as ``podman diff`` has it, ``path`` begins with a slash."""

    kind: str
    path: bytes


def changes(upper: str, layers: Sequence[str]) -> Generator[Change, None, None]:
    """Each path that ``upper`` changes in ``layers``, the top one first; a directory before what is in it.

    What vanishes meanwhile is left out. Raises OSError, and ValueError for a tree that is too deep.
    """
    top = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield from _below(top, layers, b"", 1)
    finally:
        os.close(top)


def _below(
    directory: int, layers: Sequence[str], path: bytes, depth: int, *, opaque: bool = False
) -> Iterator[Change]:
    if depth > MAX_DEPTH:
        raise ValueError(f"there are more than {MAX_DEPTH} directories in one another: {_shown(path)}")
    names = sorted(os.listdir(directory))
    # What an opaque directory hides, those in it hide as well.
    opaque = opaque or is_opaque(directory)
    if opaque:
        for name in _hidden(layers, names):
            yield Change(DELETED, _joined(path, name))
    for name in names:
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            continue
        exists, lower = _below_of(layers, name)
        place = _joined(path, name)
        if hides(found):
            if exists:
                yield Change(DELETED, place)
            continue
        yield Change(CHANGED if exists else ADDED, place)
        if not stat.S_ISDIR(found.st_mode):
            continue
        try:
            inner = os.open(
                name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory
            )
        except (FileNotFoundError, NotADirectoryError):
            continue
        try:
            yield from _below(inner, lower, place, depth + 1, opaque=opaque)
        finally:
            os.close(inner)


def _hidden(layers: Sequence[str], names: Sequence[str]) -> list[str]:
    """What merged directories have besides ``names``."""
    there = set(names)
    found = set()
    for number, layer in enumerate(layers):
        for name in os.listdir(layer):
            # A layer may hide what those below it have.
            if name not in there and _below_of(layers[number:], name)[0]:
                found.add(name)
    return sorted(found)


def _below_of(layers: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """Whether merged directories have a ``name``, and of which directories that is merged, if it is one."""
    found: list[str] = []
    for layer in layers:
        place = f"{layer}/{name}"
        try:
            status = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            continue
        if not stat.S_ISDIR(status.st_mode):
            return bool(found) or not hides(status), found
        found.append(place)
        if is_opaque(place):
            break
    return bool(found), found


def hides(status: os.stat_result) -> bool:
    """Whether what has that status in the upper directory hides what has its name below."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(directory: int | str) -> bool:
    """Whether a directory of the upper one hides all that is below it."""
    try:
        return os.getxattr(directory, _OPAQUE) == b"y"
    except OSError:
        return False


def _joined(path: bytes, name: str) -> bytes:
    place = b"%b/%b" % (path, os.fsencode(name))
    if len(place) > MAX_PATH:
        raise ValueError(f"a path is longer than {MAX_PATH} bytes: {_shown(place)}")
    return place


def _shown(path: bytes) -> str:
    return ascii(path[:80])[2:-1]


def packed(change: Change) -> bytes:
    """A change as bytes, for :class:`ChangeReader`."""
    return b"%b%b\0" % (change.kind.encode(), change.path)


class ChangeReader:
    """Reads changes from bytes that come in pieces, from somebody who is not trusted."""

    def __init__(self) -> None:
        self._rest = b""

    def take(self, data: bytes) -> list[Change]:
        """What is whole now. Raises ValueError for what cannot be a change."""
        *whole, self._rest = (self._rest + data).split(b"\0")
        if len(self._rest) > MAX_PATH + 1:
            raise ValueError(f"a path is longer than {MAX_PATH} bytes")
        return [_read(one) for one in whole]

    def end(self) -> None:
        """Raises ValueError when something is missing."""
        if self._rest:
            raise ValueError("the last path has no end")


def _read(text: bytes) -> Change:
    kind, path = chr(text[0]) if text else "", text[1:]
    steps = path.split(b"/")
    wrong = (
        not path or len(path) > MAX_PATH or steps[0] or any(one in (b"", b".", b"..") for one in steps[1:])
    )
    if kind not in _KINDS or wrong:
        raise ValueError(f"{text[:80]!a} is no change of a file")
    return Change(kind, path)
