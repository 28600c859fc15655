"""Namespaces and mounts, on the real kernel. Needs root."""

import asyncio
import os
import socket
import subprocess
import threading
from pathlib import Path

import pytest

from orlop.errors import NotFound
from orlop.host import mounts, namespaces, netns
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


def _net() -> str:
    return str(Path("/proc/thread-self/ns/net").readlink())


async def test_netns_is_made_entered_and_deleted_without_moving_any_thread(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "netns"
    own = _net()
    await netns.create(path)
    try:
        inside = await netns.within(path, _net)
        assert inside != own
        assert inside == await netns.within(path, _net)
        assert _net() == own
        assert await asyncio.to_thread(_net) == own
        with pytest.raises(FileExistsError):
            await netns.create(path)
        assert mounts.is_mounted(path)
        with pytest.raises(ZeroDivisionError):
            await netns.within(path, lambda: 1 // 0)
    finally:
        await netns.delete(path)
    await netns.delete(path)
    assert not path.exists()
    async with asyncio.timeout(60 * PATIENCE):
        # One that has delivered what it found has still to end.
        while any(thread.name.startswith("orlop-") for thread in threading.enumerate()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(NotFound, match="does not exist"):
        await netns.within(path, _net)


async def test_cancelled_create_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "netns"
    task = asyncio.create_task(netns.create(path))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not path.exists()
    assert not mounts.mounts_below(tmp_path)


async def test_uts_and_ipc_namespaces_carry_their_own_name(tmp_path: Path) -> None:
    paths = {kind: tmp_path / kind for kind in ("net", "ipc", "uts")}
    await namespaces.create(paths, hostname="below-deck")
    try:
        assert await namespaces.within({"uts": paths["uts"]}, socket.gethostname) == "below-deck"
        assert socket.gethostname() != "below-deck"
    finally:
        for path in paths.values():
            namespaces.remove(path)
    assert not list(tmp_path.iterdir())


def _options(path: Path) -> list[str]:
    out = subprocess.run(
        ["findmnt", "-no", "OPTIONS,PROPAGATION", path], check=True, capture_output=True, text=True
    )
    return out.stdout.replace(" ", ",").strip().split(",")


def test_bind_read_only_and_recursive(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target with space"
    (source / "sub").mkdir(parents=True)
    target.mkdir()
    mounts.mount("none", source / "sub", "tmpfs")
    try:
        mounts.bind(source, target, read_only=True, recursive=True)
        with pytest.raises(OSError, match="Read-only"):
            (target / "x").touch()
        (target / "sub" / "x").touch()
        assert [path.name for path in mounts.mounts_below(target)] == ["sub", "target with space"]
        mounts.unmount_below(target)

        mounts.bind(source, target, recursive=True, recursive_read_only=True)
        with pytest.raises(OSError, match="Read-only"):
            (target / "sub" / "y").touch()
        mounts.unmount_below(target)

        mounts.bind(source, target, propagation="rshared")
        assert "shared" in _options(target)
        mounts._bind_old(source, target, True, True, "rslave")  # stacked on the first
        with pytest.raises(OSError, match="Read-only"):
            (target / "x").touch()
        mounts.unmount(target)
        assert not mounts.is_mounted(target)
        mounts.unmount(target)
        mounts.unmount(tmp_path / "missing")
    finally:
        mounts.unmount_below(tmp_path)
