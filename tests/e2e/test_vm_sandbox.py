"""A container in a virtual machine, from nothing to nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest

from orlop.errors import InvalidArgument
from orlop.host import mounts, process
from orlop.sandbox.figures import Detail
from orlop.sandbox.spec import ExecSpec, IdMapping, Mount, NamespaceMode, Namespaces, Propagation, Security
from tests.e2e.vm_environment import (
    Environment,
    collected,
    container_spec,
    environment,
    execute,
    pod_spec,
    until,
)
from tests.patience import PATIENCE


async def test_a_pod_from_nothing_to_nothing() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        assert sandbox.addresses[0].startswith("10.214.")
        container = container_spec(
            pod,
            "sh",
            "-c",
            "trap 'exit 5' TERM; echo out; echo err >&2; sleep 1000 & wait",
            log_path=env.log_path(),
        )
        await sandbox.create(container)
        started = await sandbox.start(container.id)
        assert abs(started - time.time_ns()) < 60_000_000_000
        await until(lambda: len(env.log_of(container)) == 2)
        assert sorted(env.log_of(container)) == ["stderr F err", "stdout F out"]
        assert await execute(sandbox, container.id, "sh", "-c", "echo a; echo b >&2; exit 3") == (
            b"a\n",
            b"b\n",
            3,
        )
        process = await sandbox.exec(container.id, ExecSpec(args=("cat",), stdin=True))
        await process.write(b"through the guest\n")
        await process.close_stdin()
        assert await collected(process) == (b"through the guest\n", b"", 0)
        with pytest.raises(InvalidArgument):
            await sandbox.exec(container.id, ExecSpec(args=("/no/such/program",)))
        await sandbox.signal(container.id, 15)
        status = await asyncio.wait_for(sandbox.wait_container(container.id), 60 * PATIENCE)
        assert status.code == 5
        await sandbox.delete(container.id)
        await sandbox.stop()
        assert await sandbox.wait() == ""
        await env.driver.discard(pod.id)


async def test_volumes_and_exit_codes(tmp_path: object) -> None:
    async with environment() as env:
        await _volumes(env)


async def _volumes(env: Environment) -> None:
    volume = env.scratch / "volume"
    volume.mkdir()
    (volume / "in").write_text("from the host")
    pod = pod_spec()
    sandbox = await env.run(pod)
    container = container_spec(
        pod,
        "sh",
        "-c",
        "cat /data/in; echo; cat /ro/in; echo; echo new > /data/out; echo x > /ro/no; exit 7",
        mounts=(
            Mount(container_path="/data", host_path=str(volume)),
            Mount(container_path="/ro", host_path=str(volume), read_only=True),
        ),
        log_path=env.log_path(),
    )
    await sandbox.create(container)
    await sandbox.start(container.id)
    status = await asyncio.wait_for(sandbox.wait_container(container.id), 60 * PATIENCE)
    assert status.code == 7
    assert (volume / "out").read_text() == "new\n"
    assert not (volume / "no").exists()
    assert [line for line in env.log_of(container) if "host" in line] == ["stdout F from the host"] * 2
    await sandbox.delete(container.id)
    await sandbox.delete(container.id)


async def test_what_one_side_writes_to_a_file_the_other_reads() -> None:
    async with environment() as env:
        volume = env.scratch / "volume"
        volume.mkdir()
        file = volume / "file"
        file.write_text("")
        pod = pod_spec()
        sandbox = await env.run(pod)
        container = container_spec(
            pod,
            "sh",
            "-c",
            # Both files stay open, and the one that is a volume by itself is mounted all the time.
            "exec 3</data/file 4>/data/out; echo line >&4; echo written; exec sleep 600",
            mounts=(
                Mount(container_path="/data", host_path=str(volume)),
                Mount(container_path="/file", host_path=str(file)),
            ),
            log_path=env.log_path(),
        )
        await sandbox.create(container)
        await sandbox.start(container.id)
        await until(lambda: env.log_of(container) == ["stdout F written"])
        assert (volume / "out").read_text() == "line\n"
        for text in ("first\n", "first\nand more\n", "other\nand more\n", "less\n"):
            file.write_text(text)
            script = "cat /file; cat /data/file"
            read = await execute(sandbox, container.id, "sh", "-c", script)
            assert read == (2 * text.encode(), b"", 0)


async def test_a_pod_in_a_user_namespace_owns_its_volumes() -> None:
    async with environment() as env:
        volume = env.scratch / "volume"
        volume.mkdir()
        (volume / "in").write_text("from the host")
        maps = (IdMapping(container_id=0, host_id=65536, length=65536),)
        own = Namespaces(user=NamespaceMode.POD, uid_mappings=maps, gid_mappings=maps)
        pod = pod_spec(namespaces=own)
        sandbox = await env.run(pod)
        script = (
            "set -e; grep 65536 /proc/self/uid_map; stat -c %u /data/in /bin/busybox; echo new > /data/out; "
            "chown 7 /data/out"
        )
        container = container_spec(
            pod,
            "sh",
            "-c",
            script,
            namespaces=own,
            mounts=(
                Mount(container_path="/data", host_path=str(volume), uid_mappings=maps, gid_mappings=maps),
            ),
            security=Security(capabilities=("CHOWN", "DAC_OVERRIDE", "FOWNER")),
            log_path=env.log_path(),
        )
        await sandbox.create(container)
        await sandbox.start(container.id)
        status = await asyncio.wait_for(sandbox.wait_container(container.id), 60 * PATIENCE)
        assert status.code == 0, env.log_of(container)
        assert env.log_of(container)[1:] == ["stdout F 0", "stdout F 0"]
        assert (volume / "out").stat().st_uid == 7


async def test_what_is_mounted_below_a_volume_later_is_seen_with_its_owners() -> None:
    async with environment() as env:
        volume = env.scratch / "volume"
        (volume / "later").mkdir(parents=True)
        mounts.bind(volume, volume)
        await process.run(["mount", "--make-rshared", volume])
        pod = pod_spec()
        sandbox = await env.run(pod)
        follows = Mount(
            container_path="/data", host_path=str(volume), propagation=Propagation.HOST_TO_CONTAINER
        )
        container = container_spec(pod, "sleep", "1000", mounts=(follows,))
        await sandbox.create(container)
        await sandbox.start(container.id)
        # Root's alone: whoever is nobody there sees nothing.
        mounts.mount("tmpfs", volume / "later", "tmpfs", options="mode=0700")
        (volume / "later/x").touch()
        seen = (
            "sh",
            "-c",
            "until ls /data/later/*; do :; done; stat -c %u /data/later; echo y >/data/later/y",
        )
        out, _, code = await execute(sandbox, container.id, *seen)
        assert (out, code) == (b"/data/later/x\n0\n", 0)
        assert (volume / "later/y").stat().st_uid == 0
        mounts.unmount(volume / "later")
        assert (await execute(sandbox, container.id, "ls", "/data/later"))[0] == b""

        # A later daemon goes on with it.
        await env.crash()
        await env.again()
        sandbox = await env.recover(pod, container)
        mounts.mount("tmpfs", volume / "later", "tmpfs", options="mode=0700")
        (volume / "later/z").touch()
        assert (await execute(sandbox, container.id, *seen))[0] == b"/data/later/z\n0\n"
        mounts.unmount_below(volume)


async def test_the_host_tells_what_a_pod_uses() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        script = "head -c 40000000 /dev/zero > /file; sync; exec sleep 1000"
        container = container_spec(pod, "sh", "-c", script)
        await sandbox.create(container)
        await sandbox.start(container.id)
        file = Path(sandbox._containers[container.id].held.scratch)
        await until(lambda: file.stat().st_blocks * 512 > 38 << 20, 60)
        async with asyncio.timeout(60 * PATIENCE):
            while True:
                # What the guest wrote may still be on its way to the disk: the file only grows.
                written = file.stat().st_blocks * 512
                before = await sandbox.stats(Detail.METRICS)
                # What synced the file may not be gone yet.
                if [one.usage.processes for one in before.containers] == [1]:
                    break
        (one,) = before.containers
        assert one.layer.used >= written > 38 << 20
        assert one.layer.mountpoint == str(file.parent.parent)
        machine = await sandbox._clone.machine.memory()
        assert before.usage.memory >= 0.8 * machine.pss > 30 << 20
        assert 0 < one.usage.cpu_ns <= before.usage.cpu_ns
        assert 0 < one.usage.memory <= before.usage.memory
        assert one.usage.processes == 1
        assert one.usage.descriptors >= 3
        assert before.available is not None
        assert before.available < 512 << 20

        # A guest that does not answer costs a moment, not a call's half minute, and hides nothing.
        os.kill(sandbox._clone.machine.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            silent = await sandbox.stats(Detail.METRICS)
            assert time.monotonic() - begun < 20
        finally:
            os.kill(sandbox._clone.machine.pid, signal.SIGCONT)
        assert silent.usage.memory >= 0.8 * machine.pss
        assert silent.usage.timestamp > before.usage.timestamp
        assert [entry.container_id for entry in silent.containers] == [container.id]


async def test_an_exit_has_the_hosts_time() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        script = "date -s @1000000000; sleep 1; exit 3"
        container = container_spec(pod, "sh", "-c", script, security=Security(privileged=True))
        await sandbox.create(container)
        begun = await sandbox.start(container.id)
        status = await asyncio.wait_for(sandbox.wait_container(container.id), 60 * PATIENCE)
        assert status.code == 3
        assert begun < status.finished_at <= time.time_ns()
        # Also when nobody listened as it ended.
        volume = env.scratch / "volume"
        volume.mkdir()
        told = Mount(container_path="/told", host_path=str(volume))
        late = container_spec(pod, "sh", "-c", "sleep 1; touch /told/end", mounts=(told,))
        await sandbox.create(late)
        begun = await sandbox.start(late.id)
        await env.crash()
        await until((volume / "end").exists)
        await asyncio.sleep(4)
        await env.again()
        sandbox = await env.recover(pod, late)
        status = await asyncio.wait_for(sandbox.wait_container(late.id), 60 * PATIENCE)
        assert begun < status.finished_at < time.time_ns() - 2 * 10**9
