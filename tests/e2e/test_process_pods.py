"""The handler ``process``: real containers with a real runtime, conmon and CNI. Needs root."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.config import ProcessConfig
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from orlop.host import cgroups, process
from orlop.host.cgroups import Cgroup
from orlop.sandbox.figures import Detail
from orlop.sandbox.process import layout
from orlop.sandbox.spec import ExecSpec, IdMapping, Mount, NamespaceMode, Namespaces, Resources
from orlop.value import Value
from tests.e2e.process_pods import SUBNET, Bed, bed, crun_anywhere, make_layer, read, run, until
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layer(tmp_path_factory.mktemp("image"))


@pytest.fixture(params=["runc", "crun"])
async def host(tmp_path: Path, layer: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    runtime = "runc" if request.param == "runc" else crun_anywhere(tmp_path)
    async with bed(tmp_path, layer, process=ProcessConfig(runtime=runtime)) as found:
        yield found


async def test_life_of_a_pod(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    assert sandbox.addresses[0].startswith(SUBNET.removesuffix("0/24"))
    spec = host.container(pod, "sh", "-c", "echo out; echo err >&2; sleep 1000")
    await sandbox.create(spec)
    before = time.time_ns()
    started = await sandbox.start(spec.id)
    assert before - 10**9 < started < time.time_ns() + 10**9
    stdout, _, code = await run(sandbox, spec.id, "sh", "-c", "hostname; cat /etc/hosts; exit 7")
    assert code == 7
    assert stdout.startswith(b"web\n")
    assert f"{sandbox.addresses[0]}\tweb".encode() in stdout
    with pytest.raises(FailedPrecondition):
        await sandbox.start(spec.id)
    await until(lambda: Path(spec.sink.log).read_text().count("\n") == 2)
    await sandbox.signal(spec.id, signal.SIGKILL)
    status = await sandbox.wait_container(spec.id)
    assert status.code == 137
    assert not status.oom_killed
    assert await sandbox.wait_container(spec.id) == status
    log = Path(spec.sink.log).read_text().splitlines()
    assert {re.sub(r"^\S+ ", "", line) for line in log} == {"stdout F out", "stderr F err"}
    await sandbox.delete(spec.id)
    await sandbox.delete(spec.id)
    waiting = asyncio.ensure_future(sandbox.wait())
    await sandbox.stop()
    await sandbox.stop()
    assert await waiting == ""
    await host.driver.discard(pod.id)
    await host.driver.discard(pod.id)
    assert await host.driver.traces() == []


async def test_exit_codes_and_what_cannot_be_run(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod, "sh", "-c", "exit 42")
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    assert (await sandbox.wait_container(spec.id)).code == 42
    with pytest.raises(FailedPrecondition, match="does not run"):
        await sandbox.exec(spec.id, ExecSpec(args=("true",)))
    absent = host.container(pod, "no-such-program")
    with pytest.raises(InvalidArgument, match="no-such-program"):
        await sandbox.create(absent)
    await sandbox.delete(absent.id)
    await sandbox.stop()


async def test_exec_streams_and_terminal(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    cat = await sandbox.exec(spec.id, ExecSpec(args=("cat",), stdin=True))
    payload = os.urandom(1 << 20)

    async def feed() -> None:
        await cat.write(payload)
        await cat.close_stdin()

    feeding = asyncio.ensure_future(feed())
    stdout, _, status = await read(cat)
    await feeding
    assert (stdout == payload, status.code) == (True, 0)
    shell = await sandbox.exec(spec.id, ExecSpec(args=("sh",), tty=True, stdin=True))
    await shell.resize(91, 33)
    # The size comes on another way than what is typed.
    await shell.write(b"until stty size | grep '33 [9]1'; do sleep 0.1; done; echo term=$TERM; exit 5\n")
    stdout, _, status = await read(shell)
    assert b"33 91" in stdout and b"term=xterm" in stdout
    assert status.code == 5
    at_once = ExecSpec(args=("stty", "size"), tty=True, width=132, height=43)
    # crun 1.8 loses what a program says that ends at once.
    for _ in range(5 if host.config.process.runtime == "runc" else 0):
        assert b"43 132" in (await read(await sandbox.exec(spec.id, at_once)))[0]
    with pytest.raises(InvalidArgument, match="no-such"):
        await run(sandbox, spec.id, "no-such-program")
    lingering = await sandbox.exec(spec.id, ExecSpec(args=("sleep", "999")))

    async def lingers() -> bool:
        return b"sleep 999" in (await run(sandbox, spec.id, "ps"))[0]

    async def gone() -> bool:
        return not await lingers()

    await until(lingers)
    await lingering.close()
    await lingering.close()
    await until(gone)
    await sandbox.stop()


async def test_attach_and_stdin_once(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod, "sh", "-c", "cat; echo end", stdin=True, stdin_once=True)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    client = await sandbox.attach(spec.id, stdin=True)
    await client.write(b"hello\n")
    await client.close_stdin()
    stdout, _, status = await read(client)
    assert (stdout, status.code) == (b"hello\nend\n", 0)
    await sandbox.stop()


async def test_log_is_opened_again(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod, "sh", "-c", "i=0; while :; do i=$((i+1)); echo line $i; sleep 0.02; done")
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    log = Path(spec.sink.log)
    await until(lambda: log.exists() and log.stat().st_size > 0)
    log.rename(log.with_suffix(".old"))
    await sandbox.reopen_log(spec.id)
    await until(lambda: log.exists() and log.stat().st_size > 0)
    await sandbox.stop()
    numbers = [
        int(found)
        for found in re.findall(r"line (\d+)", log.with_suffix(".old").read_text() + log.read_text())
    ]
    assert numbers == list(range(1, len(numbers) + 1))


async def test_out_of_memory_is_said(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod, "tail", "/dev/zero", resources=Resources(memory_limit=16 << 20))
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    status = await sandbox.wait_container(spec.id)
    assert (status.code, status.oom_killed) == (137, True)
    await sandbox.stop()


async def test_limits_change_and_are_counted(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    script = "dd if=/dev/zero of=/data/x bs=1M count=3; exec sleep 1000"
    spec = host.container(pod, "sh", "-c", script)
    await sandbox.create(spec)
    await sandbox.start(spec.id)

    async def written() -> bool:
        (found,) = (await sandbox.stats(Detail.METRICS)).containers
        return found.layer.used >= 3 << 20 and found.usage.processes == found.usage.pids == 1

    await until(written)
    await sandbox.update(spec.id, Resources(memory_limit=64 << 20, cpu_shares=512))
    whole = await sandbox.stats(Detail.METRICS)
    (stats,) = whole.containers
    assert stats.container_id == spec.id
    assert 0 < stats.usage.working_set < stats.usage.memory_limit == 64 << 20
    assert 0 < stats.usage.cpu_ns <= whole.usage.cpu_ns
    assert stats.usage.processes == stats.usage.pids == 1
    assert stats.usage.descriptors >= 3
    assert stats.layer.used >= 3 << 20
    assert whole.available is not None
    assert whole.available > 32 << 20
    assert whole.interfaces[0].name == "eth0"
    await sandbox.stop()


@pytest.mark.parametrize("shared", [True, False])
async def test_a_pods_time_never_falls(host: Bed, shared: bool) -> None:
    parent = f"/orlop-test-{host.logs.parent.name}"
    pod = host.pod(cgroup_parent=parent if shared else "")
    sandbox = await host.driver.run(pod)
    # Until it has used a fifth of a second, on whatever machine: its 14th figure, in hundredths.
    count = "i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done"
    script = f"until set -- $(cat /proc/$$/stat); [ ${{14}} -ge 20 ]; do {count}; done"
    burner = host.container(pod, "sh", "-c", script)
    idle = host.container(pod)
    try:
        for spec in (burner, idle):
            await sandbox.create(spec)
            await sandbox.start(spec.id)
        await sandbox.wait_container(burner.id)
        before = (await sandbox.stats()).usage.cpu_ns
        assert before > 100_000_000
        await sandbox.delete(burner.id)
        assert (await sandbox.stats()).usage.cpu_ns >= before
        await host.driver.close()
        later = type(host.driver)(host.config, host.network)
        await later.open()
        found = await later.recover(pod, (idle,))
        assert (await found.stats()).usage.cpu_ns >= before
        await found.delete(idle.id)
        assert (await found.stats()).usage.cpu_ns >= before
        await later.discard(pod.id)
        await later.close()
        assert not Cgroup(f"{parent}/orlop-{pod.id[:32]}").exists()
    finally:
        await cgroups.destroy(Cgroup(parent))


async def test_port_is_reached_through_loopback(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod, "sh", "-c", "echo pong | nc -l -p 8080 -s 127.0.0.1; sleep 1000")
    await sandbox.create(spec)
    await sandbox.start(spec.id)

    async def listens() -> bool:
        return b":8080 " in (await run(sandbox, spec.id, "netstat", "-ltn"))[0]

    await until(listens)
    connection = await sandbox.connect(8080)
    assert await connection.read(100) == b"pong\n"
    await connection.close()
    with pytest.raises(FailedPrecondition, match="8081"):
        await sandbox.connect(8081)
    await sandbox.stop()


async def test_a_later_daemon_finds_everything(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    running = host.container(pod)
    ended = host.container(pod, "sh", "-c", "sleep 0.5; exit 9")
    created = host.container(pod)
    for spec in (running, ended, created):
        await sandbox.create(spec)
    await sandbox.start(running.id)
    await sandbox.start(ended.id)
    await host.driver.close()
    await asyncio.sleep(1)
    later = type(host.driver)(host.config, host.network)
    await later.open()
    found = await later.recover(pod, (running, ended, created))
    assert found.addresses == sandbox.addresses
    assert (await found.wait_container(ended.id)).code == 9
    assert (await run(found, running.id, "echo", "here"))[0] == b"here\n"
    await found.start(created.id)
    await found.stop()
    assert (await found.wait_container(running.id)).code == 137
    await later.discard(pod.id)
    with pytest.raises(NotFound):
        await later.recover(pod, ())
    await later.close()


@pytest.mark.parametrize("unlinked", [False, True])
async def test_a_start_that_a_killed_daemon_did_not_write_down(host: Bed, unlinked: bool) -> None:
    """The container runs; a later daemon is asked to start it, and must not wait for what has been."""
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod)
    await sandbox.create(spec)
    runtime = sandbox._tools.runtime
    if runtime.name == "runc":
        fifo = runtime.state / spec.id / "exec.fifo"
        with fifo.open("rb") as reading:
            assert await asyncio.to_thread(reading.read, 1)
        if unlinked:
            fifo.unlink()
    else:
        await process.run(runtime.command(Path("/dev/null"), "start", spec.id))
    await host.driver.close()
    later = type(host.driver)(host.config, host.network)
    await later.open()
    found = await later.recover(pod, (spec,))
    async with asyncio.timeout(20 * PATIENCE):
        await found.start(spec.id)
    assert (await run(found, spec.id, "echo", "here"))[0] == b"here\n"
    await found.stop()
    await later.discard(pod.id)
    await later.close()


async def test_a_container_that_died_before_its_start(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod)
    await sandbox.create(spec)
    found = await sandbox.container_info(spec.id)
    os.kill(int(str(found["pid"])), signal.SIGKILL)
    async with asyncio.timeout(20 * PATIENCE):
        with pytest.raises(FailedPrecondition):
            await sandbox.start(spec.id)
    await sandbox.delete(spec.id)


async def test_a_container_whose_record_cannot_be_written_is_removed(
    host: Bed, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod)
    save = layout.save

    def full(path: Path, value: Value) -> None:
        if isinstance(value, layout.ContainerProcesses):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(layout, "save", full)
        with pytest.raises(ResourceExhausted):
            await sandbox.create(spec)
    await sandbox.delete(spec.id)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    assert (await run(sandbox, spec.id, "echo", "here"))[0] == b"here\n"


async def test_a_killed_monitor_ends_its_container(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    monitor = int((host.config.state_dir / "process" / pod.id / "c" / spec.id / "conmon.pid").read_text())
    os.kill(monitor, signal.SIGKILL)
    status = await asyncio.wait_for(sandbox.wait_container(spec.id), 60 * PATIENCE)
    assert status.code == 137
    assert "conmon" in status.message
    await sandbox.stop()


async def test_failures_leave_nothing(host: Bed) -> None:
    with pytest.raises(InvalidArgument, match=r"kernel\.panic"):
        await host.driver.run(host.pod(sysctls={"kernel.panic": "1"}))
    with pytest.raises(InvalidArgument, match=r"net\.ipv4\.no_such"):
        await host.driver.run(host.pod(sysctls={"net.ipv4.no_such": "1"}))
    assert await host.driver.traces() == []
    for delay in (0.001, 0.01, 0.03, 0.08):
        running = asyncio.ensure_future(host.driver.run(host.pod()))
        await asyncio.sleep(delay)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    for pod_id in await host.driver.traces():
        await host.driver.discard(pod_id)
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    for delay in (0.005, 0.02, 0.04, 0.06):
        spec = host.container(pod)
        creating = asyncio.ensure_future(sandbox.create(spec))
        await asyncio.sleep(delay)
        creating.cancel()
        await asyncio.gather(creating, return_exceptions=True)
        await sandbox.delete(spec.id)
    await sandbox.stop()
    await host.driver.discard(pod.id)

    async def nothing_runs() -> bool:
        left = await process.run(["pgrep", "-f", str(host.config.state_dir)], check=False)
        return left.stdout == b""

    await until(nothing_runs)


async def test_user_namespace(host: Bed) -> None:
    for directory in [*host.config.root_dir.parents][:3]:
        directory.chmod(0o711)  # the container's root must get through
    mapping = (IdMapping(container_id=0, host_id=300000, length=65536),)
    pid = NamespaceMode.POD
    pod = host.pod(
        namespaces=Namespaces(user=NamespaceMode.POD, pid=pid, uid_mappings=mapping, gid_mappings=mapping)
    )
    sandbox = await host.driver.run(pod)
    assert sandbox.addresses
    volume = host.config.root_dir / "volume"
    volume.mkdir(parents=True)
    volume.chmod(0o777)
    mapped = Mount(
        container_path="/mapped", host_path=str(volume), uid_mappings=mapping, gid_mappings=mapping
    )
    plain = Mount(container_path="/plain", host_path=str(volume))
    script = (
        "cat /proc/self/uid_map; touch /data/x /mapped/y; stat -c %u /etc/passwd /mapped /plain; sleep 1000"
    )
    spec = host.container(pod, "sh", "-c", script, mounts=(mapped, plain))
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    await until(lambda: Path(spec.sink.log).read_text().count("\n") >= 4)
    words = [line.split()[3:] for line in Path(spec.sink.log).read_text().splitlines()]
    assert words == [["0", "300000", "65536"], ["0"], ["0"], ["65534"]]
    assert (volume / "y").stat().st_uid == 0
    processes, _, _ = await run(sandbox, spec.id, "ps")
    assert b"pause" in processes
    hostname, _, _ = await run(sandbox, spec.id, "sh", "-c", "hostname other && hostname")
    assert hostname == b"" or hostname == b"other\n"
    holder = sandbox.info["pid"]
    assert isinstance(holder, int)
    await sandbox.stop()
    # Whoever buries it may be a moment late.
    await until(lambda: not Path(f"/proc/{holder}").exists())


async def test_a_holder_that_no_record_names_is_found(host: Bed) -> None:
    pod = host.pod(namespaces=Namespaces(pid=NamespaceMode.POD))
    sandbox = await host.driver.run(pod)
    holder = sandbox.info["pid"]
    assert isinstance(holder, int)
    started = process.process_start_time(holder)
    await host.driver.close()
    record = host.config.state_dir / "process" / pod.id / "pod.json"
    record.unlink()
    later = type(host.driver)(host.config, host.network)
    await later.open()
    await later.discard(pod.id)
    assert not process.pid_alive(holder, started)
    await later.close()
