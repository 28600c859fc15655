"""Copies of disks: as references to the same blocks where the file system can do that, else byte by byte.

Holes stay holes. A copy that is not finished is removed.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import threading
from contextlib import suppress
from pathlib import Path

from orlop.errors import OrlopError, of_system
from orlop.host import sparse, threads
from orlop.host.tasks import beside

_FICLONE = 0x40049409
_CHUNK = 8 << 20
_CANNOT = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOTTY, errno.ENOSYS, errno.EPERM)


class _Stopped(Exception):
    """Whoever asked for a copy does not want it any more."""


async def copy(source: int, target: Path, size: int) -> None:
    """Make ``target`` a disk of ``size`` bytes with what the open file ``source`` holds.

    A cancelled caller waits for one part of the copy, not for all of it. Raises ResourceExhausted when the
    disk is full, FailedPrecondition for what else the system refuses.
    """
    await _cancellable(source, target, size, may_copy=True)


async def clone(source: int, target: Path, size: int) -> bool:
    """As :func:`copy` at one moment, of a file that others write to; whether the file system can do that."""
    return await _cancellable(source, target, size, may_copy=False)


async def _cancellable(source: int, target: Path, size: int, *, may_copy: bool) -> bool:
    stop = threading.Event()
    async with beside(threads.call(_make, source, target, size, stop if may_copy else None)) as work:
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            stop.set()
            with suppress(_Stopped, OrlopError):
                await work
            raise


def _make(source: int, target: Path, size: int, stop: threading.Event | None) -> bool:
    try:
        file = os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            done = _same_blocks(source, file)
            if not done and stop is not None:
                _bytes(source, file, stop)
                done = True
            os.ftruncate(file, size)
            os.fsync(file)
        finally:
            os.close(file)
    except BaseException as error:
        with suppress(OSError):
            target.unlink()
        if isinstance(error, OSError):
            raise of_system(error, f"the disk {target} cannot be made: {error.strerror}") from error
        raise
    if not done:
        target.unlink()
    return done


def _same_blocks(source: int, target: int) -> bool:
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
        return False
    return True


def _bytes(source: int, target: int, stop: threading.Event) -> None:
    for place, end in sparse.parts(source):
        begin = place
        while begin < end:
            if stop.is_set():
                raise _Stopped
            count = os.copy_file_range(source, target, min(_CHUNK, end - begin), begin, begin)
            if not count:  # it has become shorter
                return
            begin += count
