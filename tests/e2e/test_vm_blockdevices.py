"""Block devices of the host in a VM: a kubelet's volumes of mode Block, as real loop devices."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition
from orlop.host import mounts, process
from orlop.linux import loop
from orlop.sandbox.spec import ContainerSpec, Device, Mount, PodSpec, Security
from orlop.sandbox.vm.sandbox import VmSandbox
from orlop.volumes.publisher import Publisher
from orlop.volumes.records import Origin, disk_of
from orlop.volumes.store import VolumeStore
from tests.e2e.loop_devices import Make, backing, is_free, loop_devices
from tests.e2e.vm_environment import Environment, container_spec, environment, pod_spec, said, until
from tests.patience import PATIENCE
from tests.volumes.kubelet import judge, verdicts

SLEEP = ("sleep", "100000")
MIB = 1 << 20


@pytest.fixture
async def env() -> AsyncIterator[Environment]:
    async with environment(pool=1) as one:
        yield one


@pytest.fixture
async def named(tmp_path: Path) -> AsyncIterator[Publisher]:
    """Named volumes, which are shown to nobody afterwards."""
    store = VolumeStore(tmp_path / "volumes")
    await store.open()
    yield Publisher(store)
    mounts.unmount_below(tmp_path)
    for volume in store.volumes():
        for device in loop.devices_of(os.fspath(disk_of(store.directory(volume.id)))):
            loop.detach(device)


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with loop_devices(tmp_path) as one:
        yield one


def asked(device: Path, permissions: str = "rwm", target: str = "/dev/data") -> Device:
    return Device(host_path=os.fspath(device), container_path=target, permissions=permissions)


async def started(sandbox: VmSandbox, pod: PodSpec, *devices: Device) -> ContainerSpec:
    """A container that sleeps."""
    mounts = (Mount(container_path="/judge", host_path=os.fspath(judge()), read_only=True),)
    spec = container_spec(pod, *SLEEP, devices=devices, mounts=mounts)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    return spec


def grown_to(size: int) -> str:
    """Waits until the device has that size."""
    wait = f"until [ $(blockdev --getsize64 /dev/data) = {size} ]; do sleep 0.1; done"
    return f"timeout {int(30 * PATIENCE)} sh -c '{wait}'"


async def gone(sandbox: VmSandbox, *specs: ContainerSpec) -> None:
    for spec in specs:
        await sandbox.signal(spec.id, signal.SIGKILL)
        await sandbox.delete(spec.id)


READ = "dd if=/dev/data bs=512 skip=8 count=1 2>/dev/null | head -c 7"


async def test_a_block_device_is_the_hosts(env: Environment, make: Make) -> None:
    pod, device = pod_spec(), make()
    link = env.scratch / "volumeDevices"
    link.symlink_to(device)
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, asked(link))
    other = await started(sandbox, pod, asked(link, "r"))
    assert await said(sandbox, main, "blockdev --getsize64 /dev/data; blockdev --getss /dev/data") == (
        f"{16 * MIB}\n512"
    )
    status = device.stat()
    shown = await said(sandbox, main, "stat -c '%a %u %g %F' /dev/data")
    assert shown == f"{status.st_mode & 0o777:o} {status.st_uid} {status.st_gid} block special file"
    # What is flushed is on the device, and what goes past the guest's cache as well.
    await said(sandbox, main, "printf written | dd of=/dev/data bs=512 seek=8 conv=fsync,notrunc 2>&1")
    await said(sandbox, main, "dd if=/dev/urandom of=/dev/data bs=4096 seek=2 count=2 oflag=direct 2>&1")
    assert "direct" not in await said(
        sandbox, main, "dd if=/dev/data of=/dev/null bs=4096 count=4 iflag=direct"
    )
    with device.open("rb") as file:
        file.seek(8 * 512)
        assert file.read(7) == b"written"
        file.seek(8192)
        assert file.read(8192).strip(b"\0")
    # All else that is asked of a device, at a place that nothing above looks at.
    found = verdicts(await said(sandbox, main, "/judge block /dev/data"))
    assert set(found.values()) == {"ok"}, found
    # Who may only read gets no more than that, from the guest's kernel or from the hypervisor.
    assert await said(sandbox, other, READ) == "written"
    assert await said(sandbox, other, "dd if=/dev/zero of=/dev/data count=1 2>/dev/null || echo no") == "no"
    assert await said(sandbox, other, "blockdev --getro /dev/data") == "1"
    # And nobody gets the device of another container by its number.
    numbers = await said(sandbox, main, "stat -c '%t %T' /dev/data")
    major, minor = (int(number, 16) for number in numbers.split())
    await said(sandbox, other, f"mknod /tmp/it b {major} {minor}; ! dd if=/tmp/it of=/dev/null count=1")
    rival = await env.run(pod_spec())
    with pytest.raises(FailedPrecondition, match="is in use: it is mounted on the host, or another VM"):
        await rival.create(container_spec(rival._spec, *SLEEP, devices=(asked(device),)))
    assert not rival._containers and not dict(rival._clone.machine._record.disks)
    await env.crash()
    await env.again()
    sandbox = await env.recover(pod, main, other)
    again = await started(sandbox, pod, asked(link))
    assert await said(sandbox, again, READ) == "written"
    await gone(sandbox, main, other, again)
    # Nothing of it is left to the pod, so that another may have it.
    rival = await env.recover(rival._spec)
    await gone(rival, await started(rival, rival._spec, asked(device)))


async def test_a_block_device_grows_and_vanishes(env: Environment, make: Make) -> None:
    pod, device, other = pod_spec(), make("--sector-size", "4096"), make("--read-only")
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, asked(device), asked(other, target="/srv/fixed"))
    assert await said(sandbox, main, "blockdev --getss /dev/data") == "4096"
    # One that the host itself may not write to is there, and refuses to be written to.
    assert await said(sandbox, main, "blockdev --getro /srv/fixed; blockdev --getss /srv/fixed") == "1\n512"
    os.truncate(backing(device), 24 * MIB)
    await process.run(["losetup", "--set-capacity", device])
    await said(sandbox, main, grown_to(24 * MIB))
    last = f"bs=4096 seek={24 * MIB // 4096 - 1} count=1 conv=fsync,notrunc"
    await said(sandbox, main, f"dd if=/dev/urandom of=/dev/data {last}")
    # A daemon that comes later sees to it as well.
    await env.crash()
    os.truncate(backing(device), 32 * MIB)
    await process.run(["losetup", "--set-capacity", device])
    await env.again()
    sandbox = await env.recover(pod, main)
    await said(sandbox, main, grown_to(32 * MIB))
    # What is behind it goes: an error of that device's, and the pod goes on.
    os.truncate(backing(device), 0)
    read = "dd if=/dev/data of=/dev/null bs=4096 skip=2000 count=1 iflag=direct"
    assert "Input/output error" in await said(sandbox, main, f"{read} 2>&1 || true")
    assert await said(sandbox, main, "echo on") == "on"
    await gone(sandbox, main)


async def test_a_named_volume_of_mode_block_is_a_disk_of_the_vm(
    named: Publisher, env: Environment, tmp_path: Path
) -> None:
    """As a kubelet hands on what the CSI driver has published."""
    publisher, store = named, named._store
    await store.create("raw", 16 * MIB, content="block")
    target, pod = tmp_path / "volumeDevices", pod_spec()
    await publisher.publish("raw", os.fspath(target))
    sandbox = await env.run(pod)
    main = await started(sandbox, pod, asked(target))
    await said(sandbox, main, "printf written | dd of=/dev/data bs=512 seek=8 conv=fsync,notrunc 2>&1")
    rival = await env.run(pod_spec())
    with pytest.raises(FailedPrecondition, match="is in use"):
        await started(rival, rival._spec, asked(target))
    # It grows while it is used, and a snapshot is a volume like it.
    await store.grow("raw", 32 * MIB)
    await publisher.expand("raw", os.fspath(target))
    await said(sandbox, main, grown_to(32 * MIB))
    await sandbox.stop()
    await publisher.unpublish("raw", os.fspath(target))
    await store.take_snapshot("s", "raw")
    await store.create("copy", 32 * MIB, content="block", origin=Origin(kind="snapshot", id="s"))
    other = tmp_path / "other"
    await publisher.publish("copy", os.fspath(other))
    restored = await started(rival, rival._spec, asked(other))
    assert await said(rival, restored, READ) == "written"
    await rival.stop()
    await publisher.unpublish("copy", os.fspath(other))
    await store.remove("raw")


async def test_what_is_mounted_on_the_host_is_not_given_away(env: Environment, make: Make) -> None:
    pod, device = pod_spec(), make()
    await process.run(["mkfs.ext4", "-q", device])
    sandbox = await env.run(pod)
    place = env.scratch / "mounted"
    place.mkdir()
    await process.run(["mount", device, place])
    try:
        with pytest.raises(FailedPrecondition, match="is mounted on the host"):
            await started(sandbox, pod, asked(device))
    finally:
        await process.run(["umount", place])
    # Somebody who makes a mount namespace just now has the mount for a moment more.
    await until(lambda: is_free(device))
    rights = Security(privileged=True, capabilities=("SYS_ADMIN", "MKNOD"))
    spec = container_spec(pod, *SLEEP, devices=(asked(device),), security=rights)
    await sandbox.create(spec)
    await sandbox.start(spec.id)
    await said(
        sandbox, spec, "mkdir /tmp/m && mount -t ext4 /dev/data /tmp/m && echo a > /tmp/m/f && umount /tmp/m"
    )
    await gone(sandbox, spec)
    await process.run(["mount", device, place])
    try:
        assert (place / "f").read_text() == "a\n"
    finally:
        await process.run(["umount", place])
