"""Bringing a directory of the guest to a given content; whoever looks meanwhile sees the old or the new.

The order is that of a kubelet's own update of a volume: first what is new, under names that nobody looks
up yet; then the links, ``..data`` before all others; then what is stale goes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from contextlib import suppress

from orlop.linux.removal import remove_tree
from orlop.wire.messages import Refused
from orlop.wire.values import VolumeEntry

_SWAPPED = "..data"
_AT_ONCE = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


def bring_to(root: str, entries: Iterable[VolumeEntry], *, in_place: bool = False) -> None:
    """Have below the directory ``root`` what ``entries`` say, and nothing else. See :class:`messages.Fill`.

    What is there and right is not touched, so nobody who watches hears of it. Raises Refused.
    """
    wanted = {entry.path: entry for entry in entries}
    try:
        for entry in wanted.values():
            if entry.kind == "directory":
                make_directory(root, entry)
            elif entry.kind == "file":
                _file(_place(root, entry.path), entry, in_place=in_place)
        links = [entry for entry in wanted.values() if entry.kind == "link"]
        for entry in sorted(links, key=lambda link: (link.path != _SWAPPED, link.path)):
            _link(_place(root, entry.path), entry)
        _remove_others(root, "", wanted)
    except OSError as error:
        raise Refused("internal", f"a volume cannot be brought up to date: {error}") from error


def make(root: str, entries: Iterable[VolumeEntry]) -> None:
    """Have what ``entries`` say in the directory ``root``, which is empty, and which nobody has seen yet.

    As :func:`bring_to`, with a quarter of its system calls. Raises Refused.
    """
    try:
        for entry in entries:
            path = _place(root, entry.path)
            if entry.kind == "file":
                _write(path, entry, os.O_EXCL)
            elif entry.kind == "link":
                os.symlink(entry.target, path)
                if entry.uid or entry.gid:
                    os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
            else:
                if entry.path:
                    os.mkdir(path, 0o700)
                if entry.uid or entry.gid:
                    os.chown(path, entry.uid, entry.gid)
                os.chmod(path, entry.mode)
    except OSError as error:
        raise Refused("internal", f"a volume cannot be made: {error}") from error


def make_directory(root: str, entry: VolumeEntry) -> None:
    """Have one directory, as its entry says. Raises OSError."""
    path = _place(root, entry.path)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(path).st_mode):
            os.unlink(path)
            os.mkdir(path, 0o700)
    _adjust(path, entry)


def _adjust(path: str, entry: VolumeEntry) -> None:
    found = os.lstat(path)
    if (found.st_uid, found.st_gid) != (entry.uid, entry.gid):
        os.chown(path, entry.uid, entry.gid, follow_symlinks=False)
        found = os.lstat(path)  # chown(2) clears set-id bits
    if stat.S_IMODE(found.st_mode) != entry.mode:
        os.chmod(path, entry.mode)


def _file(path: str, entry: VolumeEntry, *, in_place: bool) -> None:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            _remove(path)
        fd = os.open(path, os.O_RDONLY | _AT_ONCE)
    except FileNotFoundError:
        # Nobody looks for it yet: a directory that is swapped in, or one that no container has seen.
        _write(path, entry, os.O_EXCL)
        return
    try:
        size = os.fstat(fd).st_size
        same = size == len(entry.data) and _read(fd, size) == entry.data
    finally:
        os.close(fd)
    if same:
        _adjust(path, entry)
    elif in_place:
        _write(path, entry, os.O_TRUNC)
    else:
        aside = _aside(path)
        _write(aside, entry, os.O_EXCL)
        os.rename(aside, path)


def _read(fd: int, size: int) -> bytes:
    parts = []
    while size > 0 and (part := os.read(fd, size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _write(path: str, entry: VolumeEntry, how: int) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | how | _AT_ONCE, 0o600)
    try:
        data = memoryview(entry.data)
        while data:
            data = data[os.write(fd, data) :]
        if entry.uid or entry.gid or not how & os.O_EXCL:
            os.fchown(fd, entry.uid, entry.gid)
        os.fchmod(fd, entry.mode)
        if entry.modified:
            os.utime(fd, ns=(entry.modified, entry.modified))
    finally:
        os.close(fd)


def _link(path: str, entry: VolumeEntry) -> None:
    place = path
    try:
        if os.readlink(path) == entry.target:
            return
        place = _aside(path)
    except FileNotFoundError:
        pass
    except OSError:  # EINVAL: something else is there
        _remove(path)
    if entry.path == _SWAPPED:
        place = _aside(path, "_tmp")  # as a kubelet does, also the first time
    os.symlink(entry.target, place)
    if entry.uid or entry.gid:
        os.chown(place, entry.uid, entry.gid, follow_symlinks=False)
    if place != path:
        os.rename(place, path)


def _aside(path: str, ending: str = ".orlop") -> str:
    """A name beside ``path`` that nothing has."""
    with suppress(FileNotFoundError):
        _remove(path + ending)
    return path + ending


def _remove_others(root: str, below: str, wanted: dict[str, VolumeEntry]) -> None:
    stale, kept = [], []
    with os.scandir(_place(root, below)) as listing:
        for entry in listing:
            path = f"{below}/{entry.name}" if below else entry.name
            if path not in wanted:
                stale.append((entry.is_dir(follow_symlinks=False), entry.path))
            elif wanted[path].kind == "directory":
                kept.append(path)
    # Links and files first: what they lead to is there as long as they are.
    for _, path in sorted(stale):
        _remove(path)
    for path in kept:
        _remove_others(root, path, wanted)


def _remove(path: str) -> None:
    try:
        os.unlink(path)
        return
    except (IsADirectoryError, PermissionError):
        pass
    remove_tree(path)


def _place(root: str, path: str) -> str:
    return f"{root}/{path}" if path else root
