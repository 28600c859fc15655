"""One disk of several files, as QEMU and the partition table's rules have it."""

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

from orlop.errors import ResourceExhausted
from orlop.hypervisor.qemu import stacks
from orlop.hypervisor.qemu.stacks import partition_table


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
def test_qemu_reads_the_layers_as_partitions(count: int, tmp_path: Path) -> None:
    layers = []
    for number in range(count):
        layer = tmp_path / f"layer, {number}.erofs"
        layer.write_bytes(os.urandom(4096 * (1 + number % 3)))
        layers.append(os.fspath(layer))
    names = [str(tmp_path / "img-1.gpt"), *layers]
    stack = stacks.write(layers, tmp_path, "img-1", names.__getitem__)
    assert stack == stacks.write(layers, tmp_path, "img-1", names.__getitem__)
    assert [os.fspath(file) for file in (stack.table, *stack.files)] == names
    path = stack.description
    raw = tmp_path / "raw"
    subprocess.run(["qemu-img", "convert", "-f", "vmdk", "-O", "raw", path, raw], check=True)
    disk = raw.read_bytes()
    assert [disk[start * 512 : (end + 1) * 512] for start, end in partitions(disk, 1)] == [
        Path(layer).read_bytes() for layer in layers
    ]
    stacks.remove(tmp_path, "img-1")
    stacks.remove(tmp_path, "img-1")
    assert sorted(file.suffix for file in tmp_path.iterdir()) == ["", *[".erofs"] * count]


def test_what_cannot_be_one_disk(tmp_path: Path) -> None:
    (tmp_path / "good").write_bytes(bytes(4096))
    with pytest.raises(ResourceExhausted, match="124"):
        stacks.write([os.fspath(tmp_path / "good")] * 125, tmp_path, "img", str)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]
