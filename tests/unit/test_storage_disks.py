"""The files behind a VM's disks, as they are checked and as the file system's own checker sees them."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.storage import disks
from orlop.storage.disks import check_layers, scratch_disk, volume_disk


async def test_layers_that_cannot_be_attached(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.write_bytes(bytes(4096))
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(4097))
    await check_layers([os.fspath(good)] * 2)
    for layers, error in (
        ([], InvalidArgument),
        (["relative"], InvalidArgument),
        ([os.fspath(good), os.fspath(tmp_path / "gone")], NotFound),
        ([os.fspath(odd)], FailedPrecondition),
    ):
        with pytest.raises(error):
            await check_layers(layers)


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


@pytest.mark.skipif(not shutil.which("mke2fs"), reason="needs e2fsprogs")
async def test_first_disks_of_a_size_that_are_made_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Volumes have one name, each in a directory of its own, and one workplace.
    monkeypatch.setattr(disks, "_templates", {})
    paths = [tmp_path / name / "volume" for name in "abcd"]
    for path in paths:
        path.parent.mkdir()
    async with asyncio.TaskGroup() as group:
        for path in paths:
            group.create_task(volume_disk(path, 64, workplace=tmp_path / "workplace"))
    for path in paths:
        assert path.stat().st_size == 64 << 20
        assert [one.name for one in path.parent.iterdir()] == ["volume"]


async def test_a_scratch_disk_that_is_too_small(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="4 MiB"):
        await scratch_disk(tmp_path / "x", 4)
