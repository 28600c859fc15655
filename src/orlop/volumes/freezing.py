"""A mounted file system that stands still while it is copied."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from orlop.errors import of_system
from orlop.host import mounts, threads
from orlop.host.tasks import uncancelled
from orlop.linux import loop

log = logging.getLogger(__name__)

_FREEZE = 0xC0045877
_THAW = 0xC0045878


@asynccontextmanager
async def frozen(disk: Path) -> AsyncIterator[bool]:
    """Have nobody write to the file system of a disk; False where it is not one that is mounted here.

    Those who write meanwhile wait. Whoever is killed in here leaves it frozen, until :func:`thaw`.
    """
    point = await threads.call(_mounted, disk)
    if point is None:
        yield False
        return
    try:
        await threads.call(_order, point, _FREEZE)
    except OSError as error:
        raise of_system(error, f"{point} cannot be frozen: {error.strerror}") from error
    try:
        yield True
    finally:
        await uncancelled(threads.call(_order, point, _THAW))


def thaw(disk: Path) -> None:
    """Let those who write go on, if somebody was killed in :func:`frozen`. Idempotent.

    What fails is logged: one disk keeps no daemon from its start.
    """
    try:
        point = _mounted(disk)
        if point is not None:
            _order(point, _THAW)
            log.warning("%s was frozen, and goes on", point)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: it was not
            log.error("whether %s is frozen is not known: %s", disk, error)


def _mounted(disk: Path) -> Path | None:
    for device in loop.devices_of(os.fspath(disk)):
        for point in mounts.points_of(Path(device).stat().st_rdev):
            return point
    return None


def _order(point: Path, number: int) -> None:
    descriptor = os.open(point, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, number, 0)
    finally:
        os.close(descriptor)
