"""Files that a running QEMU gets as open descriptors (QMP ``add-fd``): it can open none by itself.

A disk is of few files; each is a set of its own, numbered by the disk's unit.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.hypervisor.qemu.cmdline import descriptor_set
from orlop.hypervisor.qemu.monitor import Monitor

_SETS = 256
"""More than a disk has files."""

_WRITE = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_TRIES = 20
_SOON = 0.1


def name(lun: int, number: int) -> str:
    """What QEMU calls the file ``number`` of the disk at unit ``lun``."""
    return descriptor_set(lun * _SETS + number)


async def give(
    monitor: Monitor, lun: int, files: Sequence[Path], *, read_only: bool, exclusive: bool = False
) -> None:
    """Pass the files of the disk at ``lun``; :func:`take_back` undoes it. Raises OSError.

    Writable ones are regular files, or with ``exclusive`` block devices, that nobody else has:
    FailedPrecondition.
    """
    for number, path in enumerate(files):
        if read_only:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        else:
            file = await _claimed(path) if exclusive else os.open(path, _WRITE)
        try:
            if not read_only and not exclusive:
                _claim(file, path)
            await monitor.execute_with(file, "add-fd", {"fdset-id": lun * _SETS + number})
        finally:
            os.close(file)


async def take_back(monitor: Monitor, lun: int) -> None:
    """Have QEMU close what it was given for ``lun``, once no disk uses it. Idempotent."""
    known = await monitor.execute("query-fdsets")
    assert isinstance(known, list)
    for one in known:
        if one["fdset-id"] // _SETS == lun:
            await monitor.execute("remove-fd", {"fdset-id": one["fdset-id"]})


async def _claimed(path: Path) -> int:
    """Open a block device that nobody else uses. Raises FailedPrecondition.

    By whatever name it is opened, that is a claim which lasts as long as anybody has the device by this
    descriptor: QEMU, once it is passed.
    """
    for left in reversed(range(_TRIES)):
        try:
            return os.open(path, _WRITE | os.O_EXCL)
        except OSError as error:
            if error.errno != errno.EBUSY:
                why = f"cannot be opened to be written to: {error.strerror}"
            elif left:
                # Who looks what is on it, and a mount that has just gone, hold it for a moment.
                await asyncio.sleep(_SOON)
                continue
            else:
                why = "is in use: it is mounted on the host, or another VM has it; let go of it there first"
            raise FailedPrecondition(f"the block device {path} {why}") from error
    raise AssertionError


def _claim(file: int, path: Path) -> None:
    """Lock an open file for as long as anybody has it by this descriptor: QEMU, once it is passed.

    A volume's disk lies where more than one pod may know of it.
    """
    if not stat.S_ISREG(os.fstat(file).st_mode):
        raise FailedPrecondition(f"{path} is no disk: it is not a regular file")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FailedPrecondition(f"the disk {path} is in use by another VM; stop its pod first") from error
