"""The ext4 of a volume: made, and grown to its disk's size."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from orlop.errors import FailedPrecondition, ResourceExhausted
from orlop.host import process, threads
from orlop.host.process import ProcessFailed

_MAGIC = 0xEF53
_SUPERBLOCK, _SUPERBLOCK_SIZE = 1024, 1024
_64BIT = 0x80
_LEAST_GAIN = 1 << 20
"""Bytes; less is not worth the look, and may be too few for another group."""

_TIME = 600.0
_CHECKED = (0, 1)
"""What e2fsck(8) ends with when all is well now."""


async def make(disk: Path) -> None:
    """An empty file system on a sparse disk that was never written to. Nothing is mounted.

    It can be grown by any factor, and has no blocks kept for root. Raises ResourceExhausted.
    """
    try:
        await process.run(
            [
                "mke2fs",
                "-q",
                "-F",
                "-t", "ext4",
                "-m", "0",
                # What a hole reads as need not be written, and would take room.
                "-E", "assume_storage_prezeroed=1,root_owner=0:0",
                disk,
            ]
        )  # fmt: skip
    except ProcessFailed as error:
        raise ResourceExhausted(f"no file system can be made on {disk}: {error}") from error


async def fit(disk: Path) -> None:
    """Let a file system that nobody has mounted take all of its disk. Raises FailedPrecondition."""
    if await threads.call(_fits, disk):
        return
    try:
        checked = await process.run(["e2fsck", "-f", "-p", disk], timeout=_TIME, check=False)
        if checked.returncode not in _CHECKED:
            said = (checked.stdout + checked.stderr).decode(errors="replace")
            raise ProcessFailed("e2fsck", checked.returncode, said)
        await process.run(["resize2fs", disk], timeout=_TIME)
    except ProcessFailed as error:
        raise FailedPrecondition(f"the file system on {disk} cannot be grown: {error}") from error


async def fit_mounted(device: str, disk: Path) -> None:
    """The same for one that is mounted from ``device``, while others use it. Raises FailedPrecondition."""
    if await threads.call(_fits, disk):
        return
    try:
        await process.run(["resize2fs", device], timeout=_TIME)
    except ProcessFailed as error:
        raise FailedPrecondition(
            f"the file system on {disk} cannot be grown while it is mounted: {error}; "
            "it is grown when it is mounted next"
        ) from error


def _fits(disk: Path) -> bool:
    """Whether no further group of blocks would find room."""
    descriptor = os.open(disk, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        data = os.pread(descriptor, _SUPERBLOCK_SIZE, _SUPERBLOCK)
        size = os.fstat(descriptor).st_size
    finally:
        os.close(descriptor)
    if len(data) < _SUPERBLOCK_SIZE or struct.unpack_from("<H", data, 0x38)[0] != _MAGIC:
        raise FailedPrecondition(f"there is no ext4 on {disk}")
    low, shift = struct.unpack_from("<I", data, 0x4)[0], struct.unpack_from("<I", data, 0x18)[0]
    (incompatible,) = struct.unpack_from("<I", data, 0x60)
    high = struct.unpack_from("<I", data, 0x150)[0] if incompatible & _64BIT else 0
    block = 1024 << min(shift, 6)
    taken: int = (high << 32 | low) * block
    return size - taken < _LEAST_GAIN
