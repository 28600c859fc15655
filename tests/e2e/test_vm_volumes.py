"""A kubelet's volumes in a VM: what lives in the guest, and how it stays what the host has."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orlop.errors import FailedPrecondition
from orlop.hypervisor.qemu.machine import QemuMachine
from orlop.sandbox.spec import (
    ContainerSpec,
    Dns,
    ExecSpec,
    IdMapping,
    Mount,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Propagation,
    Security,
)
from orlop.sandbox.vm.sandbox import VmSandbox
from orlop.storage.snapshot import DISK
from orlop.volumes.publisher import Publisher
from orlop.volumes.records import Origin, VolumeUse
from orlop.volumes.store import VolumeStore
from tests.e2e.vm_environment import (
    Environment,
    container_spec,
    environment,
    execute,
    pod_spec,
    said,
    until,
)
from tests.patience import PATIENCE
from tests.volumes.kubelet import PodDirectory, judge, pod_directory, verdicts

SLEEP = ("sleep", "100000")


@pytest.fixture
async def env() -> AsyncIterator[Environment]:
    async with environment(pool=1) as one:
        yield one


@pytest.fixture
def pod() -> PodSpec:
    return pod_spec()


@pytest.fixture
def directory(tmp_path: Path, pod: PodSpec) -> Iterator[PodDirectory]:
    with pod_directory(tmp_path / "kubelet", pod.uid) as one:
        yield one


def mount(target: str, path: Path, **more: Any) -> Mount:
    return Mount(container_path=target, host_path=os.fspath(path), **more)


async def started(sandbox: VmSandbox, pod: PodSpec, *mounts: Mount, **more: Any) -> ContainerSpec:
    """A container that sleeps."""
    spec = container_spec(pod, *more.pop("args", SLEEP), mounts=mounts, **more)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


async def test_a_typical_pod_shares_nothing_with_the_host(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    """With all that a kubelet gives to pods without being asked, and all that they ask for most."""
    empty = directory.empty_dir("scratch", mode=0o2777, group=2000)
    memory = directory.empty_dir("memory", memory=8 << 20)
    config = directory.atomic("configmap", "config", {"key": b"value", "deep/er": b"down"}, group=2000)
    secret = directory.atomic("secret", "secret", {"password": b"hidden"}, mode=0o400)
    labels = directory.atomic("downward-api", "labels", {"labels": b'app="one"'})
    token = directory.atomic("projected", "token", {"token": b"secret"}, mode=0o640, group=2000)
    log = directory.termination_log("main")
    pod = msgspec.structs.replace(pod, dns=Dns(servers=("192.0.2.53",), searches=("test.svc",)))
    sandbox = await env.run(pod)
    main = await started(
        sandbox,
        pod,
        mount("/empty", empty),
        mount("/sub", directory.sub_path(empty, "main", 0, "below/it")),
        mount("/memory", memory),
        mount("/config", config, read_only=True),
        mount("/secret", secret, read_only=True),
        mount("/labels", labels, read_only=True),
        mount("/token", token, read_only=True),
        mount("/one", directory.sub_path(config, "main", 1, "key"), read_only=True),
        mount("/etc/hosts", directory.etc_hosts("127.0.0.1\tlocalhost # of the kubelet\n")),
        mount("/dev/termination-log", log),
        args=("sh", "-c", "while [ ! -e /empty/end ]; do sleep 0.1; done; echo done > /dev/termination-log"),
    )
    other = await started(sandbox, pod, mount("/other", empty))
    assert await obstacles(sandbox) == ""
    assert await kinds(sandbox, main, other) == {
        "/": "overlay",
        "/empty": "ext4",
        "/other": "ext4",
        "/sub": "ext4",
        **dict.fromkeys(("/memory", "/config", "/secret", "/labels", "/token", "/one"), "tmpfs"),
        **dict.fromkeys(("/etc/hosts", "/etc/hostname", "/etc/resolv.conf"), "tmpfs"),
        "/dev/termination-log": "tmpfs",
    }
    assert "nameserver 192.0.2.53" in await said(sandbox, main, "cat /etc/resolv.conf")
    assert await said(sandbox, main, "cat /secret/password /labels/labels") == 'hiddenapp="one"'
    assert (
        await said(sandbox, main, "cat /config/key /config/deep/er /token/token /one")
        == "valuedownsecretvalue"
    )
    assert "of the kubelet" in await said(sandbox, main, "cat /etc/hosts")
    stat = "stat -c '%a %u %g' /empty /config/..data/key /token/..data/token"
    assert await said(sandbox, main, stat) == "2777 0 2000\n644 0 2000\n640 0 2000"
    assert int(await said(sandbox, main, "df -P -k /memory | tail -1 | awk '{print $2}'")) == 8 << 10
    assert await said(sandbox, main, "touch /config/no 2>&1 || true") != ""
    # What one container writes the others see, and the sub-path is of the same volume.
    await said(sandbox, main, "echo shared > /empty/file; echo deep > /sub/file")
    assert await said(sandbox, other, "cat /other/file /other/below/it/file") == "shared\ndeep"
    assert sorted(path.name for path in empty.iterdir()) == [DISK, "below"]
    await said(sandbox, main, "touch /empty/end")
    assert (await sandbox.wait_container(main.id)).code == 0
    assert log.read_text() == "done\n"
    # With a directory of the host there is a share, and after it none any more.
    host = await started(sandbox, pod, mount("/host", directory.path))
    assert "VirtFS" in await obstacles(sandbox)
    assert (await kinds(sandbox, host))["/host"] == "9p"
    await sandbox.signal(host.id, signal.SIGKILL)
    await sandbox.delete(host.id)
    assert await obstacles(sandbox) == ""


async def test_the_judge_finds_no_fault_with_an_empty_dir(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    sandbox = await env.run(pod)
    mounts = (
        mount("/empty", directory.empty_dir("scratch")),
        mount("/memory", directory.empty_dir("memory", memory=64 << 20)),
        mount("/judge", judge(), read_only=True),
    )
    usual = Security(capabilities=("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "SETFCAP"))
    main = await started(sandbox, pod, *mounts, security=usual)
    for place in ("/empty", "/memory"):
        out, err, _ = await execute(sandbox, main.id, "/judge", "try", place)
        found = verdicts(out.decode())
        wrong = {trial for trial, verdict in found.items() if verdict != "ok"}
        # The tmpfs of a kernel before 6.6 has neither.
        wrong -= {"user xattr", "O_DIRECT"} if place == "/memory" else set()
        assert len(found) > 30 and not wrong, (place, wrong, err)


async def test_watchers_inside_see_a_swap_as_on_a_host(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    config = directory.atomic("configmap", "config", {"kept": b"old", "gone": b"old"})
    outside = directory.path / "outside"
    outside.write_text("the host's own")
    (config / "..out").symlink_to(outside)
    # A CSI driver's, which swaps as a kubelet does.
    secrets = directory.in_memory(directory.csi("secrets"))
    directory.swap(secrets, {"kept": b"old", "gone": b"old"}, mode=0o440, group=2000)
    sandbox = await env.run(pod)
    main = await started(
        sandbox,
        pod,
        mount("/config", config, read_only=True),
        mount("/secrets", secrets, read_only=True),
        mount("/judge", judge(), read_only=True),
    )
    for volume, target in ((config, "/config"), (secrets, "/secrets")):
        old = os.fspath((volume / "..data").readlink())
        watch = ("/judge", "watch", target, "6", str(int(60 * PATIENCE)))
        watching = await sandbox.exec(main.id, ExecSpec(args=watch))
        output = watching.output()
        assert (await anext(output))[1] == b"watching\n"
        directory.swap(volume, {"kept": b"new", "come": b"new"}, mode=0o440, group=2000)
        text = b""
        async for _, data in output:
            text += data
        await watching.close()
        new = os.fspath((volume / "..data").readlink())
        # Word for word what a watcher on the host hears.
        assert text.decode().splitlines() == [
            f"create\t{new}",
            "create\t..data_tmp",
            "moved\t..data",
            "create\tcome",
            "delete\tgone",
            f"delete\t{old}",
        ]
        assert await said(sandbox, main, f"cat {target}/kept {target}/come") == "newnew"
        assert await said(sandbox, main, f"stat -c %a:%g {target}/..data/kept") == "440:2000"
    # The link leads nowhere in the container, whatever the host has there.
    assert await said(sandbox, main, "readlink /config/..out") == os.fspath(outside)
    assert await said(sandbox, main, "cat /config/..out 2>/dev/null || echo nothing") == "nothing"


async def test_a_large_volume_that_changes_every_second_is_never_seen_half(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    def content(number: int) -> dict[str, bytes]:
        return {name: bytes([65 + number]) * (512 << 10) for name in ("first", "second")}

    config = directory.atomic("configmap", "config", content(0))
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, mount("/config", config, read_only=True))
    for number in range(1, 6):
        directory.atomic("configmap", "config", content(number))
        letter = chr(65 + number)
        # Both files are looked at through the directory that ..data leads to at one moment.
        script = "cd -P /config/..data && head -c 1 first && tail -c 1 second && cat first second | wc -c"
        await until_said(sandbox, main, script, f"{letter}{letter}{1 << 20}")


async def test_what_changed_while_no_daemon_ran_is_there_afterwards(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    config = directory.atomic("secret", "config", {"key": b"old"})
    hosts, log = directory.etc_hosts("# first\n"), directory.termination_log("main")
    empty, memory = directory.empty_dir("empty"), directory.empty_dir("memory", memory=1 << 20)
    sandbox = await env.run(pod)
    mounts = (
        mount("/config", config, read_only=True),
        mount("/etc/hosts", hosts),
        mount("/log", log),
        mount("/empty", empty),
        mount("/memory", memory),
    )
    args = (
        "sh",
        "-c",
        "echo before > /log; while [ ! -e /empty/end ]; do sleep 0.1; done; echo after >> /log",
    )
    main = await started(sandbox, pod, *mounts, args=args)
    await said(sandbox, main, "echo mine >> /etc/hosts; echo 1 > /empty/x; echo 2 > /memory/x")
    await env.crash()
    directory.atomic("secret", "config", {"key": b"new", "more": b"1"})
    await env.again()
    sandbox = await env.recover(pod, main)
    await until_said(sandbox, main, "cat /config/key /config/more", "new1")
    # What the container wrote is not taken back by a file that the host did not change.
    assert "mine" in await said(sandbox, main, "cat /etc/hosts")
    hosts.write_text("# second\n")
    await until_said(sandbox, main, "cat /etc/hosts", "# second")
    other = await started(
        sandbox, pod, mount("/e", empty), mount("/m", memory), mount("/c", config, read_only=True)
    )
    assert await said(sandbox, other, "cat /e/x /m/x /c/key") == "1\n2\nnew"
    await said(sandbox, other, "touch /e/end")
    assert (await sandbox.wait_container(main.id)).code == 0
    assert log.read_text() == "before\nafter\n"
    await sandbox.delete(main.id)
    assert log.read_text() == "before\nafter\n"


async def test_what_one_container_mounts_in_an_empty_dir_reaches_those_that_ask(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    empty, memory = directory.empty_dir("empty"), directory.empty_dir("memory", memory=1 << 20)
    asks = {one.name: {"propagation": one} for one in Propagation}
    sandbox = await env.run(pod)
    both = (mount("/e", empty, **asks["BIDIRECTIONAL"]), mount("/m", memory, **asks["BIDIRECTIONAL"]))
    root = Security(privileged=True, capabilities=("SYS_ADMIN",))
    mounter = await started(sandbox, pod, *both, security=root)
    mounts = (mount("/e", empty, **asks["HOST_TO_CONTAINER"]), mount("/m", memory), mount("/p", empty))
    other = await started(sandbox, pod, *mounts)
    await said(
        sandbox,
        mounter,
        "for one in e m; do mkdir /$one/on; mount -t tmpfs on /$one/on; touch /$one/on/x; done",
    )
    # One and the same volume, whatever of its mounts a container asks for.
    assert await said(sandbox, other, "ls -d /e/on/x /m/on /p/on") == "/e/on/x\n/m/on\n/p/on"
    assert await said(sandbox, other, "ls -A /m/on; ls -A /p/on") == ""
    later = await started(sandbox, pod, mount("/e", empty, read_only=True, **asks["HOST_TO_CONTAINER"]))
    assert await said(sandbox, later, "ls /e/on") == "x"
    await said(sandbox, mounter, "umount /e/on")
    assert await said(sandbox, other, "ls /e/on") == await said(sandbox, later, "ls /e/on") == ""
    # A container's end takes nothing of it from the others, and the host sees none of it.
    await said(sandbox, mounter, "mount -t tmpfs on /e/on; touch /e/on/y")
    await sandbox.signal(mounter.id, signal.SIGKILL)
    await sandbox.delete(mounter.id)
    assert await said(sandbox, other, "ls /e/on") == "y"
    assert [path.name for path in empty.iterdir()] == [DISK]
    host = container_spec(pod, *SLEEP, mounts=(mount("/h", directory.path, **asks["BIDIRECTIONAL"]),))
    with pytest.raises(FailedPrecondition, match="Bidirectional propagation, but a mount made in a VM"):
        await sandbox.create(host)


async def test_an_empty_dir_outlives_the_sandbox_and_its_use_is_the_hosts(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    empty = directory.empty_dir("empty")
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, mount("/empty", empty))
    await said(sandbox, main, "dd if=/dev/zero of=/empty/big bs=1M count=16 2>&1; echo kept > /empty/file")
    # The guest writes in its own time; what is on the host is what the kubelet counts.
    await until(lambda: used(empty) >= 16 << 20, 60)
    await said(sandbox, main, "rm /empty/big; sync")
    await until(lambda: used(empty) < 8 << 20, 60)
    await said(sandbox, main, "mkdir /empty/sub; echo last > /empty/sub/file")
    await env.driver.discard(pod.id)
    again = pod_spec(uid=pod.uid, attempt=1)
    sandbox = await env.run(again)
    main = await started(
        sandbox,
        again,
        mount("/empty", empty),
        mount("/sub", directory.sub_path(empty, "main", 0, "sub"), read_only=True),
    )
    assert await said(sandbox, main, "cat /empty/file /sub/file") == "kept\nlast"
    # Nobody else gets a disk that is in use.
    third = pod_spec(uid=pod.uid, attempt=2)
    rival = await env.run(third)
    with pytest.raises(FailedPrecondition, match="in use by another VM"):
        await rival.create(container_spec(third, *SLEEP, mounts=(mount("/empty", empty),)))
    await rival.stop()
    # Neither does it matter how the machine ends.
    await said(sandbox, main, "echo journaled > /empty/file; sync")
    os.kill(sandbox._clone.machine.pid, signal.SIGKILL)
    await sandbox.wait()
    await env.driver.discard(again.id)
    fourth = pod_spec(uid=pod.uid, attempt=3)
    sandbox = await env.run(fourth)
    main = await started(sandbox, fourth, mount("/empty", empty))
    assert await said(sandbox, main, "cat /empty/file") == "journaled"


async def test_what_the_guest_cannot_hold_is_shared(
    env: Environment, pod: PodSpec, directory: PodDirectory
) -> None:
    empty = directory.empty_dir("empty")
    (empty / "of another").write_text("there before")
    large = directory.atomic("configmap", "large", {str(n): bytes(1 << 20) for n in range(5)})
    sandbox = await env.run(pod)
    mounts = (mount("/empty", empty), mount("/large", large, read_only=True))
    main = await started(sandbox, pod, *mounts)
    assert (
        await said(sandbox, main, "cat '/empty/of another'; cat /large/? | wc -c") == f"there before{5 << 20}"
    )
    await said(sandbox, main, "rm '/empty/of another'; echo here > /empty/file")
    (empty / "file").unlink()
    # It is plain now, and stays what it is for this pod.
    other = await started(sandbox, pod, mount("/e", empty))
    await said(sandbox, other, "echo seen > /e/both")
    assert await said(sandbox, main, "cat /empty/both") == "seen"
    assert (empty / "both").read_text() == "seen\n"


async def test_users_of_the_pod_own_what_they_own_on_the_host(
    env: Environment, directory: PodDirectory, pod: PodSpec
) -> None:
    maps = (IdMapping(container_id=0, host_id=65536, length=65536),)
    own = Namespaces(user=NamespaceMode.POD, uid_mappings=maps, gid_mappings=maps)
    mapped: dict[str, Any] = {"uid_mappings": maps, "gid_mappings": maps}
    pod = pod_spec(uid=pod.uid, namespaces=own)
    empty = directory.empty_dir("empty", mode=0o2770, group=3000)
    config = directory.atomic("configmap", "config", {"key": b"value"}, mode=0o640, group=3000)
    sandbox = await env.run(pod)
    mounts = (
        mount("/empty", empty, **mapped),
        mount("/config", config, read_only=True, **mapped),
        mount("/memory", directory.empty_dir("memory", memory=1 << 20), **mapped),
    )
    main = await started(sandbox, pod, *mounts, namespaces=own)
    await said(sandbox, main, "touch /empty/file /memory/file")
    stat = "stat -c '%a %u %g' /empty /empty/file /memory /config/..data/key"
    assert await said(sandbox, main, stat) == "2770 0 3000\n644 0 3000\n777 0 0\n640 0 3000"


async def kinds(sandbox: VmSandbox, *containers: ContainerSpec) -> dict[str, str]:
    """The file system of each mount that containers have, but for those of the kernel's own."""
    found = {}
    for container in containers:
        for line in (await said(sandbox, container, "cat /proc/mounts")).splitlines():
            _, place, kind, *_ = line.split()
            if place == "/dev/termination-log" or not place.startswith(("/proc", "/sys", "/dev")):
                found[place] = kind
    return found


async def obstacles(sandbox: VmSandbox) -> str:
    """What keeps QEMU from saving the VM: above all a share that the guest has mounted."""
    machine = sandbox._clone.machine
    assert isinstance(machine, QemuMachine)
    answer = await machine.monitor.execute("query-migrate")
    assert isinstance(answer, dict)
    return " ".join(answer.get("blocked-reasons", ()))


def used(path: Path) -> int:
    """What a kubelet counts: the blocks of all that is in there."""
    return sum(one.lstat().st_blocks * 512 for one in (path, *path.rglob("*")))


async def until_said(sandbox: VmSandbox, spec: ContainerSpec, script: str, expected: str) -> None:
    """Run a script until it says what is expected."""
    text = ""
    try:
        async with asyncio.timeout(60 * PATIENCE):
            while text != expected:
                out, _, _ = await execute(sandbox, spec.id, "sh", "-c", script)
                text = out.decode().strip()
    except TimeoutError:
        pytest.fail(f"{script!r} says {text!r}, not {expected!r}")


async def test_a_named_volume_is_a_disk_of_one_vm_at_a_time(
    env: Environment, pod: PodSpec, tmp_path: Path
) -> None:
    """It outlives its VM, has grown for the next one, and what is copied of it is a volume like it."""
    store = VolumeStore(env.config.root_dir / "volumes")
    await store.open()

    async def inside(data: Path) -> VolumeUse | None:
        return await sandbox.volume_usage(os.fspath(data))

    publisher = Publisher(store, inside)
    await store.create("data", 64 << 20, whole=True)
    for number in ("1", "2", "3"):
        await publisher.publish("data", f"{tmp_path}/{number}")
    sandbox = await env.run(pod)
    first = await started(sandbox, pod, mount("/data", tmp_path / "1"))
    again = await started(sandbox, pod, mount("/same", tmp_path / "2"))
    size = "stat -f -c '%b' /data; python3 -c 0 2>/dev/null; mkfifo /data/pipe; echo hello > /data/file; sync"
    blocks = int((await said(sandbox, first, size)).split()[0])
    assert await said(sandbox, again, "cat /same/file; test -p /same/pipe && echo fifo") == "hello\nfifo"
    # A cluster asks the driver how full it is, and is told what `df` says in the container.
    use = await publisher.usage("data", f"{tmp_path}/1")
    assert use.total == blocks * 4096 or use.total == blocks * 1024
    assert 0 < use.free < use.total and 0 < use.inodes_free < use.inodes
    await said(sandbox, first, "dd if=/dev/zero of=/data/much bs=1M count=20 2>&1; touch /data/a /data/b")
    later_use = await publisher.usage("data", f"{tmp_path}/1")
    assert use.free - later_use.free >= 20 << 20 and use.inodes_free - later_use.inodes_free == 3
    await said(sandbox, first, "rm /data/much /data/a /data/b")
    other = pod_spec()
    second = await env.run(other)
    with pytest.raises(FailedPrecondition, match="in use"):
        await started(second, other, mount("/data", tmp_path / "3"))
    with pytest.raises(FailedPrecondition):
        await store.remove("data")
    with pytest.raises(FailedPrecondition, match="has grown, and is in use: a VM sees that"):
        await publisher.expand("data", f"{tmp_path}/1", 256 << 20)
    await sandbox.stop()
    assert (await publisher.expand("data", f"{tmp_path}/1", 256 << 20)).size == 256 << 20
    third = pod_spec()
    later = await env.run(third)
    found = await started(later, third, mount("/data", tmp_path / "3"))
    now = await said(later, found, "stat -f -c '%b' /data; cat /data/file")
    assert now.split()[1] == "hello"
    assert int(now.split()[0]) > 2 * blocks, "its file system has grown with its disk"
    await later.stop()
    await store.take_snapshot("s", "data")
    await store.create("copy", 256 << 20, origin=Origin(kind="snapshot", id="s"))
    await publisher.publish("copy", f"{tmp_path}/4")
    fourth = pod_spec()
    last = await env.run(fourth)
    restored = await started(last, fourth, mount("/data", tmp_path / "4", read_only=True))
    assert await said(last, restored, "cat /data/file") == "hello"
    for number in ("1", "2", "3"):
        await publisher.unpublish("data", f"{tmp_path}/{number}")
    await store.remove("data")
    await publisher.unpublish("copy", f"{tmp_path}/4")
