"""What other fronts than CRI ask for, under the handler ``vm``. Needs root."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.hypervisor.qemu.machine import QemuMachine
from orlop.sandbox.spec import ContainerSpec, Mount, PodSpec, Resources, Rlimit, Root, Security, Sink, Tmpfs
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.clock import MILLISECOND, measure
from orlop.sandbox.vm.sandbox import VmSandbox
from orlop.wire.messages import Setup
from tests.conformance.tools import busybox
from tests.e2e.outside import Net, Reader, network, root_directory
from tests.e2e.vm_environment import Environment, container_spec, environment, execute, pod_spec, until
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


async def started(env: Environment, sandbox: VmSandbox, spec: ContainerSpec) -> ContainerSpec:
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


async def fetch(net: Net) -> bytes:
    command = ["curl", "-s", "-m10", "--retry", "20", "--retry-delay", "1", "--retry-connrefused"]
    command.append(f"http://{net.address}:8080/")
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    return done.stdout


async def serves_in(env: Environment, net: Net, pod: PodSpec) -> tuple[VmSandbox, ContainerSpec]:
    sandbox = await env.run(pod)
    assert sandbox.addresses == (net.address,)
    script = "echo page > /tmp/index.html; exec httpd -f -p 8080 -h /tmp"
    spec = await started(env, sandbox, container_spec(pod, "sh", "-c", script))
    assert await fetch(net) == b"page\n"
    return sandbox, spec


@pytest.mark.parametrize("pool", [0, 1])
async def test_a_network_namespace_from_outside_stays(pool: int) -> None:
    with network() as net:
        async with environment(pool=pool) as env:
            if pool:
                await until(lambda: env.pool.size == 1, 120)
            pod = pod_spec(netns=os.fspath(net.path))
            _sandbox, spec = await serves_in(env, net, pod)
            # Another VM in the same namespace would take its frames.
            with pytest.raises(FailedPrecondition, match=r"tap0|elsewhere"):
                await env.driver.run(pod_spec(netns=os.fspath(net.path)))
            assert await fetch(net) == b"page\n"
            await env.crash()
            await env.again()
            sandbox = await env.recover(pod, spec)
            assert sandbox.addresses == (net.address,) and await fetch(net) == b"page\n"
            await env.driver.discard(pod.id)
            # Interface, address and route are as they were, and the namespace's own stack hears again.
            assert "tap" not in net.inside("ip", "-o", "link")
            net.inside(os.fspath(busybox()), "ping", "-c1", "-W5", net.gateway)
            assert net.address in net.inside("ip", "-o", "addr", "show", "eth0")
            # And it serves the next pod.
            pod = pod_spec(netns=os.fspath(net.path))
            await serves_in(env, net, pod)
            os.kill(env.sandboxes[-1]._clone.machine.pid, 9)
            await env.sandboxes[-1].wait()
            await env.driver.discard(pod.id)
            net.inside(os.fspath(busybox()), "ping", "-c1", "-W5", net.gateway)


async def test_what_is_no_network_for_a_vm(tmp_path: Path) -> None:
    with network() as net:
        async with environment() as env:
            for path, error in (("/proc/self/ns/uts", InvalidArgument), (str(tmp_path / "none"), NotFound)):
                with pytest.raises(error, match=Path(path).name):
                    await env.driver.run(pod_spec(netns=path))
            net.inside("ip", "link", "add", "more", "type", "bridge")
            net.inside("ip", "link", "set", "more", "up")
            with pytest.raises(FailedPrecondition, match="eth0, more, and a VM has one"):
                await env.driver.run(pod_spec(netns=os.fspath(net.path)))
            net.inside("ip", "link", "delete", "more")
            net.inside("tc", "qdisc", "add", "dev", "eth0", "ingress")
            with pytest.raises(FailedPrecondition, match="goes elsewhere"):
                await env.driver.run(pod_spec(netns=os.fspath(net.path)))
            assert "ingress" in net.inside("tc", "qdisc", "show", "dev", "eth0")
            net.inside("tc", "qdisc", "delete", "dev", "eth0", "ingress")
            net.inside("ip", "link", "delete", "eth0")
            sandbox = await env.run(pod_spec(netns=os.fspath(net.path)))
            assert sandbox.addresses == ()
            assert await env.driver.traces() == [sandbox.pod_id]


async def test_a_directory_is_the_root_and_stays(tmp_path: Path) -> None:
    place = root_directory(tmp_path / "tree", busybox())
    (tmp_path / "link").symlink_to(place)
    root = Root(directory=os.fspath(tmp_path / "link"))
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        spec = await started(env, sandbox, container_spec(pod, "sleep", "600", root=root))
        script = "echo kept > /data/file; mkdir /data/sub; ln -s file /data/sub/link; mount | grep ' / '"
        out, err, code = await execute(sandbox, spec.id, "sh", "-c", script)
        assert code == 0 and b"9p" in out, err
        assert (place / "data/file").read_text() == "kept\n" and (place / "data/sub/link").is_symlink()
        (place / "data/from-host").write_text("seen")
        assert (await execute(sandbox, spec.id, "cat", "/data/from-host"))[0] == b"seen"
        before = sorted(path.relative_to(place) for path in place.rglob("*"))
        security = Security(read_only_root=True, user="web")
        fixed = container_spec(pod, "sleep", "600", root=root, security=security)
        await started(env, sandbox, fixed)
        out, err, code = await execute(
            sandbox, fixed.id, "sh", "-c", "id -u; cat /data/file /etc/hostname; echo x > /data/other"
        )
        assert out.split()[:2] == [b"1000", b"kept"] and code != 0 and b"Read-only" in err
        assert sorted(path.relative_to(place) for path in place.rglob("*")) == before
        await env.crash()
        await env.again()
        sandbox = await env.recover(pod, spec, fixed)
        assert (await execute(sandbox, spec.id, "cat", "/data/file"))[0] == b"kept\n"
        stats = await sandbox.stats()
        assert {one.container_id for one in stats.containers} == {spec.id, fixed.id}
        await sandbox.delete(fixed.id)
        await sandbox.delete(spec.id)
        for bad, error in (
            (Root(directory=os.fspath(tmp_path / "none")), NotFound),
            (Root(directory=os.fspath(place / "data/file")), FailedPrecondition),
            (Root(directory="/"), InvalidArgument),
        ):
            with pytest.raises(error):
                await sandbox.create(container_spec(pod, "true", root=bad))
        await env.driver.discard(pod.id)
    assert sorted(path.relative_to(place) for path in place.rglob("*")) == before


async def test_output_goes_to_a_pipe_and_a_file_over_crashes(tmp_path: Path) -> None:
    reader = Reader(tmp_path / "out")
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        script = (
            "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; echo e$i >&2; sleep 0.005; done; printf end"
        )
        sink = Sink(stdout=reader.path, stderr=os.fspath(tmp_path / "err"))
        spec = await started(env, sandbox, container_spec(pod, "sh", "-c", script, sink=sink))
        attached = await sandbox.attach(spec.id, stdin=False)
        await until(lambda: reader.data.count(b"\n") > 10)
        await attached.close()
        for _ in range(2):
            seen = len(reader.data)
            await env.crash()
            await asyncio.sleep(0.3)
            await env.again()
            sandbox = await env.recover(pod, spec)
            await until(lambda seen=seen: len(reader.data) > seen or reader.data.endswith(b"end"))  # type: ignore[misc]
        assert (await asyncio.wait_for(sandbox.wait_container(spec.id), 60 * PATIENCE)).code == 0
        # The file can be asked what is in it; the pipe cannot, and may get a moment's bytes again.
        assert (tmp_path / "err").read_bytes() == b"".join(b"e%d\n" % i for i in range(1, 301))
        data = reader.close()
        assert data.endswith(b"end") and {int(x) for x in data.split() if x.isdigit()} >= set(range(1, 301))


async def test_a_full_pipe_holds_up_its_container_alone(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        flood = container_spec(
            pod, "sh", "-c", "yes | head -c 3000000", sink=Sink(stdout=os.fspath(tmp_path / "fifo"))
        )
        await started(env, sandbox, flood)
        other = await started(env, sandbox, container_spec(pod, "sleep", "600"))
        assert (await execute(sandbox, other.id, "echo", "fine"))[0] == b"fine\n"
        reading = os.open(tmp_path / "fifo", os.O_RDONLY)
        size = 0
        while size < 3_000_000:
            size += len(await asyncio.to_thread(os.read, reading, 1 << 16))
        assert size == 3_000_000
        assert (await asyncio.wait_for(sandbox.wait_container(flood.id), 60 * PATIENCE)).code == 0
        os.close(reading)
        with pytest.raises(FailedPrecondition, match="stdout cannot go to"):
            await sandbox.create(container_spec(pod, "true", sink=Sink(stdout=os.fspath(tmp_path))))


async def test_servers_find_the_limits_that_they_expect() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        spec = await started(env, sandbox, container_spec(pod, "sleep", "600", security=Security(user="web")))
        out, err, _ = await execute(sandbox, spec.id, "cat", "/proc/self/limits")
        limits = {line[:25].strip(): line[25:].split()[:2] for line in out.decode().splitlines()}
        assert limits["Max open files"] == ["1048576", "1048576"], err
        assert limits["Max processes"] == limits["Max core file size"] == ["unlimited", "unlimited"]
        names = ("kernel/pid_max", "kernel/threads-max", "fs/inotify/max_user_instances", "vm/max_map_count")
        out, _, _ = await execute(sandbox, spec.id, "cat", *(f"/proc/sys/{name}" for name in names))
        assert [int(one) for one in out.split()] == [1 << 22, 1 << 22, 8192, 1 << 20]


async def test_a_container_that_takes_too_much_is_killed_and_not_its_neighbour() -> None:
    async with environment() as env:
        limit = 400 << 20
        pod = pod_spec(resources=Resources(memory_limit=limit))
        sandbox = await env.run(pod)
        script = "mkfifo /tmp/f; sleep 6000 < /tmp/f & exec dd if=/dev/zero bs=300M of=/tmp/f"
        neighbour = container_spec(pod, "sh", "-c", script, resources=Resources(memory_limit=limit))
        await started(env, sandbox, neighbour)
        greedy = await started(env, sandbox, container_spec(pod, "tail", "/dev/zero"))
        ended = asyncio.create_task(sandbox.wait_container(greedy.id))
        while not ended.done():
            # The agent answers all the time: a container short of memory keeps nobody else waiting.
            async with asyncio.timeout(20 * PATIENCE):
                assert (await execute(sandbox, neighbour.id, "true"))[2] == 0
        status = await ended
        assert status.oom_killed and status.code == 137
        assert not sandbox._containers[neighbour.id].exited.done()
        # Two without a limit share what is there, and find room for both.
        before = sandbox._clone.machine.shape.memory_mib
        for _ in range(2):
            await started(env, sandbox, container_spec(pod, "sleep", "600"))
        assert sandbox._clone.machine.shape.memory_mib > before


async def test_clocks_agree_after_late_starts_and_a_stop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = AgentClient.call

    async def late(self: AgentClient, request: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(request, Setup):
            await asyncio.sleep(1)  # as on a busy host, between the time's being read and its being heard
        return await call(self, request, *args, **kwargs)

    monkeypatch.setattr(AgentClient, "call", late)
    async with environment() as env:
        pods = [pod_spec() for _ in range(4)]
        sandboxes = await asyncio.gather(*(env.run(pod) for pod in pods))
        specs = [container_spec(pod, "sleep", "600") for pod in pods]
        for sandbox, spec in zip(sandboxes, specs, strict=True):
            await sandbox.create(spec)
        # What the answers' lateness leaves open is nobody's fault; what is certain is the clock's.
        ahead = [await measure(sandbox._agent) for sandbox in sandboxes]
        assert [one for one in ahead if abs(one.certain) > 100 * MILLISECOND] == []
        machine = sandboxes[0]._clone.machine
        assert isinstance(machine, QemuMachine)
        going_on = asyncio.create_task(machine.resumed())
        await machine.monitor.execute("stop")
        await asyncio.sleep(2)
        assert not going_on.done()
        await machine.monitor.execute("cont")
        await asyncio.wait_for(going_on, 30 * PATIENCE)
        async with asyncio.timeout(30 * PATIENCE):
            while abs((await measure(sandboxes[0]._agent)).certain) > 100 * MILLISECOND:  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_limits_and_memory_as_a_volume() -> None:
    async with environment() as env:
        pod = pod_spec()
        sandbox = await env.run(pod)
        spec = container_spec(
            pod,
            "sleep",
            "600",
            rlimits=(Rlimit(name="NOFILE", soft=100, hard=200), Rlimit(name="CORE", soft=0, hard=-1)),
            mounts=(
                Mount(container_path="/scratch", tmpfs=Tmpfs(size=1 << 20, mode=0o700)),
                Mount(container_path="/fixed", tmpfs=Tmpfs(), read_only=True),
            ),
        )
        await started(env, sandbox, spec)
        script = "ulimit -Sn; ulimit -Hn; ulimit -Hc; stat -c %a /scratch; touch /fixed/x || echo no"
        out, _, _ = await execute(sandbox, spec.id, "sh", "-c", script)
        assert out.split() == [b"100", b"200", b"unlimited", b"700", b"no"]
        out, err, code = await execute(
            sandbox, spec.id, "sh", "-c", "dd if=/dev/zero of=/scratch/x bs=1M count=2"
        )
        assert code != 0 and b"No space" in err
        with pytest.raises(InvalidArgument):
            limits = (Rlimit(name="NOTHING", soft=1, hard=1),)
            await sandbox.create(container_spec(pod, "true", rlimits=limits))
