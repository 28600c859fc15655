"""A small volume of the host, read whole: what a guest is told to have in its copy.

Nothing is followed: each directory is opened below the descriptor of the one above it, a symbolic link is
told as a link, and what is neither that nor a directory nor a file makes the volume none that can be copied.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from orlop.wire.values import VolumeEntry

MAX_FILE = 2 << 20
"""Bytes of one file: as many as fit into one message to the guest, with room to spare."""

MAX_ENTRIES = 1024
DISK = ".orlop-volume"
"""The name of the file in an emptyDir that is its disk in a VM."""

_MAX_DEPTH = 16
# What a kubelet renames to ..data when all is ready.
_UNFINISHED = "..data_tmp"
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class NotCopied(Exception):
    """A volume is too large, or holds what no copy can have; the text says what."""


class InMotion(Exception):
    """A volume changed while it was read; there will be word of it, and another time to read."""


def read_volume(path: str, limit: int) -> tuple[VolumeEntry, ...]:
    """All that is in the directory ``path``, or the one file of that path under its own name.

    Those above come before those below. Raises NotCopied for more than ``limit`` bytes, InMotion, OSError.
    """
    reading = _Reading(limit)
    top = os.open(path, _OPEN)
    try:
        if stat.S_ISDIR(os.fstat(top).st_mode):
            reading.directory(top, "")
            reading.check_links(top)
        else:
            reading.entries.append(VolumeEntry())
            reading.file(top, Path(path).name)
    finally:
        os.close(top)
    return tuple(reading.entries)


def directories_of(path: str) -> tuple[VolumeEntry, ...] | None:
    """The directory ``path`` and those below it, None if there is anything else in it. Raises OSError.

    What begins with :data:`DISK` is not looked at.
    """
    reading = _Reading(0)
    top = os.open(path, _OPEN)
    try:
        reading.directory(top, "")
    except (NotCopied, InMotion):
        return None
    finally:
        os.close(top)
    plain = all(entry.kind == "directory" for entry in reading.entries)
    return tuple(reading.entries) if plain else None


class _Reading:
    def __init__(self, limit: int) -> None:
        self.entries: list[VolumeEntry] = []
        self._left = limit

    def directory(self, fd: int, path: str, depth: int = 0) -> None:
        """A directory that is open, and what is below it."""
        if depth > _MAX_DEPTH:
            raise NotCopied(f"directories are nested more than {_MAX_DEPTH} deep")
        self._add(path, "directory", os.fstat(fd))
        for name in sorted(os.listdir(fd)) if depth else self._links_first(fd):
            self._one(fd, name, f"{path}/{name}" if path else name, depth)

    def _links_first(self, top: int) -> Iterator[str]:
        """What there is in a volume, the links before all others.

        What a link leads to when it is read is among the others then, and :meth:`check_links` says in the
        end that it was whole all the time.
        """
        names = _names(top)
        links = [name for name in names if _is_link(top, name)]
        yield from links
        if _names(top) != names:
            raise InMotion("")
        yield from (name for name in names if name not in links)

    def check_links(self, top: int) -> None:
        """That what was read is one state: directories go only after the links to them have changed."""
        for entry in self.entries:
            if entry.kind == "link" and "/" not in entry.path:
                try:
                    same = os.readlink(entry.path, dir_fd=top) == entry.target
                except OSError as error:
                    raise InMotion(entry.path) from error
                if not same:
                    raise InMotion(entry.path)

    def file(self, fd: int, path: str) -> None:
        """A file that is open."""
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            raise NotCopied(f"{path} is neither a file nor a directory nor a link")
        if found.st_size > min(self._left, MAX_FILE):
            raise NotCopied(f"{path} is too large")
        parts = []
        # One byte more, to see that it has not grown meanwhile.
        room = found.st_size + 1
        while room > 0 and (part := os.read(fd, room)):
            parts.append(part)
            room -= len(part)
        if room == 0:
            raise InMotion(path)
        data = b"".join(parts)
        self._left -= len(data)
        self._add(path, "file", found, data=data)

    def _one(self, above: int, name: str, path: str, depth: int) -> None:
        try:
            path.encode()
            if _is_link(above, name):
                found = os.stat(name, dir_fd=above, follow_symlinks=False)
                self._add(path, "link", found, target=_text(os.readlink(name, dir_fd=above)))
                return
            fd = os.open(name, _OPEN, dir_fd=above)
        except UnicodeEncodeError as error:
            raise NotCopied("a name is not UTF-8") from error
        except OSError as error:
            if error.errno == errno.ENXIO:  # a socket
                raise NotCopied(f"{path} is neither a file nor a directory nor a link") from error
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
                raise InMotion(path) from error
            raise
        try:
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                self.directory(fd, path, depth + 1)
            else:
                self.file(fd, path)
        finally:
            os.close(fd)

    def _add(
        self, path: str, kind: str, found: os.stat_result, *, data: bytes = b"", target: str = ""
    ) -> None:
        if len(self.entries) >= MAX_ENTRIES:
            raise NotCopied(f"it holds more than {MAX_ENTRIES} files")
        self.entries.append(
            VolumeEntry(
                path=path,
                kind=kind,  # type: ignore[arg-type]
                mode=stat.S_IMODE(found.st_mode),
                uid=found.st_uid,
                gid=found.st_gid,
                modified=max(found.st_mtime_ns, 0) if kind == "file" else 0,
                data=data,
                target=target,
            )
        )


def _names(top: int) -> list[str]:
    """What there is in a volume, but for what is not the volume's."""
    return sorted(name for name in os.listdir(top) if name != _UNFINISHED and not name.startswith(DISK))


def _is_link(above: int, name: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(name, dir_fd=above, follow_symlinks=False).st_mode)
    except FileNotFoundError as error:
        raise InMotion(name) from error


def _text(target: str) -> str:
    target.encode()
    return target
