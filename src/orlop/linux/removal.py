"""Remove a directory with all that is in it, and never anything that is mounted there.

What a pod leaves may hold mount points of the host's volumes, and another call may mount one at any
moment. So no path is walked: each directory is opened below the descriptor of the one before it, and
the kernel refuses to cross a mount (openat2(2)), also one of the same file system. What is mounted over a
directory after it was opened is not what the descriptor leads to. Removing a mount point itself is refused
by the kernel (rmdir(2), unlink(2): EBUSY).
"""

from __future__ import annotations

import errno
import os

from orlop.linux import syscalls
from orlop.linux.syscalls import StrPath

_DEEPEST = 64
"""Levels that are walked with their descriptors open; a pod may have made any number of them."""

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


def remove_tree(path: StrPath) -> None:
    """Remove the directory ``path`` and everything below it; nothing there is success.

    Symbolic links are removed, not followed. What cannot be removed does not keep the rest: the first
    failure is raised after all else is gone. Raises OSError, with EBUSY for a mount point, below which
    nothing was touched.
    """
    above, name = os.path.split(os.path.abspath(path))
    try:
        parent = os.open(above, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        _Removal(name, above).run(parent)
    finally:
        os.close(parent)


class _Removal:
    def __init__(self, name: str, above: str) -> None:
        self._name = name
        self._path = f"{above}/{name}"
        self._top = -1
        self._deep: list[str] = []
        self._failure: OSError | None = None

    def run(self, parent: int) -> None:
        try:
            self._top = syscalls.open_on_mount(parent, self._name, _FLAGS)
        except FileNotFoundError:
            return
        except OSError as error:
            raise _named(error, self._path) from error
        try:
            self._empty(self._top, self._path, 1)
            while self._deep:
                self._entry(self._top, self._deep.pop(), self._path, depth=1, is_directory=True)
        finally:
            os.close(self._top)
        if self._failure is not None:
            raise self._failure
        try:
            os.rmdir(self._name, dir_fd=parent)
        except OSError as error:
            raise _named(error, self._path) from error

    def _empty(self, directory: int, where: str, depth: int) -> None:
        with os.scandir(directory) as found:
            entries = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in found]
        for name, is_directory in entries:
            self._entry(directory, name, where, depth=depth, is_directory=is_directory)

    def _entry(self, parent: int, name: str, where: str, *, depth: int, is_directory: bool) -> None:
        try:
            if is_directory:
                self._directory(parent, name, where, depth)
            else:
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        except OSError as error:
            self._failure = self._failure or _named(error, f"{where}/{name}")

    def _directory(self, parent: int, name: str, where: str, depth: int) -> None:
        if depth >= _DEEPEST:
            # Lifted to the top, it is removed from there later: no chain of directories is too long.
            above = f".removed-{os.urandom(8).hex()}"
            os.rename(name, above, src_dir_fd=parent, dst_dir_fd=self._top)
            self._deep.append(above)
            return
        child = syscalls.open_on_mount(parent, name, _FLAGS)
        try:
            self._empty(child, f"{where}/{name}", depth + 1)
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=parent)


def _named(error: OSError, path: str) -> OSError:
    """The error with the path it was about; a mount is called by its name."""
    if error.errno in (errno.EXDEV, errno.EBUSY):
        return OSError(errno.EBUSY, "a mount is there: nothing below it was removed", path)
    return OSError(error.errno, error.strerror, path)
