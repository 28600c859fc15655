"""Block devices of the host: which one a path is, how large it is, and in what units it is read."""

from __future__ import annotations

import fcntl
import os
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

SECTOR = 512
"""Bytes of the unit in which the kernel tells sizes, whatever the device's own sectors are."""

# linux/fs.h
_BLKROGET = 0x125E
_BLKSSZGET = 0x1268
_BLKPBSZGET = 0x127B


@dataclass(frozen=True)
class BlockDevice:
    """A block device. ``number`` is its major and minor number; sizes of sectors are in bytes."""

    number: tuple[int, int]
    logical_sector: int
    physical_sector: int
    read_only: bool


def look(path: str) -> BlockDevice | None:
    """The block device at ``path``, None for any other kind of file. Blocks. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        found = os.fstat(fd)
        if not stat.S_ISBLK(found.st_mode):
            return None
        return BlockDevice(
            number=(os.major(found.st_rdev), os.minor(found.st_rdev)),
            logical_sector=_asked(fd, _BLKSSZGET),
            physical_sector=_asked(fd, _BLKPBSZGET),
            read_only=bool(_asked(fd, _BLKROGET)),
        )
    finally:
        os.close(fd)


def size_of(number: tuple[int, int]) -> int:
    """The size in bytes of the device with that number. Raises OSError for one that is not there."""
    text = Path(f"/sys/dev/block/{number[0]}:{number[1]}/size").read_text()
    return int(text) * SECTOR


def _asked(fd: int, request: int) -> int:
    (value,) = struct.unpack("=i", fcntl.ioctl(fd, request, bytes(4)))
    return int(value)
