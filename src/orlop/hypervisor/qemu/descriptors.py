"""Files that a running QEMU gets as open descriptors (QMP ``add-fd``): it can open none by itself.

A disk is of few files; each is a set of its own, numbered by the disk's unit.
"""

from __future__ import annotations

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


def name(lun: int, number: int) -> str:
    """What QEMU calls the file ``number`` of the disk at unit ``lun``."""
    return descriptor_set(lun * _SETS + number)


async def give(monitor: Monitor, lun: int, files: Sequence[Path], *, read_only: bool) -> None:
    """Pass the files of the disk at ``lun``; :func:`take_back` undoes it. Raises OSError.

    Writable ones are regular files, or block devices, that no other machine has: FailedPrecondition.
    """
    flags = (os.O_RDONLY if read_only else os.O_RDWR | os.O_NOFOLLOW) | os.O_CLOEXEC
    for number, path in enumerate(files):
        file = os.open(path, flags)
        try:
            if not read_only:
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


def _claim(file: int, path: Path) -> None:
    """Lock an open file for as long as anybody has it by this descriptor: QEMU, once it is passed.

    A volume's disk lies where more than one pod may know of it.
    """
    mode = os.fstat(file).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
        raise FailedPrecondition(f"{path} is no disk: neither a regular file nor a block device")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise FailedPrecondition(f"the disk {path} is in use by another VM; stop its pod first") from error
