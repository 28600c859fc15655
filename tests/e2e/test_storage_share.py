"""Volumes below a VM's shared directory."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.host import mounts, process
from orlop.hypervisor.jail import ids
from orlop.hypervisor.jail.spawn import Jail, spawn
from orlop.hypervisor.jail.tree import TreeContents, prepare
from orlop.storage.share import Share


@dataclass(frozen=True)
class Asked:
    host_path: str
    read_only: bool = False
    recursive_read_only: bool = False
    propagation: str = "private"


@pytest.fixture
async def share(tmp_path: Path) -> AsyncIterator[Share]:
    one = Share(tmp_path / "share")
    yield one
    await one.release_all()
    assert mounts.mounts_below(tmp_path / "share") == []


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    path = tmp_path / "volume"
    path.mkdir()
    (path / "file").write_text("content")
    return path


async def test_directories_files_and_links(share: Share, volume: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(volume)
    for key, source in (("d", volume), ("f", volume / "file"), ("l", link)):
        for _ in range(2):
            assert await share.add(Asked(os.fspath(source)), key) == key
    shown = tmp_path / "share"
    assert len(mounts.mounts_below(shown)) == 3
    assert (shown / "f").read_text() == "content"
    (shown / "l/new").write_text("n")
    assert (volume / "new").read_text() == "n"
    await share.remove("d")
    await share.remove("d")
    assert not (shown / "d").exists()
    await Share(shown).release_all()
    assert list(shown.iterdir()) == []
    assert (volume / "new").exists(), "the host's files stay"


async def test_read_only(share: Share, volume: Path, tmp_path: Path) -> None:
    inner = volume / "inner"
    inner.mkdir()
    mounts.mount("tmpfs", inner, "tmpfs")
    try:
        await share.add(Asked(os.fspath(volume), read_only=True), "ro")
        await share.add(Asked(os.fspath(volume), read_only=True, recursive_read_only=True), "rro")
        await share.add(Asked(os.fspath(volume / "file"), read_only=True), "file")
        shown = tmp_path / "share"
        for path in (shown / "ro/x", shown / "rro/x", shown / "rro/inner/x", shown / "file"):
            with pytest.raises(OSError, match="Read-only"):
                path.write_text("no")
        (shown / "ro/inner/x").write_text("yes")
    finally:
        await share.release_all()
        mounts.unmount(inner)


async def test_later_mounts_appear_when_asked_for(share: Share, volume: Path, tmp_path: Path) -> None:
    mounts.bind(volume, volume)
    await process.run(["mount", "--make-rshared", volume])
    (volume / "later").mkdir()
    try:
        await share.add(Asked(os.fspath(volume), propagation="rslave"), "follows")
        await share.add(Asked(os.fspath(volume)), "private")
        mounts.mount("tmpfs", volume / "later", "tmpfs")
        (volume / "later/x").touch()
        assert (tmp_path / "share/follows/later/x").exists()
        assert not (tmp_path / "share/private/later/x").exists()
    finally:
        await share.release_all()
        mounts.unmount_below(volume)


async def test_what_cannot_be_shared(share: Share, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="no such path"):
        await share.add(Asked(os.fspath(tmp_path / "nowhere")), "a")
    with pytest.raises(FailedPrecondition, match="propagation"):
        await share.add(Asked("/", propagation="rshared"), "a")
    for key in ("", "..", "a/b", ".hidden"):
        with pytest.raises(InvalidArgument):
            await share.add(Asked("/"), key)
    assert not (tmp_path / "share").exists() or list((tmp_path / "share").iterdir()) == []


async def test_what_the_guest_puts_there_is_not_followed(share: Share, volume: Path, tmp_path: Path) -> None:
    shown = tmp_path / "share"
    shown.mkdir()
    outside = tmp_path / "outside"
    outside.mkdir()
    (shown / "key").symlink_to(outside)
    await share.add(Asked(os.fspath(volume)), "key")
    assert not mounts.is_mounted(outside)
    assert (shown / "key/file").read_text() == "content"
    await share.remove("key")
    (shown / "key").symlink_to(outside)
    (shown / "full").mkdir()
    (shown / "full/x").touch()
    await share.remove("key")
    await share.release_all()
    assert outside.is_dir()


@pytest.fixture
async def jailed(tmp_path: Path) -> AsyncIterator[int]:
    """A process that has ``tmp_path``/share at /share, and users of its own."""
    (tmp_path / "share").mkdir()
    busybox = Path("/bin/busybox")
    contents = TreeContents(objects=(busybox,), directories=("/dev", "/pid", "/share"))
    tree = await prepare(tmp_path / "trees", contents)
    jail = Jail(tree=tree, owner=ids.FIRST, binds=((tmp_path / "share", "/share"),))
    with (tmp_path / "log").open("wb") as log:
        child = await spawn(jail, [os.fspath(busybox), "sleep", "600"], log=log.fileno())
    yield child.pid
    await process.kill_pid(child.pid, child.start_time)
    await child.wait()


async def test_volumes_that_cannot_be_mapped_are_told_of_or_refused(
    jailed: int, volume: Path, tmp_path: Path
) -> None:
    odd = tmp_path / "odd"
    odd.mkdir()
    mounts.mount("ramfs", odd, "ramfs")
    shown, inside = tmp_path / "share", Path("/share")
    try:
        share = Share(shown, process=jailed, inside=inside)
        await share.add(Asked(os.fspath(volume)), "plain")
        assert share.unmapped == []
        await share.add(Asked(os.fspath(odd)), "odd")
        assert share.unmapped == [os.fspath(odd)]
        later = Share(shown, process=jailed, inside=inside)
        for key, path in (("plain", volume), ("odd", odd)):
            later.adopt(Asked(os.fspath(path)), key)
        assert later.unmapped == [os.fspath(odd)]
        await later.remove("odd")
        assert later.unmapped == []
        strict = Share(shown, process=jailed, inside=inside, only_mapped=True)
        for _ in range(2):
            with pytest.raises(FailedPrecondition, match=r"cannot map users.*vm\.unmapped_volumes"):
                await strict.add(Asked(os.fspath(odd)), "odd")
        await strict.add(Asked(os.fspath(volume)), "again")
        assert sorted(path.name for path in shown.iterdir()) == ["again", "plain"]
        for one in (share, later, strict):
            await one.close()
    finally:
        mounts.unmount(odd)


async def test_a_guest_cannot_fill_the_directory_itself(jailed: int, volume: Path, tmp_path: Path) -> None:
    shown, seen = tmp_path / "share", Path(f"/proc/{jailed}/root/share")
    share = Share(shown, process=jailed, inside=Path("/share"))
    assert share.make_point("warm") == shown / "warm"
    await share.add(Asked(os.fspath(volume)), "key")
    await share.add(Asked(os.fspath(volume / "file"), read_only=True), "file")
    (seen / "key/file").write_text("volumes stay writable")
    assert (volume / "file").read_text() == "volumes stay writable"
    for path in (seen / "x", seen / "warm/x", seen / "file"):
        with pytest.raises(OSError, match="Read-only"):
            path.write_text("no")
    await share.remove("key")
    assert sorted(path.name for path in shown.iterdir()) == ["file", "warm"]
    await share.close()


async def test_an_overlay_that_is_put_together_anew_is_the_vms_own(
    jailed: int, volume: Path, tmp_path: Path
) -> None:
    for name in ("layer/diff", "layer/work", "merged"):
        (tmp_path / name).mkdir(parents=True)
    merged = os.fspath(tmp_path / "merged")
    options = f"lowerdir={volume},upperdir={tmp_path}/layer/diff,workdir={tmp_path}/layer/work"
    mounts.mount("overlay", merged, "overlay", options=options)
    share = Share(tmp_path / "share", process=jailed, inside=Path("/share"))
    try:
        for key, path, owner in (("r", merged, ids.FIRST), ("v", merged, 0), ("d", f"{volume}", ids.FIRST)):
            await share.add(Asked(path), key, overlay_owner=owner)
            assert Path(f"/proc/{jailed}/root/share/{key}/file").read_text() == "content"
            assert share.is_own(key) == (key == "r")
        await share.remove("r")
        assert not share.is_own("r")
    finally:
        await share.close()
        mounts.unmount(merged)
