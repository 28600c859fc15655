"""A daemon that dies and comes back finds its VMs, loses no line of a log and no exit code."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from orlop.errors import NotFound, Unavailable
from orlop.hypervisor.base import GuestFiles, Hypervisor
from orlop.sandbox.spec import ContainerSpec, ExecSpec
from orlop.sandbox.vm import driver as drivers
from tests.e2e.vm_environment import (
    Environment,
    container_spec,
    environment,
    execute,
    pod_spec,
    until,
)
from tests.patience import PATIENCE

COUNT = "i=0; until [ -e /end ]; do i=$((i+1)); echo line $i; echo err $i >&2; sleep 0.005; done; "


def numbers(lines: list[str], stream: str) -> list[int]:
    """The numbers that were logged for a stream, in order."""
    return [int(line.split()[-1]) for line in lines if line.startswith(stream)]


async def _progress(env: Environment, container: ContainerSpec) -> None:
    seen = len(env.log_of(container))
    await until(lambda: len(env.log_of(container)) > seen)


async def test_no_line_is_lost_or_doubled_over_crashes() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        script = COUNT + "printf unfinished; exit 9"
        container = container_spec(pod, "sh", "-c", script, log_path=env.log_path())
        await sandbox.create(container)
        await sandbox.start(container.id)
        for _ in range(3):
            await _progress(env, container)
            await env.crash()
            await asyncio.sleep(0.3)
            await env.again()
            sandbox = await env.recover(pod, container)
        await _progress(env, container)
        assert (await execute(sandbox, container.id, "touch", "/end"))[2] == 0
        status = await asyncio.wait_for(sandbox.wait_container(container.id), 60 * PATIENCE)
        assert status.code == 9
        lines = env.log_of(container)
        assert lines.count("stdout P unfinished") == 1
        lines.remove("stdout P unfinished")
        counted = numbers(lines, "stdout")
        assert counted == numbers(lines, "stderr") == list(range(1, len(counted) + 1))


async def test_what_happens_while_no_daemon_runs_is_known_afterwards() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        short = container_spec(pod, "sh", "-c", "sleep 1; echo bye; exit 3", log_path=env.log_path())
        long = container_spec(
            pod, "sh", "-c", "while read line; do echo got $line; done", stdin=True, log_path=env.log_path()
        )
        for container in (short, long):
            await sandbox.create(container)
            await sandbox.start(container.id)
        attached = await sandbox.attach(long.id, stdin=True)
        await attached.write(b"one\n")
        await until(lambda: "stdout F got one" in env.log_of(long))
        process = await sandbox.exec(long.id, ExecSpec(args=("sleep", "600")))
        await process.close_stdin()
        await env.crash()
        await asyncio.sleep(2.5)
        await env.again()
        sandbox = await env.recover(pod, short, long)
        status = await asyncio.wait_for(sandbox.wait_container(short.id), 60 * PATIENCE)
        assert status.code == 3
        assert env.log_of(short) == ["stdout F bye"]
        attached = await sandbox.attach(long.id, stdin=True)
        await attached.write(b"two\n")
        await until(lambda: env.log_of(long) == ["stdout F got one", "stdout F got two"])
        out, _, _ = await execute(sandbox, long.id, "ps")
        assert b"sleep 600" not in out  # the exec that nobody waits for any more is gone
        with pytest.raises(NotFound):
            await sandbox.wait_container("another")
        await sandbox.delete(short.id)
        await sandbox.delete(long.id)


async def test_a_guest_image_that_comes_later_serves_pods_found_before_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(drivers, "_LOOK_AGAIN", 0.1)
    async with environment(pool=1) as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        known = container_spec(pod, "sleep", "600")
        await sandbox.create(known)
        await sandbox.start(known.id)
        await env.crash()
        missing = True

        async def source() -> tuple[Hypervisor, GuestFiles]:
            if missing:
                raise NotFound("there is no guest image")
            return await env.source()

        await env.again(source)
        assert await env.driver.ready() == "there is no guest image"
        sandbox = await env.recover(pod, known)
        with pytest.raises(Unavailable, match="there is no guest image"):
            await env.driver.run(pod_spec())
        seen = set()
        # The pool gives way to a pod that was found before there was a pool.
        async with sandbox._gate.place(1):
            missing = False
            async with asyncio.timeout(60 * PATIENCE):
                while reason := await env.driver.ready():
                    seen.add(reason)
                    await asyncio.sleep(0.01)
            await asyncio.sleep(3)
            assert env.pool.size == 0
        assert not [reason for reason in seen if "made" in reason]
        await until(lambda: env.pool.size == 1, 60)
        more = container_spec(pod, "sleep", "600")
        await sandbox.create(more)
        assert (await execute(sandbox, known.id, "true"))[2] == 0


async def test_a_container_nobody_remembers_is_removed() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        known, forgotten = (container_spec(pod, "sleep", "600") for _ in range(2))
        for container in (known, forgotten):
            await sandbox.create(container)
            await sandbox.start(container.id)
        await env.crash()
        await env.again()
        sandbox = await env.recover(pod, known)
        assert len((await sandbox.stats()).containers) == 1
        assert (await execute(sandbox, known.id, "true"))[2] == 0
        lost = container_spec(pod, "true")
        with pytest.raises(NotFound):
            await sandbox.signal(lost.id, 15)


async def test_a_vm_that_died_meanwhile_is_not_found() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        pid = sandbox._clone.machine.pid
        await env.crash()
        os.kill(pid, signal.SIGKILL)
        await env.again()
        with pytest.raises(NotFound):
            await env.driver.recover(pod, ())
        await env.driver.discard(pod.id)
        assert await env.driver.traces() == []


async def test_a_vm_that_dies_ends_its_containers_with_the_reason() -> None:
    async with environment() as env:
        await _killed(env)


async def _killed(env: Environment) -> None:
    pod = pod_spec()
    sandbox = await env.run(pod)
    container = container_spec(pod, "sh", "-c", "echo up; sleep 600", log_path=env.log_path())
    await sandbox.create(container)
    await sandbox.start(container.id)
    await until(lambda: env.log_of(container) == ["stdout F up"])
    process = await sandbox.exec(container.id, ExecSpec(args=("sleep", "600")))
    os.kill(sandbox._clone.machine.pid, signal.SIGKILL)
    reason = await asyncio.wait_for(sandbox.wait(), 60 * PATIENCE)
    assert "signal" in reason or "kill" in reason.lower()
    status = await sandbox.wait_container(container.id)
    assert (status.code, status.message) == (137, reason)
    assert (await process.wait()).code == 137
    await process.close()
    await sandbox.delete(container.id)
    await sandbox.stop()
