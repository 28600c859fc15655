"""Clones of one template are not alike, and the pool copes with what happens to them."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from orlop.sandbox.spec import ContainerSpec, PodSpec, Resources
from orlop.sandbox.vm.sandbox import VmSandbox
from tests.e2e.vm_environment import Environment, container_spec, environment, execute, pod_spec, until
from tests.patience import PATIENCE

MIB = 1 << 20
IDENTITY = (
    "cat /proc/sys/kernel/random/boot_id; head -c 16 /dev/urandom | hexdump -C; "
    "cat /sys/class/net/eth0/address; hostname; cat /etc/hostname"
)


async def shell(sandbox: VmSandbox, container: ContainerSpec, script: str) -> str:
    """The output of a script in a container."""
    out, err, code = await execute(sandbox, container.id, "sh", "-c", script)
    assert code == 0, err
    return out.decode()


async def running(env: Environment, pod: PodSpec) -> tuple[VmSandbox, ContainerSpec]:
    """A pod with a container that sleeps."""
    sandbox = await env.run(pod)
    container = container_spec(pod, "sleep", "600")
    await sandbox.create(container)
    await sandbox.start(container.id)
    return sandbox, container


async def test_two_clones_differ_and_know_the_time() -> None:
    async with environment(pool=2) as env:
        pool = env.pool
        await until(lambda: pool.size == 2, 60)
        await asyncio.sleep(1)
        pods = [await running(env, pod_spec()) for _ in range(2)]
        seen = []
        for sandbox, container in pods:
            lines = (await shell(sandbox, container, IDENTITY)).splitlines()
            seen.append(lines)
            before = time.time()
            now = int(await shell(sandbox, container, "date +%s"))
            assert before - 5 < now < time.time() + 5
            order = await shell(sandbox, container, "cat /sys/block/sd*/queue/scheduler")
            assert {line.split()[0] for line in order.splitlines()} == {"[none]"}
        for first, second in zip(*seen, strict=True):
            if not first.startswith("00000010"):
                assert first != second
        assert seen[0][-1] == seen[0][-2]


async def test_the_first_containers_layer_is_ready_and_its_own() -> None:
    async with environment(pool=1) as env:
        await until(lambda: env.pool.size == 1, 60)
        pod = pod_spec()
        sandbox, first = await running(env, pod)
        held = sandbox._containers[first.id].held
        assert held.disks.scratch is not None and held.disks.scratch.id == "ready"
        second = container_spec(pod, "sleep", "600")
        await sandbox.create(second)
        await sandbox.start(second.id)
        for container in (first, second):
            assert (
                await shell(sandbox, container, "ls -A /root; echo own > /root/file; df -P / | wc -l")
                == "2\n"
            )
        await sandbox.signal(first.id, signal.SIGKILL)
        await sandbox.delete(first.id)
        assert not Path(held.scratch).exists()
        assert await shell(sandbox, second, "cat /root/file") == "own\n"
        third = container_spec(pod, "sleep", "600")
        await sandbox.create(third)
        await sandbox.start(third.id)
        assert await shell(sandbox, third, "ls -A /root") == ""


async def test_a_dead_clone_in_the_pool_is_replaced() -> None:
    async with environment(pool=1) as env:
        pool = env.pool
        await until(lambda: pool.size == 1, 60)
        (clone,) = pool._ready
        os.kill(clone.machine.pid, signal.SIGKILL)
        await until(lambda: clone not in pool._ready)
        sandbox, container = await running(env, pod_spec())
        assert (await execute(sandbox, container.id, "true"))[2] == 0
        await until(lambda: pool.size == 1, 60)
        await until(lambda: not clone.directory.exists())


async def test_a_pod_gets_the_size_it_asks_for(caplog: pytest.LogCaptureFixture) -> None:
    async with environment(pool=1) as env:
        pool = env.pool
        await until(lambda: pool.size == 1, 60)
        big = Resources(memory_limit=1024 * MIB, cpu_quota=200_000, cpu_period=100_000)
        sandbox, container = await running(env, pod_spec(resources=big))
        await _until_memory(sandbox, container, 1024)
        assert await shell(sandbox, container, "nproc") == f"{_vcpus(sandbox, 2)}\n"
        _is_told(sandbox, 2, caplog.text)
        bigger = Resources(memory_limit=1536 * MIB, cpu_quota=300_000, cpu_period=100_000)
        await sandbox.resize(Resources(), bigger)
        await _until_memory(sandbox, container, 1536)
        assert await shell(sandbox, container, "nproc") == f"{_vcpus(sandbox, 3)}\n"
        _is_told(sandbox, 3, caplog.text)
        # A limit that the VM can honour ends it.
        await sandbox.resize(Resources(), Resources(memory_limit=1536 * MIB, cpu_quota=100_000))
        assert (sandbox.info["vcpusAsked"], sandbox.info["vcpusShort"]) == (1, "")


async def _until_memory(sandbox: VmSandbox, container: ContainerSpec, mib: int) -> None:
    """The guest takes the last of it into use a little after QEMU has given it."""
    script = "until [ $(awk '/MemTotal/ { print $2 }' /proc/meminfo) -gt %d ]; do sleep 0.1; done"
    async with asyncio.timeout(60 * PATIENCE):
        await shell(sandbox, container, script % (mib << 10))


def _is_told(sandbox: VmSandbox, wanted: int, log: str) -> None:
    """Processors that a pod may use and does not get are in its status and in the log, and no others."""
    short = f"the pod's limit is worth {wanted} processors, and its VM has 1: a VM under emulation"
    has_all = _vcpus(sandbox, wanted) == wanted
    assert sandbox.info["vcpusAsked"] == wanted
    assert str(sandbox.info["vcpusShort"]).startswith(short) is not has_all
    assert (short in log) is not has_all


def _vcpus(sandbox: VmSandbox, wanted: int) -> int:
    """An emulated machine keeps the one processor it started with."""
    return 1 if sandbox.info["accelerator"] == "tcg" else wanted


async def test_a_damaged_template_is_made_again() -> None:
    async with environment() as env:
        (template,) = env.pool._cloner.templates
        state = template.directory / "state"
        with state.open("r+b") as file:
            file.truncate(state.stat().st_size // 2)
        sandbox, container = await running(env, pod_spec())
        assert (await execute(sandbox, container.id, "true"))[2] == 0
