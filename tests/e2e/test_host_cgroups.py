"""Control groups of the real host. Needs root."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.config import IoConfig
from orlop.host import cgroups, cgroupstats, process
from orlop.host.cgroups import Cgroup, Limits
from orlop.sandbox.vm import hostgroup
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


async def _go(child: process.Child) -> None:
    """Let a child that reads a line go on."""
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    child.stdin.close()


@pytest.fixture
async def group() -> AsyncIterator[Cgroup]:
    found = Cgroup(f"/orlop-test-{os.getpid()}/pod")
    found.create()
    yield found
    await cgroups.destroy(Cgroup(f"/orlop-test-{os.getpid()}"))
    assert not found.exists()


async def test_a_process_is_counted_limited_and_killed_with_its_group(group: Cgroup) -> None:
    group.create()
    group.set(
        Limits(memory_limit=64 << 20, cpu_shares=512, pids_limit=50, cpu_quota=50000, cpu_period=100000)
    )
    child = await process.spawn(["sh", "-c", "read go; sleep 60 & wait"], stdin=PIPE)
    group.add(child.pid)
    await _go(child)
    grandchild = await process.spawn(["sleep", "60"])
    below = Cgroup(group.path + "/below")
    below.create()
    below.add(grandchild.pid)
    assert {child.pid, grandchild.pid} <= set(group.processes())
    assert Cgroup.of_process(child.pid).path == group.path
    async with asyncio.timeout(60 * PATIENCE):
        while (used := cgroupstats.usage(group, members=True)).processes < 3:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    assert used.memory_limit == 64 << 20
    group.set(Limits(memory_limit=32 << 20))
    assert cgroupstats.usage(group).memory_limit == 32 << 20
    await cgroups.destroy(group)
    assert await child.wait() == -signal.SIGKILL
    assert await grandchild.wait() == -signal.SIGKILL
    assert not group.exists()
    await cgroups.destroy(group)


async def test_a_kill_for_memory_is_seen(group: Cgroup) -> None:
    group.set(Limits(memory_limit=8 << 20))
    if group.host.version == 2:
        group.set(Limits(memory_limit=8 << 20, swap_limit=8 << 20))
    assert cgroupstats.oom_kills(group) == 0
    child = await process.spawn(["sh", "-c", "read go; exec tail /dev/zero"], stdin=PIPE)
    group.add(child.pid)
    await _go(child)
    assert await child.wait() == -signal.SIGKILL
    assert cgroupstats.oom_kills(group) == 1


@pytest.mark.parametrize(("asked", "held"), [(0.02, 0.2), (0.5, 0.5), (0, -1)])
async def test_a_vm_has_a_share_of_a_processor_however_little_its_pod_may_use(
    group: Cgroup, asked: float, held: float
) -> None:
    pod = Cgroup(f"/orlop-test-{os.getpid()}")
    assert pod.cpu_limit() == -1
    if asked:
        pod.set(Limits(cpu_quota=int(asked * 100_000), cpu_period=100_000))
        if pod.cpu_limit() < 0:
            pytest.skip("processors are not counted in control groups here")
    child = await process.spawn(["sleep", "60"])
    try:
        await hostgroup.enter(group.path, child.pid, 64, IoConfig())
        assert pod.cpu_limit() == held
        # The kubelet writes its own value before it tells of a change.
        if asked:
            pod.set(Limits(cpu_quota=int(asked * 100_000), cpu_period=100_000))
        await hostgroup.hold(group.path, 64)
        assert pod.cpu_limit() == held
    finally:
        child.kill()
        await child.wait()


@pytest.mark.skipif(not {"io", "blkio"} & cgroups.hierarchy().controllers.keys(), reason="no such controller")
async def test_a_vm_reads_no_faster_than_it_may(group: Cgroup, tmp_path: Path) -> None:
    file = tmp_path / "file"
    await process.run(["dd", "if=/dev/zero", f"of={file}", "bs=256K", "count=16", "conv=fsync"])
    if not os.major(file.stat().st_dev):
        pytest.skip("temporary files are on no disk")
    script = f"read go; exec dd if={file} of=/dev/null bs=256K count=16 iflag=direct"

    async def seconds(io: IoConfig) -> float:
        child = await process.spawn(["sh", "-c", script], stdin=PIPE)
        await hostgroup.enter(group.path, child.pid, 64, io)
        began = time.monotonic()
        await _go(child)
        assert await child.wait() == 0
        return time.monotonic() - began

    # Without the limit as well where the disk has so much else to do.
    assert await seconds(IoConfig(read_mib_per_second=1)) > 2.5
