"""One disk of several files, for a guest that has no place left for a disk of each.

It is a description, not a copy: a VMDK of flat extents, which QEMU reads natively, strings together a
partition table written here and the files themselves. The guest sees a disk with one partition for each file,
the first one first.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from orlop.errors import ResourceExhausted
from orlop.host import files as saved

SECTOR = 512
MAX_FILES = 124

Name = Callable[[int], str]

_HEAD_SECTORS = 64
_TAIL_SECTORS = 40
_ENTRIES = 128
_ENTRY_SIZE = 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_SIZE // SECTOR
# As in the UEFI specification, table of partition types: "Linux filesystem data".
_LINUX_DATA = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")


class Stack(msgspec.Struct, frozen=True):
    """The files of a described disk: the description, the partition table, and those that it strings
    together."""

    description: Path
    table: Path
    files: tuple[Path, ...]


def write(files: Sequence[str], directory: Path, disk_id: str, name: Name) -> Stack:
    """Describe the disk of ``files`` in ``directory``. Idempotent.

    ``name`` says what QEMU calls the table (0) and each of the files (from 1 on).
    Raises ResourceExhausted for more than 124 files, OSError.
    """
    if len(files) > MAX_FILES:
        raise ResourceExhausted(f"an image of {len(files)} layers; a disk holds at most {MAX_FILES}")
    sectors = [Path(file).stat().st_size // SECTOR for file in files]
    table, description = _paths(directory, disk_id)
    saved.save(table, partition_table(sectors, disk_id))
    extents = [(name(number), size) for number, size in enumerate(sectors, 1)]
    saved.save(description, _descriptor(name(0), extents).encode())
    return Stack(description, table, tuple(map(Path, files)))


def remove(directory: Path, disk_id: str) -> None:
    """Remove what :func:`write` wrote, once the disk is closed. Idempotent."""
    for path in _paths(directory, disk_id):
        path.unlink(missing_ok=True)


def _paths(directory: Path, disk_id: str) -> tuple[Path, Path]:
    return directory / f"{disk_id}.gpt", directory / f"{disk_id}.vmdk"


def _descriptor(table: str, extents: Sequence[tuple[str, int]]) -> str:
    """The text form of VMDK. Only extents marked RW are read; the disk is attached read-only."""
    lines = [
        "# Disk DescriptorFile",
        "version=1",
        "CID=fffffffe",
        "parentCID=ffffffff",
        'createType="twoGbMaxExtentFlat"',
        "",
        "# Extent description",
        f'RW {_HEAD_SECTORS} FLAT "{table}" 0',
        *(f'RW {sectors} FLAT "{layer}" 0' for layer, sectors in extents),
        f'RW {_TAIL_SECTORS} FLAT "{table}" {_HEAD_SECTORS}',
        "",
        "# The Disk Data Base",
        'ddb.virtualHWVersion = "4"',
        "",
    ]
    return "\n".join(lines)


def partition_table(sizes: Sequence[int], name: str) -> bytes:
    """A GUID partition table (UEFI specification, chapter 5) for partitions of ``sizes`` sectors.

    The first 64 sectors stand before the partitions, the last 40 behind them.
    """
    disk = uuid.UUID(bytes=hashlib.sha256(name.encode()).digest()[:16], version=4)
    total = _HEAD_SECTORS + sum(sizes) + _TAIL_SECTORS
    entries = []
    start = _HEAD_SECTORS
    for number, size in enumerate(sizes, 1):
        label = f"layer {number}".encode("utf-16-le")
        own = uuid.uuid5(disk, str(number))
        entries.append(
            struct.pack(
                "<16s16sQQQ72s", _LINUX_DATA.bytes_le, own.bytes_le, start, start + size - 1, 0, label
            )
        )
        start += size
    table = b"".join(entries).ljust(_ENTRIES * _ENTRY_SIZE, b"\0")

    def header(here: int, other: int, table_at: int) -> bytes:
        def pack(checksum: int) -> bytes:
            return struct.pack(
                "<8sIIIIQQQQ16sQIII",
                b"EFI PART",
                0x00010000,
                92,
                checksum,
                0,
                here,
                other,
                _HEAD_SECTORS,
                total - _TAIL_SECTORS - 1,
                disk.bytes_le,
                table_at,
                _ENTRIES,
                _ENTRY_SIZE,
                zlib.crc32(table),
            )

        return pack(zlib.crc32(pack(0))).ljust(SECTOR, b"\0")

    backup_table = total - 1 - _TABLE_SECTORS
    head = _protective_mbr(total) + header(1, total - 1, 2) + table
    tail = table + header(total - 1, 1, backup_table)
    return head.ljust(_HEAD_SECTORS * SECTOR, b"\0") + tail.rjust(_TAIL_SECTORS * SECTOR, b"\0")


def _protective_mbr(total: int) -> bytes:
    covered = min(total - 1, 0xFFFFFFFF)
    entry = struct.pack("<B3sB3sII", 0, b"\x00\x02\x00", 0xEE, b"\xff\xff\xff", 1, covered)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa"
