"""What containers of the handler ``process`` see of the host and of each other. Needs root."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orlop.config import ProcessConfig
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.host import mounts
from orlop.host.cgroups import Cgroup
from orlop.host.mounts import bind, is_mounted
from orlop.sandbox.base import Sandbox
from orlop.sandbox.spec import (
    ContainerSpec,
    Device,
    Dns,
    ImageVolume,
    Mount,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Propagation,
    Seccomp,
    SeccompMode,
    Security,
)
from tests.e2e.process_pods import Bed, bed, crun_anywhere, make_layer, run, secure, until
from tests.patience import PATIENCE

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

POD, NODE, TARGET = NamespaceMode.POD, NamespaceMode.NODE, NamespaceMode.TARGET
CONTAINER = NamespaceMode.CONTAINER


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_layer(tmp_path_factory.mktemp("image"))


@pytest.fixture(params=["runc", "crun"])
async def host(tmp_path: Path, layer: Path, request: pytest.FixtureRequest) -> AsyncIterator[Bed]:
    runtime = "runc" if request.param == "runc" else crun_anywhere(tmp_path)
    async with bed(tmp_path, layer, process=ProcessConfig(runtime=runtime)) as found:
        yield found


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[Path]:
    """A directory on a shared mount."""
    directory = tmp_path / "shared"
    directory.mkdir()
    bind(directory, directory, propagation="rshared")
    yield directory
    mounts.unmount_below(directory)


async def _run(host: Bed, pod: PodSpec, *args: str, **changes: object) -> tuple[Sandbox, ContainerSpec]:
    sandbox = await host.driver.run(pod)
    return sandbox, await _add(host, sandbox, pod, *args, **changes)


async def _add(host: Bed, sandbox: Sandbox, pod: PodSpec, *args: str, **changes: object) -> ContainerSpec:
    spec = host.container(pod, *args, **changes)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


async def _sh(sandbox: Sandbox, spec: ContainerSpec, script: str) -> str:
    stdout, stderr, _ = await run(sandbox, spec.id, "sh", "-c", script)
    return (stdout + stderr).decode().strip()


async def test_namespaces_of_the_host(host: Bed) -> None:
    pod = host.pod(namespaces=Namespaces(network=NODE, pid=NODE, ipc=NODE))
    sandbox, spec = await _run(host, pod)
    assert (sandbox.addresses, sandbox.netns) == ((), "")
    found = await _sh(
        sandbox, spec, "for n in net pid ipc uts mnt; do readlink /proc/self/ns/$n; done; hostname"
    )
    own = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("net", "pid", "ipc", "uts")]
    lines = found.splitlines()
    assert lines[:4] == own
    assert lines[4] != str(Path("/proc/self/ns/mnt").readlink())
    assert lines[5] == os.uname().nodename
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        connection = await sandbox.connect(server.getsockname()[1])
        await connection.close()
    await sandbox.signal(spec.id, signal.SIGKILL)
    assert (await sandbox.wait_container(spec.id)).code == 137
    await sandbox.stop()


async def test_shared_process_namespace_reaps_and_dies_as_one(host: Bed) -> None:
    pod = host.pod(namespaces=Namespaces(pid=POD))
    sandbox, first = await _run(host, pod)
    second = await _add(host, sandbox, pod, "sh", "-c", "sleep 555 & exec sleep 1000")

    async def runs() -> bool:
        return "sleep 555" in await _sh(sandbox, first, "ps")

    async def gone() -> bool:
        return not await runs()

    await until(runs)
    assert "1 pause" in " ".join((await _sh(sandbox, first, "ps -o pid,comm,args")).split())
    # Whoever has lost its parent is buried, be it a moment later.
    buried = "(sleep 0.1 &) ; sleep 0.3; while ps -o stat | grep -q Z; do sleep 0.1; done; echo all"
    assert await _sh(sandbox, first, f"timeout {int(60 * PATIENCE)} sh -c '{buried}'") == "all"
    await sandbox.signal(second.id, signal.SIGKILL)
    await sandbox.wait_container(second.id)
    await until(gone)
    debug = await _add(host, sandbox, pod, namespaces=Namespaces(pid=TARGET, target_container=first.id))
    assert "1 pause" in " ".join((await _sh(sandbox, debug, "ps -o pid,comm")).split())
    holder = sandbox.info["pid"]
    assert isinstance(holder, int)
    waiting = asyncio.ensure_future(sandbox.wait())
    os.kill(holder, signal.SIGKILL)
    assert "PID namespace" in await asyncio.wait_for(waiting, 60 * PATIENCE)
    assert (await asyncio.wait_for(sandbox.wait_container(first.id), 60 * PATIENCE)).code == 137
    await sandbox.stop()


async def test_target_process_namespace(host: Bed) -> None:
    pod = host.pod()
    sandbox, target = await _run(host, pod, "sleep", "777")
    debug = await _add(host, sandbox, pod, namespaces=Namespaces(pid=TARGET, target_container=target.id))

    async def seen() -> bool:
        return "sleep 777" in await _sh(sandbox, debug, "ps")

    # The runtime answers a start before the process is the program that was asked for.
    await until(seen)
    wrong = host.container(pod, namespaces=Namespaces(pid=TARGET, target_container="nobody"))
    with pytest.raises(NotFound, match="nobody"):
        await sandbox.create(wrong)
    await sandbox.stop()


async def test_security_of_a_plain_and_of_a_privileged_container(host: Bed) -> None:
    pod = host.pod()
    profile = Seccomp(mode=SeccompMode.RUNTIME_DEFAULT)
    sandbox, plain = await _run(
        host, pod, security=secure(seccomp=profile, no_new_privs=True, read_only_root=True)
    )
    found = await _sh(
        sandbox,
        plain,
        "touch /x; touch /proc/sys/kernel/hostname; wc -c </proc/kcore; mount -t tmpfs t /tmp; "
        "grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; ls /dev | wc -l; unshare -U true",
    )
    assert "/x: Read-only file system" in found
    assert "hostname: Read-only file system" in found
    assert "NoNewPrivs:\t1" in found
    assert "Seccomp:\t2" in found
    assert "permission denied" in found.lower() or "not permitted" in found.lower()
    every = tuple(name.removeprefix("CAP_") for name in ("SYS_ADMIN", "SYS_RESOURCE", "MKNOD", "NET_ADMIN"))
    free = Security(privileged=True, capabilities=every)
    trusted = await _add(host, sandbox, pod, security=free)
    found = await _sh(
        sandbox,
        trusted,
        "mount -t tmpfs t /tmp && echo mounted; ls /dev/net/tun; grep Seccomp: /proc/self/status",
    )
    assert found.splitlines() == ["mounted", "/dev/net/tun", "Seccomp:\t0"]
    await sandbox.stop()


async def test_users_and_groups(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    merged = host.container(pod, security=secure(user="web", supplemental_groups=(7,)))
    user = await sandbox.create(merged)
    assert user is not None
    assert (user.uid, user.gid, set(user.groups)) == (1000, 1001, {1001, 7, 50000})
    await sandbox.start(merged.id)
    assert (await _sh(sandbox, merged, "id -u; id -g; id -G; echo $HOME")).split("\n") == [
        "1000",
        "1001",
        "1001 7 50000",
        "/srv",
    ]
    strict = await _add(
        host, sandbox, pod, security=secure(user="1000", supplemental_groups=(7,), strict_groups=True)
    )
    assert set((await _sh(sandbox, strict, "id -G")).split()) == {"1001", "7"}
    nobody = host.container(pod, security=secure(user="nobody"))
    with pytest.raises(InvalidArgument, match="nobody"):
        await sandbox.create(nobody)
    await sandbox.stop()


async def test_propagation_and_recursive_read_only(host: Bed, shared: Path) -> None:
    (shared / "below").mkdir()
    mounts.mount("t", shared / "below", "tmpfs")
    pod = host.pod()
    volumes = (
        Mount(container_path="/private", host_path=str(shared)),
        Mount(container_path="/slave", host_path=str(shared), propagation=Propagation.HOST_TO_CONTAINER),
        Mount(container_path="/both", host_path=str(shared), propagation=Propagation.BIDIRECTIONAL),
        Mount(container_path="/ro", host_path=str(shared), read_only=True),
        Mount(container_path="/rro", host_path=str(shared), read_only=True, recursive_read_only=True),
    )
    free = Security(privileged=True, capabilities=("SYS_ADMIN", "MKNOD", "DAC_OVERRIDE"))
    sandbox, spec = await _run(host, pod, mounts=volumes, security=free)
    (shared / "later").mkdir()
    mounts.mount("t", shared / "later", "tmpfs")
    (shared / "later" / "file").touch()
    seen = await _sh(
        sandbox, spec, "ls /private/later /slave/later /both/later; mkdir /both/in; mount -t tmpfs t /both/in"
    )
    assert seen.split() == ["/both/later:", "file", "/private/later:", "/slave/later:", "file"]
    assert is_mounted(shared / "in")
    found = await _sh(sandbox, spec, "touch /ro/x; touch /ro/below/x; touch /rro/x; touch /rro/below/y")
    assert found.count("Read-only file system") == 3
    assert not (shared / "below" / "y").exists()
    await sandbox.stop()


async def test_propagation_of_a_private_mount_is_refused(host: Bed, tmp_path: Path) -> None:
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    bind(lonely, lonely, propagation="private")
    try:
        pod = host.pod()
        sandbox = await host.driver.run(pod)
        mount = Mount(container_path="/x", host_path=str(lonely), propagation=Propagation.BIDIRECTIONAL)
        with pytest.raises(FailedPrecondition, match="not shared"):
            await sandbox.create(host.container(pod, mounts=(mount,)))
        await sandbox.stop()
    finally:
        mounts.unmount(lonely)


async def test_volumes_devices_and_files(host: Bed, tmp_path: Path) -> None:
    pod = host.pod(dns=Dns(servers=("192.0.2.1",), searches=("example",), options=("ndots:5",)))
    (tmp_path / "hosts").write_text("192.0.2.9 mine\n")
    volumes = (
        Mount(
            container_path="/image",
            image=ImageVolume(image_id="x", layers=(str(host.layer),), sub_path="etc"),
        ),
        Mount(container_path="/etc/hosts", host_path=str(tmp_path / "hosts")),
    )
    device = Device(host_path="/dev/net/tun", container_path="/dev/mine", permissions="rw")
    sandbox, spec = await _run(host, pod, mounts=volumes, devices=(device,))
    found = await _sh(
        sandbox,
        spec,
        "cat /image/group | head -1; touch /image/x; cat /etc/hosts /etc/resolv.conf; "
        "ls -l /dev/mine | cut -c1; "
        "df -m /dev/shm | tail -1; dd if=/dev/mine count=0 2>&1 | head -1; mknod /tmp/n c 1 11; cat /tmp/n",
    )
    assert "root:x:0:" in found
    assert "/image/x: Read-only file system" in found
    assert "192.0.2.9 mine\nsearch example\nnameserver 192.0.2.1\noptions ndots:5\nc\n" in found
    assert " 64 " in " ".join(found.split())
    assert "/tmp/n" in found.splitlines()[-1]  # may not be opened
    await sandbox.stop()


async def test_cgroup_parent_is_the_one_asked_for(host: Bed) -> None:
    parent = Cgroup(f"/orlop-test-parent-{os.getpid()}/pod")
    parent.create()
    try:
        pod = host.pod(cgroup_parent=parent.path)
        sandbox, spec = await _run(host, pod)
        pids = sandbox.info["pids"]
        assert isinstance(pids, dict)
        group = Path(Cgroup.of_process(pids[spec.id]).path)
        assert group.name == spec.id and group.parent.parent == Path(parent.path)
        await sandbox.stop()
        await host.driver.discard(pod.id)
        assert parent.exists()
        assert not Cgroup(str(group.parent)).exists()
        own = host.pod()
        sandbox, _ = await _run(host, own)
        await sandbox.stop()
        await host.driver.discard(own.id)
        # Not glob: a group of somebody else's that goes while it is looked at is an error there.
        places = [Path(place) for place, _, _ in os.walk("/sys/fs/cgroup")]
        assert [place for place in places if place.name == own.id] == []
    finally:
        parent.remove()
        Cgroup(str(Path(parent.path).parent)).remove()


async def test_what_cannot_be_is_refused_with_the_reason(host: Bed) -> None:
    pod = host.pod()
    sandbox = await host.driver.run(pod)
    with pytest.raises(InvalidArgument, match=r"BAD.*UTF-8"):
        await sandbox.create(host.container(pod, env=(("BAD", b"\xff\xfe"),)))
    with pytest.raises(NotFound, match=r"/dev/none"):
        await sandbox.create(
            host.container(pod, devices=(Device(host_path="/dev/none", container_path="/dev/x"),))
        )
    with pytest.raises(InvalidArgument, match="is not a device"):
        await sandbox.create(
            host.container(pod, devices=(Device(host_path="/etc/passwd", container_path="/dev/x"),))
        )
    with pytest.raises(InvalidArgument, match="without a PID namespace"):
        await sandbox.create(host.container(pod, namespaces=Namespaces(pid=POD)))
    lost = Seccomp(mode=SeccompMode.LOCALHOST, path="/no/such/profile.json")
    with pytest.raises(NotFound, match=r"profile\.json"):
        await sandbox.create(host.container(pod, security=secure(seccomp=lost)))
    await sandbox.stop()
    with pytest.raises(InvalidArgument, match=r"sysctl net\.core\.somaxconn"):
        host.driver.check(host.pod(namespaces=Namespaces(network=NODE), sysctls={"net.core.somaxconn": "1"}))


async def test_sysctls_are_the_pods_own(host: Bed) -> None:
    before = Path("/proc/sys/kernel/shm_rmid_forced").read_text()
    pod = host.pod(sysctls={"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "2000 3000"})
    sandbox, spec = await _run(host, pod)
    found = await _sh(
        sandbox,
        spec,
        "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range "
        "/proc/sys/net/ipv4/ip_unprivileged_port_start",
    )
    assert found.split() == ["1", "2000", "3000", "0"]
    assert Path("/proc/sys/kernel/shm_rmid_forced").read_text() == before
    await sandbox.stop()
