"""The disks of a VM: one for all layers of an image, one for a container's writable layer.

An image of one layer is that layer's file. A disk of several is a description, not a copy: a VMDK of
flat extents, which QEMU reads natively, strings together a GPT written here and the layers' own files.
The guest sees a disk with one partition for each layer, the bottom one first.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import struct
import uuid
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from orlop.host import files, process
from orlop.linux.removal import remove_tree

SECTOR = 512
MAX_LAYERS = 124
MIN_SCRATCH_MIB = 8

_HEAD_SECTORS = 64
_TAIL_SECTORS = 40
_ENTRIES = 128
_ENTRY_SIZE = 128
_TABLE_SECTORS = _ENTRIES * _ENTRY_SIZE // SECTOR
_ALIGNMENT = 8
# As in the UEFI specification, table of partition types: "Linux filesystem data".
_LINUX_DATA = uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
_MAX_EXTENT_PATH = 511


async def image_disk(layers: Sequence[str], directory: Path, disk_id: str) -> tuple[Path, int]:
    """The disk of ``layers``, bottom first: its file and how many partitions it has. Idempotent.

    One layer is a disk as it is, without partitions. For several, a VMDK descriptor and a partition
    table go to ``directory`` under the name ``disk_id``; both are free to be removed once no VM uses
    them. Raises NotFound when a layer is missing, ResourceExhausted for more than 124 of them.
    """
    return await asyncio.to_thread(_image_disk, tuple(layers), directory, disk_id)


def _image_disk(layers: tuple[str, ...], directory: Path, disk_id: str) -> tuple[Path, int]:
    if not layers:
        raise InvalidArgument(f"disk {disk_id} has no layers")
    if len(layers) > MAX_LAYERS:
        raise ResourceExhausted(f"an image of {len(layers)} layers; a disk holds at most {MAX_LAYERS}")
    extents = [(layer, _sectors(layer)) for layer in layers]
    if len(layers) == 1:
        return Path(layers[0]), 0
    table, descriptor = directory / f"{disk_id}.gpt", directory / f"{disk_id}.vmdk"
    for path in (*layers, os.fspath(table.absolute())):
        if '"' in path or not path.isprintable() or len(os.fsencode(path)) > _MAX_EXTENT_PATH:
            raise FailedPrecondition(
                f"the path {path!r} cannot stand in a disk description; use a plainer root"
            )
    table.parent.mkdir(parents=True, exist_ok=True)
    files.save(table, partition_table([sectors for _, sectors in extents], disk_id))
    files.save(descriptor, _descriptor(os.fspath(table.absolute()), extents).encode())
    return descriptor, len(layers)


def _sectors(layer: str) -> int:
    if not Path(layer).is_absolute():
        raise InvalidArgument(f"the layer {layer} is not named by an absolute path")
    try:
        size = Path(layer).stat().st_size
    except FileNotFoundError as error:
        raise NotFound(f"the layer {layer} is gone; pull the image again") from error
    if size == 0 or size % (SECTOR * _ALIGNMENT):
        raise FailedPrecondition(f"the layer {layer} is damaged: its size is {size} bytes; remove the image")
    return size // SECTOR


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


# The parts of freshly made file systems that are not zero, by size in MiB: some hundred kilobytes each.
_templates: dict[int, tuple[tuple[int, bytes], ...]] = {}
_TEMPLATES_KEPT = 8


async def scratch_disk(path: Path, size_mib: int) -> Path:
    """A new disk image at ``path`` with an empty ext4 on it, of ``size_mib``; it takes space as it fills.

    It holds the empty directories ``upper`` and ``work`` for an overlay. There is no journal, and there
    are no checksums of metadata: a writable layer ends with its VM. A file that stands at ``path`` is
    replaced. Raises ResourceExhausted when the disk is full.
    """
    if size_mib < MIN_SCRATCH_MIB:
        raise InvalidArgument(
            f"a writable layer of {size_mib} MiB is too small; {MIN_SCRATCH_MIB} is the least"
        )
    parts = _templates.get(size_mib)
    try:
        if parts is None:
            parts = await _format(path, size_mib)
        await asyncio.to_thread(_fill, path, size_mib << 20, parts)
    except OSError as error:
        raise ResourceExhausted(f"the writable layer {path} cannot be made: {error.strerror}") from error
    return path


async def _format(path: Path, size_mib: int) -> tuple[tuple[int, bytes], ...]:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    content = aside.with_suffix(".content")
    try:
        await asyncio.to_thread(_fill, aside, size_mib << 20, ())
        for name in ("upper", "work"):
            (content / name).mkdir(mode=0o755, parents=True)
        await process.run(
            [
                "mke2fs",
                "-q",
                "-F",
                "-t", "ext4",
                "-m", "0",
                "-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg",
                "-E", "packed_meta_blocks=1,root_owner=0:0",
                "-d", content,
                aside,
            ]
        )  # fmt: skip
        parts = await asyncio.to_thread(_data_parts, aside)
    finally:
        aside.unlink(missing_ok=True)
        with suppress(OSError):
            remove_tree(content)
    while len(_templates) >= _TEMPLATES_KEPT:
        _templates.pop(next(iter(_templates)))
    _templates[size_mib] = parts
    return parts


def _data_parts(path: Path) -> tuple[tuple[int, bytes], ...]:
    parts = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        position, size = 0, os.fstat(descriptor).st_size
        while position < size:
            try:
                begin = os.lseek(descriptor, position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                break
            position = os.lseek(descriptor, begin, os.SEEK_HOLE)
            parts.extend(_nonzero(begin, os.pread(descriptor, position - begin, begin)))
    finally:
        os.close(descriptor)
    return tuple(parts)


def _nonzero(begin: int, data: bytes, block: int = 4096) -> list[tuple[int, bytes]]:
    """The parts of ``data`` that hold anything, in whole blocks."""
    parts: list[tuple[int, bytes]] = []
    run = -1
    for offset in range(0, len(data) + block, block):
        if any(data[offset : offset + block]):
            run = offset if run < 0 else run
        elif run >= 0:
            parts.append((begin + run, data[run:offset]))
            run = -1
    return parts


def _fill(path: Path, size: int, parts: Sequence[tuple[int, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        for offset, data in parts:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], offset + written)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
