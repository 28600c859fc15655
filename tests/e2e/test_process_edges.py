"""What other fronts than CRI ask for, under the handler ``process``. Needs root."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orlop.config import ProcessConfig, VmConfig, VolumeConfig
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.sandbox.process.driver import ProcessDriver
from orlop.sandbox.spec import (
    Mount,
    NamespaceMode,
    Namespaces,
    PortMapping,
    Rlimit,
    Root,
    Sink,
    Tmpfs,
)
from tests.conformance.tools import busybox
from tests.e2e.outside import Reader, network, root_directory
from tests.e2e.process_pods import Bed, bed, make_layer, run, secure
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layer(tmp_path_factory.mktemp("image"))


@pytest.fixture
async def host(tmp_path: Path, layer: Path) -> AsyncIterator[Bed]:
    vm = VmConfig(volumes=VolumeConfig(direct=f"{tmp_path}/direct"))
    async with bed(tmp_path, layer, process=ProcessConfig(runtime="runc"), vm=vm) as found:
        yield found


async def another_daemon(host: Bed) -> ProcessDriver:
    """The one before ends; pods go on."""
    await host.driver.close()
    driver = ProcessDriver(host.config, host.network)
    await driver.open()
    object.__setattr__(host, "driver", driver)
    return driver


async def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    async with asyncio.timeout(seconds * PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_a_network_namespace_from_outside_stays(host: Bed) -> None:
    with network() as net:
        pod = host.pod(netns=os.fspath(net.path), sysctls={"net.ipv4.ip_default_ttl": "77"})
        sandbox = await host.driver.run(pod)
        assert sandbox.addresses == (net.address,)
        spec = host.container(pod)
        await sandbox.create(spec)
        await sandbox.start(spec.id)
        out, _, code = await run(
            sandbox, spec.id, "sh", "-c", f"ping -c1 -W2 {net.gateway} && ip -o addr show eth0"
        )
        assert code == 0 and net.address.encode() in out
        server = await run(sandbox, spec.id, "sh", "-c", "echo page > /tmp/index.html; httpd -p 8080 -h /tmp")
        assert server[2] == 0
        page = await asyncio.to_thread(
            subprocess.run,
            ["curl", "-s", "-m5", f"http://{net.address}:8080/"],
            capture_output=True,
            check=True,
        )
        assert page.stdout == b"page\n"
        driver = await another_daemon(host)
        sandbox = await driver.recover(pod, (spec,))
        assert sandbox.addresses == (net.address,)
        await driver.discard(pod.id)
        # It was joined, not owned: interface, address and route are as they were.
        assert net.address in net.inside("ip", "-o", "addr", "show", "eth0")
        assert net.inside("cat", "/proc/sys/net/ipv4/ip_default_ttl") == "77\n"
        net.inside(os.fspath(busybox()), "ping", "-c1", "-W2", net.gateway)


async def test_what_is_no_network_namespace(host: Bed, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path, error in (
        ("/proc/self/ns/uts", InvalidArgument),
        (os.fspath(tmp_path / "fifo"), InvalidArgument),
        (os.fspath(tmp_path / "none"), NotFound),
        ("relative", InvalidArgument),
    ):
        with pytest.raises(error, match=Path(path).name):
            await host.driver.run(host.pod(netns=path))
    with pytest.raises(FailedPrecondition, match="maps its ports"):
        ports = (PortMapping(protocol="TCP", container_port=80, host_port=8080),)
        await host.driver.run(host.pod(netns="/proc/self/ns/net", port_mappings=ports))
    with pytest.raises(InvalidArgument, match="host's network"):
        node = Namespaces(network=NamespaceMode.NODE)
        await host.driver.run(host.pod(netns="/proc/self/ns/net", namespaces=node))
    assert await host.driver.traces() == []


async def test_a_directory_is_the_root_and_stays(host: Bed, tmp_path: Path) -> None:
    place = root_directory(tmp_path / "tree", busybox())
    (tmp_path / "link").symlink_to(place)
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    root = Root(directory=os.fspath(tmp_path / "link"))
    spec = host.container(pod, root=root)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    out, _, code = await run(sandbox, spec.id, "sh", "-c", "echo kept > /data/file; id -u; ls /")
    assert code == 0 and b"data" in out
    fixed = host.container(pod, root=root, security=secure(read_only_root=True, user="web"))
    await sandbox.create(fixed)
    await sandbox.start(fixed.id)
    out, err, code = await run(sandbox, fixed.id, "sh", "-c", "id -u; cat /data/file; echo x > /data/other")
    assert out == b"1000\nkept\n" and code != 0 and b"Read-only" in err
    await host.driver.discard(pod.id)
    assert (place / "data/file").read_text() == "kept\n" and not (place / "data/other").exists()


async def test_what_is_no_root(host: Bed, tmp_path: Path) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    (tmp_path / "file").write_text("")
    for root, error in (
        (Root(), InvalidArgument),
        (Root(directory="/"), InvalidArgument),
        (Root(directory="relative"), InvalidArgument),
        (Root(directory=os.fspath(tmp_path), layers=("/l",)), InvalidArgument),
        (Root(directory=os.fspath(tmp_path / "none")), NotFound),
        (Root(directory=os.fspath(tmp_path / "file")), FailedPrecondition),
    ):
        with pytest.raises(error):
            await sandbox.create(host.container(pod, root=root))


async def test_output_goes_to_a_pipe_and_a_file_over_a_restart(host: Bed, tmp_path: Path) -> None:
    reader = Reader(tmp_path / "out")
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    script = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); echo $i; echo e$i >&2; sleep 0.005; done; printf end"
    sink = Sink(stdout=reader.path, stderr=os.fspath(tmp_path / "err"))
    spec = host.container(pod, "sh", "-c", script, sink=sink)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    await until(lambda: reader.data.count(b"\n") > 20)
    with pytest.raises(FailedPrecondition, match="itself"):
        await sandbox.attach(spec.id, stdin=False)
    driver = await another_daemon(host)
    sandbox = await driver.recover(pod, (spec,))
    assert (await sandbox.wait_container(spec.id)).code == 0
    await until(lambda: reader.data.endswith(b"end"))
    assert reader.close() == b"".join(b"%d\n" % i for i in range(1, 301)) + b"end"
    assert (tmp_path / "err").read_bytes() == b"".join(b"e%d\n" % i for i in range(1, 301))
    await host.driver.discard(pod.id)


@pytest.mark.parametrize("tty", [False, True])
async def test_output_that_can_be_attached_goes_there_too(host: Bed, tmp_path: Path, tty: bool) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    sink = Sink(stdout=os.fspath(tmp_path / "out"))
    spec = host.container(
        pod, "sh", "-c", "while read line; do echo got $line; done", sink=sink, stdin=True, tty=tty
    )
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    attached = await sandbox.attach(spec.id, stdin=True)
    await attached.write(b"one\n")
    await until(lambda: (tmp_path / "out").exists() and b"got one" in (tmp_path / "out").read_bytes())
    await attached.close()
    driver = await another_daemon(host)
    sandbox = await driver.recover(pod, (spec,))
    attached = await sandbox.attach(spec.id, stdin=True)
    await attached.write(b"two\n")
    await until(lambda: b"got two" in (tmp_path / "out").read_bytes())
    await sandbox.signal(spec.id, 9)
    await sandbox.wait_container(spec.id)
    await attached.close()
    await host.driver.discard(pod.id)


async def test_a_descriptor_of_a_process_is_a_place_for_output(host: Bed) -> None:
    reading, writing = os.pipe()
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    here = f"/proc/{os.getpid()}/fd/{writing}"
    spec = host.container(pod, "sh", "-c", "echo out; echo err >&2", sink=Sink(stdout=here, stderr=here))
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    await sandbox.wait_container(spec.id)
    os.close(writing)
    said = b""
    while said.count(b"\n") < 2:
        said += await asyncio.to_thread(os.read, reading, 100)
    assert sorted(said.split()) == [b"err", b"out"]
    os.close(reading)
    await host.driver.discard(pod.id)


async def test_where_output_cannot_go(host: Bed, tmp_path: Path) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    for sink, error in (
        (Sink(stdout=os.fspath(tmp_path)), FailedPrecondition),
        (Sink(stdout=os.fspath(tmp_path / "none" / "out")), FailedPrecondition),
        (Sink(stdout="out"), InvalidArgument),
        (Sink(log="/l", stdout="/o"), InvalidArgument),
    ):
        for stdin in (False, True):
            spec = host.container(pod, sink=sink, stdin=stdin)
            with pytest.raises(error):
                await sandbox.create(spec)
            await sandbox.delete(spec.id)


async def test_limits_and_memory_as_a_volume(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(
        pod,
        rlimits=(Rlimit(name="NOFILE", soft=100, hard=200), Rlimit(name="CORE", soft=0, hard=0)),
        mounts=(
            Mount(container_path="/scratch", tmpfs=Tmpfs(size=1 << 20, mode=0o700)),
            Mount(container_path="/fixed", tmpfs=Tmpfs(), read_only=True),
        ),
    )
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    looking = "ulimit -Sn; ulimit -Hn; ulimit -c; stat -c %a /scratch; touch /fixed/x || echo no"
    # An older runc sometimes sets the soft limit to the hard one itself (opencontainers/runc#4195).
    for _ in range(5):
        out, _, _ = await run(sandbox, spec.id, "sh", "-c", looking)
        if out.split()[0] == b"100":
            break
    assert out.split() == [b"100", b"200", b"0", b"700", b"no"]
    out, _, code = await run(sandbox, spec.id, "sh", "-c", "dd if=/dev/zero of=/scratch/x bs=1M count=2 2>&1")
    assert code != 0 and b"No space" in out
    for bad in (
        {"rlimits": (Rlimit(name="NOTHING", soft=1, hard=1),)},
        {"rlimits": (Rlimit(name="NOFILE", soft=2, hard=1),)},
        {"mounts": (Mount(container_path="/x", host_path="/tmp", tmpfs=Tmpfs()),)},
    ):
        with pytest.raises(InvalidArgument):
            await sandbox.create(host.container(pod, **bad))
    await host.driver.discard(pod.id)


async def test_a_device_that_only_a_vm_mounts_is_refused(host: Bed, tmp_path: Path) -> None:
    """On the host there is but an empty directory, which would be taken for the volume."""
    top, path, disk = Path(host.config.vm.volumes.direct), tmp_path / "pvc-1/mount", tmp_path / "disk"
    path.mkdir(parents=True)
    disk.write_bytes(bytes(4096))
    place = top / base64.urlsafe_b64encode(os.fsencode(path)).decode()
    place.mkdir(parents=True, mode=0o700)
    (place / "mountInfo.json").write_text(json.dumps({"device": os.fspath(disk), "fstype": "ext4"}))
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    spec = host.container(pod, mounts=(Mount(container_path="/data", host_path=os.fspath(path)),))
    with pytest.raises(FailedPrecondition, match="a VM to mount: its pod needs the handler vm"):
        await sandbox.create(spec)
    shutil.rmtree(place)
    await sandbox.delete(spec.id)
    await sandbox.create(spec)
