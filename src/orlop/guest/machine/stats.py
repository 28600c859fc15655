"""Measuring: a group's files, and how much a container wrote."""

from __future__ import annotations

import os

from orlop.guest.devices.block import Mounted
from orlop.guest.machine.cgroup import GuestCgroup
from orlop.linux import space
from orlop.linux import usage as counts
from orlop.linux.usage import LayerFill, Usage


def usage(group: GuestCgroup, *, full: bool = False) -> Usage:
    """What a container's group uses; ``full`` with limits, disks and open files."""
    tasks = group.number("pids.current")
    pids = group.pids() if tasks > 1 or full else []
    opened = counts.open_files(pids) if full else (0, 0)
    return counts.unified(group.read, full=full, processes=len(pids) or tasks, open_files=opened)


def written(upper: str, disk: Mounted | None) -> LayerFill:
    """A writable layer. A disk of its own is asked how full it is; else the tree is walked."""
    if not upper:
        return LayerFill()
    use = os.statvfs(upper)
    if disk is not None and len(disk.users) == 1:
        used = max(0, (use.f_blocks - use.f_bfree) * use.f_frsize - disk.baseline[0])
        inodes = max(0, use.f_files - use.f_ffree - disk.baseline[1])
    else:
        used, inodes = space.taken(upper)
    return LayerFill(
        used=used,
        inodes=inodes,
        size=use.f_blocks * use.f_frsize,
        inodes_total=use.f_files,
        inodes_free=use.f_ffree,
    )
