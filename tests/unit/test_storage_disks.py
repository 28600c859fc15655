"""Disks of a VM, as QEMU and the file system's own checker see them."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import uuid
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from orlop.storage import disks
from orlop.storage.disks import image_disk, partition_table, scratch_disk


def partitions(disk: bytes, at: int) -> list[tuple[int, int]]:
    """First and last sector of each partition, by the header at sector ``at``."""
    header = disk[at * 512 : at * 512 + 92]
    assert header[:8] == b"EFI PART"
    stored = struct.unpack_from("<I", header, 16)[0]
    assert zlib.crc32(header[:16] + bytes(4) + header[20:]) == stored
    here, other, first, last = struct.unpack_from("<QQQQ", header, 24)
    assert here == at
    assert {here, other} == {1, len(disk) // 512 - 1}
    table_at, count, size, checksum = struct.unpack_from("<QIII", header, 72)
    table = disk[table_at * 512 : table_at * 512 + count * size]
    assert zlib.crc32(table) == checksum
    found = []
    for number in range(count):
        entry = table[number * size : (number + 1) * size]
        if any(entry):
            assert uuid.UUID(bytes_le=entry[:16]) == uuid.UUID("0FC63DAF-8483-4772-8E79-3D69D8477DE4")
            start, end = struct.unpack_from("<QQ", entry, 32)
            assert first <= start <= end <= last
            found.append((start, end))
    return found


@given(sizes=st.lists(st.integers(1, 300).map(lambda n: 8 * n), min_size=1, max_size=124))
def test_both_tables_hold_every_layer(sizes: list[int]) -> None:
    table = partition_table(sizes, "img")
    head, tail = table[: 64 * 512], table[64 * 512 :]
    disk = head + bytes(512 * sum(sizes)) + tail
    assert disk[510:512] == b"\x55\xaa"
    first = partitions(disk, 1)
    assert first == partitions(disk, len(disk) // 512 - 1)
    assert [end - start + 1 for start, end in first] == sizes
    assert all(start % 8 == 0 for start, _ in first), "aligned to the blocks of the file system"


@pytest.mark.skipif(not shutil.which("qemu-img"), reason="needs qemu-img")
@pytest.mark.parametrize("count", [2, 3, 124])
async def test_qemu_reads_the_layers_as_partitions(count: int, tmp_path: Path) -> None:
    layers = []
    for number in range(count):
        layer = tmp_path / f"layer, {number}.erofs"
        layer.write_bytes(os.urandom(4096 * (1 + number % 3)))
        layers.append(os.fspath(layer))
    path, number = await image_disk(layers, tmp_path / "disks", "img-1")
    assert (path, count) == await image_disk(layers, tmp_path / "disks", "img-1")
    assert number == count
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw], check=True)  # noqa: ASYNC221
    disk = raw.read_bytes()
    assert [disk[start * 512 : (end + 1) * 512] for start, end in partitions(disk, 1)] == [
        Path(layer).read_bytes() for layer in layers
    ]


async def test_one_layer_is_a_disk_as_it_is(tmp_path: Path) -> None:
    layer = tmp_path / "layer"
    layer.write_bytes(bytes(4096))
    assert await image_disk([os.fspath(layer)], tmp_path / "disks", "img-1") == (layer, 0)
    assert not (tmp_path / "disks").exists()


async def test_what_cannot_be_a_disk(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(bytes(4096))
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(4097))
    quoted = tmp_path / 'a"b'
    quoted.write_bytes(bytes(4096))
    for layers, error in (
        ([], InvalidArgument),
        (["relative"], InvalidArgument),
        ([os.fspath(tmp_path / "gone")], NotFound),
        ([os.fspath(odd)], FailedPrecondition),
        ([os.fspath(good), os.fspath(quoted)], FailedPrecondition),
        ([os.fspath(good)] * 125, ResourceExhausted),
    ):
        with pytest.raises(error):
            await image_disk(layers, tmp_path / "disks", "img")
    assert not (tmp_path / "disks").exists()


@pytest.mark.skipif(not shutil.which("mke2fs"), reason="needs e2fsprogs")
async def test_scratch_disks_are_sound_sparse_and_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(disks, "_templates", {})
    paths = [tmp_path / "a" / f"{number}.img" for number in range(3)]
    for path in paths:
        assert await scratch_disk(path, 1024) == path
        subprocess.run(["e2fsck", "-fn", path], check=True, capture_output=True)  # noqa: ASYNC221
        state = path.stat()
        assert state.st_size == 1 << 30
        assert state.st_blocks * 512 < 1 << 20
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["0.img", "1.img", "2.img"]
    for name in ("upper", "work"):
        command = ["debugfs", "-R", f"stat /{name}", paths[0]]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: ASYNC221
        assert "Type: directory    Mode:  0755" in found
    command = ["dumpe2fs", paths[0]]
    described = subprocess.run(command, check=True, capture_output=True, text=True).stdout  # noqa: ASYNC221
    assert "has_journal" not in described
    groups = [line for line in described.splitlines() if line.startswith("Group ") and ": (Blocks" in line]
    assert groups
    assert all("ITABLE_ZEROED" in line for line in groups), "or the guest writes zeros in the background"


async def test_a_scratch_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="4 MiB"):
        await scratch_disk(tmp_path / "x", 4)
