"""File systems on devices that a CSI driver hands to a VM, written down as drivers do: real loop devices."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.config import VolumeConfig
from orlop.errors import FailedPrecondition, NotFound
from orlop.host import process
from orlop.sandbox.spec import ContainerSpec, Mount, PodSpec
from orlop.sandbox.vm.sandbox import VmSandbox
from tests.e2e.loop_devices import MIB, Make, backing, is_free, loop_devices, make_xfs
from tests.e2e.vm_environment import Environment, container_spec, environment, pod_spec, said, until
from tests.patience import PATIENCE
from tests.volumes.kubelet import PodDirectory, pod_directory

SLEEP = ("sleep", "100000")


@pytest.fixture
def top(tmp_path: Path) -> Path:
    return tmp_path / "direct-volumes"


@pytest.fixture
async def env(top: Path, make: Make) -> AsyncIterator[Environment]:
    async with environment(pool=1, volumes=VolumeConfig(direct=os.fspath(top))) as one:
        yield one


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with loop_devices(tmp_path) as one:
        yield one


@pytest.fixture
def pod() -> PodSpec:
    return pod_spec()


@pytest.fixture
def directory(tmp_path: Path, pod: PodSpec) -> Iterator[PodDirectory]:
    with pod_directory(tmp_path / "kubelet", pod.uid) as one:
        yield one


def hand_over(top: Path, path: Path, device: Path, **more: Any) -> Path:
    """What a driver does instead of mounting."""
    place = top / base64.urlsafe_b64encode(os.fsencode(path)).decode()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    (place / "mountInfo.json").write_text(
        json.dumps({"volume-type": "block", "device": os.fspath(device), "fstype": "ext4", **more})
    )
    return place


async def started(sandbox: VmSandbox, pod: PodSpec, *mounts: Mount) -> ContainerSpec:
    spec = container_spec(pod, *SLEEP, mounts=mounts)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


def mount(target: str, path: Path, **more: Any) -> Mount:
    return Mount(container_path=target, host_path=os.fspath(path), **more)


def larger_than(mib: int) -> str:
    """Waits until the volume has more room than that."""
    wait = f"until [ $(($(stat -f -c '%b * %S' /data) >> 20)) -gt {mib} ]; do sleep 0.1; done"
    return f'timeout {int(60 * PATIENCE)} sh -c "{wait}"'.replace("$", "\\$")


async def test_a_file_system_that_a_driver_hands_over(
    env: Environment, pod: PodSpec, directory: PodDirectory, top: Path, make: Make
) -> None:
    device, path = make(mib=64), directory.csi("pvc-1")
    link = env.scratch / "by-id"
    link.symlink_to(device)
    await process.run(["mkfs.ext4", "-q", device])
    metadata = {"fsGroup": "3000", "fsGroupChangePolicy": "OnRootMismatch", "other": "of the driver's"}
    hand_over(top, path, link, metadata=metadata, options=["rw", "bind", "noatime", "commit=3"])
    sandbox = await env.run(pod)
    sub = directory.sub_path(path, "main", 0, "below/it")
    main = await started(sandbox, pod, mount("/data", path), mount("/sub", sub))
    other = await started(sandbox, pod, mount("/data", path, read_only=True))
    assert await said(sandbox, main, "stat -c '%a %u %g' /data") == "2775 0 3000"
    assert "ext4 rw,noatime,commit=3" in await said(sandbox, main, "grep ' /data ' /proc/mounts")
    await said(sandbox, main, "echo whole > /data/file; echo deep > /sub/file; ln -s file /data/link")
    assert await said(sandbox, other, "cat /data/link /data/below/it/file") == "whole\ndeep"
    assert await said(sandbox, other, "touch /data/no 2>/dev/null || echo no") == "no"
    # The host has none of it, and nobody else gets the device meanwhile.
    assert [one.name for one in path.iterdir()] == ["below"] and not is_free(device)
    rival_pod = pod_spec()
    with pod_directory(env.scratch / "kubelet", rival_pod.uid) as theirs:
        target = theirs.csi("pvc-1")
        hand_over(top, target, device)
        rival = await env.run(rival_pod)
        with pytest.raises(FailedPrecondition, match="is in use: it is mounted on the host, or another VM"):
            await started(rival, rival_pod, mount("/data", target))
        assert not rival._containers and not rival._volumes._held
        assert not dict(rival._clone.machine._record.disks)
        await env.driver.discard(rival_pod.id)
    # It grows with its device, for the daemon that came later as well.
    os.truncate(backing(device), 96 * MIB)
    await process.run(["losetup", "--set-capacity", device])
    await said(sandbox, main, larger_than(70))
    await env.crash()
    os.truncate(backing(device), 160 * MIB)
    await process.run(["losetup", "--set-capacity", device])
    await env.again()
    sandbox = await env.recover(pod, main, other)
    await said(sandbox, main, larger_than(120))
    later = await started(sandbox, pod, mount("/data", path))
    assert await said(sandbox, later, "cat /data/file") == "whole"
    # What was written is on the device when the pod has ended, and its file system needs no recovery.
    await said(sandbox, later, "echo last > /data/last")
    await env.driver.discard(pod.id)
    await until(lambda: is_free(device))
    state = await process.run(["dumpe2fs", "-h", device])
    assert b"needs_recovery" not in state.stdout
    place = env.scratch / "mounted"
    place.mkdir()
    await process.run(["mount", device, place])
    try:
        assert (place / "last").read_text() == "last\n"
    finally:
        await process.run(["umount", place])


async def test_xfs_is_mounted_grown_and_left_clean(
    env: Environment, pod: PodSpec, directory: PodDirectory, top: Path, make: Make
) -> None:
    device, path = make(mib=320), directory.csi("pvc-1")
    make_xfs(device)
    hand_over(top, path, device, fstype="xfs", options=["noatime"], metadata={"fsGroup": "3000"})
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, mount("/data", path))
    assert await said(sandbox, main, "stat -c '%a %u %g' /data") == "2775 0 3000"
    assert "xfs rw,noatime" in await said(sandbox, main, "grep ' /data ' /proc/mounts")
    os.truncate(backing(device), 400 * MIB)
    await process.run(["losetup", "--set-capacity", device])
    await said(sandbox, main, larger_than(330))
    await said(sandbox, main, "mkfifo /data/pipe; fallocate -l 8M /data/room; echo last > /data/last")
    # How full it is the guest alone knows.
    use = await sandbox.volume_usage(os.fspath(path))
    figures = (await said(sandbox, main, "stat -f -c '%b %a %S %c %d' /data")).split()
    blocks, free, size, inodes, inodes_free = map(int, figures)
    assert use is not None
    assert (use.total, use.inodes) == (blocks * size, inodes)
    assert abs(use.free - free * size) < MIB and abs(use.inodes_free - inodes_free) < 64
    assert await sandbox.volume_usage(os.fspath(path / "other")) is None
    await env.driver.discard(pod.id)
    await until(lambda: is_free(device))
    place = env.scratch / "mounted"
    place.mkdir()
    # Nothing is to be recovered: without that, who mounts it finds the last word.
    await process.run(["mount", "-o", "ro,norecovery", device, place])
    try:
        assert (place / "last").read_text() == "last\n"
    finally:
        await process.run(["umount", place])


async def test_a_device_that_goes_while_it_is_mounted_takes_nothing_else_with_it(
    env: Environment, pod: PodSpec, directory: PodDirectory, top: Path, make: Make
) -> None:
    device, path = make(), directory.csi("pvc-1")
    await process.run(["mkfs.ext4", "-q", device])
    hand_over(top, path, device)
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, mount("/data", path))
    other = await started(sandbox, pod)
    await said(sandbox, main, "dd if=/dev/urandom of=/data/file bs=1M count=4 conv=fsync 2>&1")
    # None of it is there any more, and nothing that is written to it comes back.
    os.truncate(backing(device), 0)
    await process.run(["losetup", "--set-capacity", device])
    write = "dd if=/dev/zero of=/data/more bs=1M count=4 conv=fsync"
    assert await said(sandbox, main, f"{write} 2>/dev/null || echo fails") == "fails"
    assert await said(sandbox, other, "echo on") == "on"
    # The pod can be ended, and what is left of the device is nobody's.
    await env.driver.discard(pod.id)
    await until(lambda: is_free(device))


async def test_what_cannot_be_mounted_leaves_nothing(
    env: Environment, pod: PodSpec, directory: PodDirectory, top: Path, make: Make
) -> None:
    device, path = make(), directory.csi("pvc-1")
    sandbox = await env.run(pod)

    async def refused(kind: type[Exception], match: str) -> None:
        with pytest.raises(kind, match=match):
            await started(sandbox, pod, mount("/data", path))
        assert not sandbox._containers and not sandbox._volumes._held
        assert not dict(sandbox._clone.machine._record.disks)
        assert is_free(device)

    said_of_it = hand_over(top, path, device)
    await refused(FailedPrecondition, "pvc-1.*its device cannot be mounted as ext4: Invalid argument")
    hand_over(top, path, env.scratch / "gone")
    await refused(NotFound, "pvc-1.*its device .*gone: No such file")
    # A file of the host is given away neither by a link, nor by a place that anybody may write to.
    (env.scratch / "disk").symlink_to("/etc/passwd")
    hand_over(top, path, env.scratch / "disk")
    await refused(FailedPrecondition, "neither a block device nor a file without links")
    hand_over(top, path, device)
    said_of_it.chmod(0o777)
    await refused(FailedPrecondition, "may have been written by somebody else than root")
    said_of_it.chmod(0o700)
    # A file system comes, and nothing of what was tried before is in its way.
    await process.run(["mkfs.ext4", "-q", device])
    hand_over(top, path, device, options=["ro"])
    main = await started(sandbox, pod, mount("/data", path))
    assert await said(sandbox, main, "touch /data/no 2>/dev/null || echo no") == "no"
    assert is_free(device), "who only reads does not claim it"
    # A driver may have files for disks, too.
    disk, second = env.scratch / "disk.raw", directory.csi("pvc-2")
    with disk.open("wb") as file:
        file.truncate(16 * MIB)
    await process.run(["mkfs.ext4", "-q", disk])
    hand_over(top, second, disk, **{"volume-type": "directvol"})
    other = await started(sandbox, pod, mount("/data", second))
    await said(sandbox, other, "echo a > /data/file")
    await env.driver.discard(pod.id)
    found = await process.run(["debugfs", "-R", "cat file", disk])
    assert found.stdout == b"a\n"
