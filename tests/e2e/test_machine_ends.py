"""Machines that stop by themselves, are stopped by hand, or hang. Needs root and QEMU."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.guestos.build import build
from orlop.hypervisor.qemu.machine import QemuMachine
from orlop.linux.capabilities import CAPABILITIES
from orlop.sandbox.vm import pulse
from orlop.wire.messages import Ping
from orlop.wire.values import PluggedDisk
from tests.e2e.guest_machine import Guest, fresh_guest, security
from tests.e2e.vm_environment import CACHE
from tests.patience import PATIENCE

# A guest of one processor in which nothing but this runs any more.
HANG = (
    "open('/proc/sys/kernel/sched_rt_runtime_us', 'w').write('-1'); "
    "import os; os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))\nwhile True: pass"
)


@pytest.fixture
async def guest() -> AsyncIterator[Guest]:
    place = Path(tempfile.mkdtemp(prefix="orlop-end-"))
    try:
        async with fresh_guest(await build(CACHE / "guest"), CACHE / "end-root/hypervisor", place) as one:
            yield one
    finally:
        shutil.rmtree(place)


async def privileged(guest: Guest, *args: str) -> None:
    """Run something that may do anything to its guest, on the guest's own root image."""
    artifacts = await build(CACHE / "guest")
    root = await guest.plug(artifacts.image)
    can = security(privileged=True, bounding=CAPABILITIES, effective=CAPABILITIES, read_only_paths=())
    await guest.create("evil", *args, root=(root,), security=can)
    await guest.start("evil")


async def ended(machine: QemuMachine) -> str:
    async with asyncio.timeout(60 * PATIENCE):
        return await machine.wait()


async def test_a_machine_that_is_stopped_by_hand_goes_on(guest: Guest) -> None:
    machine = guest.machine
    watching = asyncio.create_task(pulse.lost(machine, guest.agent, quiet=0.1, patience=2))
    for stop, resume in (
        (lambda: machine.monitor.execute("stop"), lambda: machine.monitor.execute("cont")),
        (lambda: kill(machine, signal.SIGSTOP), lambda: kill(machine, signal.SIGCONT)),
    ):
        assert not await machine.paused()
        await stop()
        await asyncio.sleep(4)
        assert await machine.paused()
        assert not watching.done(), "silence is no sign of a guest that was stopped by hand"
        await resume()
        await guest.agent.call(Ping(), 10)
    assert not watching.done()
    watching.cancel()


async def kill(machine: QemuMachine, number: int) -> None:
    os.kill(machine.pid, number)


async def test_a_kernel_that_panics_is_told_with_its_words(guest: Guest) -> None:
    await privileged(guest, "/usr/bin/busybox", "sh", "-c", "sleep 0.2; echo c > /proc/sysrq-trigger")
    assert await ended(guest.machine) == "the guest's kernel panicked: sysrq triggered crash"


async def test_a_disk_error_that_stops_the_machine_is_its_end(guest: Guest) -> None:
    monitor = guest.machine.monitor
    await monitor.execute(
        "blockdev-add",
        {
            "node-name": "broken",
            "driver": "blkdebug",
            "image": {"driver": "null-co", "size": 1 << 20},
            "inject-error": [{"event": "none", "errno": 5}],
        },
    )
    where = {"driver": "scsi-hd", "id": "broken", "bus": "scsi0.0", "lun": 99}
    await monitor.execute("device_add", {**where, "drive": "broken", "rerror": "stop"})
    looking = asyncio.create_task(
        guest.create("one", "true", root=(PluggedDisk(id="broken", at=("scsi:99",)),))
    )
    assert (await ended(guest.machine)).startswith("a disk of it failed")
    looking.cancel()


async def test_a_guest_that_hangs_is_noticed(guest: Guest) -> None:
    assert guest.machine.shape.vcpus == 1
    watching = asyncio.create_task(pulse.lost(guest.machine, guest.agent, quiet=0.5, patience=5))
    await asyncio.sleep(2)
    assert not watching.done()
    await privileged(guest, "/usr/bin/python3", "-S", "-E", "-c", HANG)
    async with asyncio.timeout(120 * PATIENCE):
        assert (await watching).startswith("the guest hangs: its agent has said nothing for ")
