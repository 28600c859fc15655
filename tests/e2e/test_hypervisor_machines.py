"""Real machines: cold, saved, restored; their disks, size, end and recovery. Needs root and QEMU."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import msgspec
import pytest

from orlop.config import GuestConfig, VmConfig
from orlop.errors import AlreadyExists, DataLoss, DeadlineExceeded, FailedPrecondition, NotFound, Unavailable
from orlop.guestos.build import GuestArtifacts, build, find
from orlop.host import process
from orlop.hypervisor.base import Disk, Machine, MachineShape, Stacking
from orlop.hypervisor.qemu import QemuBackend, accelerator, templates
from orlop.hypervisor.qemu.cmdline import Memory
from orlop.hypervisor.qemu.hypervisor import Launch, QemuHypervisor
from orlop.hypervisor.qemu.machine import QemuMachine
from orlop.sandbox.vm.agent import AgentClient
from orlop.storage.disks import scratch_disk
from orlop.wire.messages import Online, Ping, Quiesce, Resume, Stats
from tests.e2e import guest_machine
from tests.e2e.vm_environment import ACCELERATOR
from tests.patience import PATIENCE

CACHE = Path(os.environ.get("ORLOP_TEST_CACHE", Path.home() / ".cache/orlop"))
CONFIG = msgspec.structs.replace(guest_machine.CONFIG, max_memory_mib=4096)


def qemu(guest: GuestArtifacts, root: Path, config: VmConfig = CONFIG) -> QemuHypervisor:
    return QemuBackend(config).booting(guest, root)


async def settle(machine: Machine) -> None:
    async with agent_of(machine) as agent:
        await agent.call(Ping())
        await agent.call(Quiesce())


@asynccontextmanager
async def agent_of(machine: Machine) -> AsyncIterator[AgentClient]:
    agent = await AgentClient.connect(machine.agent_socket, name="test", timeout=guest_machine.TIMEOUT)
    try:
        await agent.call(Resume())
        yield agent
    finally:
        await agent.close("done")


def opened(machine: QemuMachine) -> list[str]:
    """What a machine's process has open; it closes some of it in its own time."""
    found = []
    for entry in Path(f"/proc/{machine.pid}/fd").iterdir():
        with suppress(FileNotFoundError):
            found.append(str(entry.readlink()))
    return found


async def reap(machine: QemuMachine) -> None:
    """Do for a machine that was let go of what init does for one of a daemon that ended."""
    assert machine._child is not None
    await machine._child.wait()


@pytest.fixture(scope="session")
def guest() -> GuestArtifacts:
    return asyncio.run(build(CACHE / "guest"))


@pytest.fixture(scope="session")
def saved(guest: GuestArtifacts) -> Iterator[Path]:
    """A directory with a template in it."""
    root = Path(tempfile.mkdtemp(prefix="orlop-hv-"))
    asyncio.run(qemu(guest, root).template(settle))
    yield root
    shutil.rmtree(root)


@pytest.fixture
def place() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="orlop-vm-"))
    yield directory
    left = subprocess.run(
        ["pgrep", "-f", f"path={directory}/"], capture_output=True, text=True, check=False
    ).stdout
    shutil.rmtree(directory)
    assert left == "", "a QEMU survived the test"


async def never(machine: Machine) -> None:
    raise AssertionError("the template was built again")


@asynccontextmanager
async def clone(
    guest: GuestArtifacts, root: Path, place: Path, hypervisor: QemuHypervisor | None = None
) -> AsyncIterator[tuple[QemuHypervisor, QemuMachine]]:
    own = hypervisor or qemu(guest, root)
    template = await own.template(never)
    machine = await own.restore(template, place / secrets.token_hex(3), tap_fd=None, share=place / "share")
    try:
        yield own, machine
    finally:
        await machine.stop()
        await own.discard(machine.directory)
        if own is not hypervisor:
            # Each holds a whole template in memory.
            for saved in own._saved.values():
                saved.close()
    assert not machine.directory.exists()


async def test_cold_start_answers(guest: GuestArtifacts, place: Path) -> None:
    hypervisor = qemu(guest, place / "root")
    machine = await hypervisor.start(
        place / "m", MachineShape(memory_mib=256, vcpus=2), tap_fd=None, share=place / "share"
    )
    try:
        await machine.wait_agent_port(90 * PATIENCE)
        async with agent_of(machine) as agent:
            assert (await agent.call(Online())).cpus == 2
            assert 150 << 20 < (await agent.call(Stats())).system_memory_total < 256 << 20
        assert "agent" in await machine.console_tail()
        await machine.stop()
        assert await machine.wait() == "it was stopped"
    finally:
        await machine.stop()
        await hypervisor.discard(machine.directory)


async def test_a_guest_on_trial_that_ends_is_not_waited_for(guest: GuestArtifacts, place: Path) -> None:
    hypervisor = qemu(guest, place / "root")
    launch = Launch(
        directory=place / "m",
        shape=MachineShape(memory_mib=256),
        finding=await hypervisor._find_accelerator(),
        share=place / "share",
        memory=Memory(size_mib=256, max_mib=256),
    )
    machine = await hypervisor._boot(launch, verbose=True)
    try:
        with pytest.raises(DeadlineExceeded, match="the kernel said nothing"):
            await accelerator.came_up(machine, 0)
        os.kill(machine.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(Unavailable, match="signal 9"):
            await accelerator.came_up(machine, 90 * PATIENCE)
        assert time.monotonic() - begun < 60, "who has ended is not waited for"
    finally:
        await machine.stop()
        await hypervisor.discard(machine.directory)


async def test_a_trial_is_all_that_a_pods_machine_goes_through(
    guest: GuestArtifacts, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = VmConfig(others={"qemu": {"accelerator": "tcg", "kvm_probe_timeout": 90.0 * PATIENCE}})
    hypervisor = qemu(guest, place / "root", config)
    await hypervisor._prove(await hypervisor._find_accelerator())
    assert not list((place / "root").glob("boot-*"))
    slow = qemu(guest, place / "root", config)
    # In that no guest comes up, on whatever machine.
    hurried = msgspec.structs.replace(slow._settings, kvm_probe_timeout=0.01)
    monkeypatch.setattr(slow, "_settings", hurried)
    with pytest.raises(DeadlineExceeded):
        await slow._prove(await hypervisor._find_accelerator())
    assert not list((place / "root").glob("boot-*"))


async def test_a_clone_answers_at_once(guest: GuestArtifacts, saved: Path, place: Path) -> None:
    async with (
        clone(guest, saved, place) as (hypervisor, other),
        agent_of(other) as beside,
        clone(guest, saved, place, hypervisor) as (_, machine),
        agent_of(machine) as agent,
    ):
        await agent.call(Ping())
        await beside.call(Ping())
        # Of the template's pages those count as private that no other clone has mapped: were none shared, all
        # of some 90 MiB would be private. What QEMU has of its own differs by version and by how much it has
        # translated.
        use = await machine.memory()
        assert use.private < 64 << 20 < use.private + use.shared


async def test_translated_code_lies_in_huge_pages(guest: GuestArtifacts, saved: Path, place: Path) -> None:
    # Which is the host's to forbid, and without emulation there is none.
    policy = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    if "[never]" in policy or ACCELERATOR == "kvm":
        return
    allowed = re.compile(r"^THPeligible: +1", re.M)
    async with clone(guest, saved, place) as (_, machine), agent_of(machine) as agent:
        await agent.call(Ping())
        # That it asks for them, and may have them: whether there are any is up to the rest of the machine.
        mappings = re.split(r"\n(?=[0-9a-f]+-)", Path(f"/proc/{machine.pid}/smaps").read_text())
        assert [one for one in mappings if re.search(r"^VmFlags:.* hg\b", one, re.M) and allowed.search(one)]


async def test_clones_do_not_see_each_other(guest: GuestArtifacts, saved: Path, place: Path) -> None:
    memory = next(saved.glob("template-*")) / templates.MEMORY
    before = templates._digest(memory)
    async with clone(guest, saved, place) as (_, one), clone(guest, saved, place) as (_, two):
        for machine in (one, two):
            async with agent_of(machine) as agent:
                await agent.call(Ping())
    assert templates._digest(memory) == before


@pytest.mark.parametrize("hotplug", [False, True])
async def test_disks_come_and_go(guest: GuestArtifacts, saved: Path, place: Path, *, hotplug: bool) -> None:
    raw = place / "disk,with=comma.raw"
    raw.write_bytes(bytes(1 << 20))
    layers = tuple(str(place / f"layer {number}") for number in range(3))
    for layer in layers:
        Path(layer).write_bytes(bytes(1 << 20))
    async with clone(guest, saved, place) as (_, machine):
        writable = Disk(id="raw", files=(str(raw),), read_only=False)
        stack = Disk(id="image", files=layers)
        one = await machine.attach_disk(writable, reversible=hotplug)
        three = await machine.attach_disk(stack, reversible=hotplug)
        assert len(one) == 1 and len(three) == 3
        with pytest.raises(AlreadyExists):
            await machine.attach_disk(Disk(id="raw", files=(str(raw),)))
        with pytest.raises(NotFound):
            await machine.attach_disk(Disk(id="other", files=(str(raw), str(place / "none"))))
        await asyncio.gather(*(machine.detach_disk(name) for name in ("raw", "image", "unknown")))
        await machine.detach_disk("raw")
        assert not any(name.startswith((str(raw), str(place / "layer"))) for name in opened(machine))
        assert not list(machine.directory.glob("image.*"))
        again = await asyncio.gather(
            *(machine.attach_disk(Disk(id=f"d{number}", files=(str(raw),))) for number in range(8))
        )
        assert len({*one, *three, *(place for places in again for place in places)}) == 12


async def test_lasting_devices_are_used_once(guest: GuestArtifacts, saved: Path, place: Path) -> None:
    writable, other = place / "writable", place / "other"
    await scratch_disk(writable, CONFIG.scratch_mib)
    other.write_bytes(bytes(1 << 20))

    def kept(places: tuple[str, ...]) -> bool:
        return places[0].startswith("scsi-kept:")

    async with clone(guest, saved, place) as (hypervisor, machine):
        first = await machine.attach_disk(Disk(id="first", files=(str(writable),), read_only=False))
        odd = await machine.attach_disk(Disk(id="odd", files=(str(other),), read_only=False))
        assert kept(first) and not kept(odd), "only the size that the guest knows fits"
        await machine.detach_disk("first")
        assert str(writable) not in opened(machine)
        await machine.close()
        found = await hypervisor.recover(machine.directory)
        try:
            second = await found.attach_disk(Disk(id="second", files=(str(writable),), read_only=False))
            assert kept(second) and second != first, "also a later daemon knows what was used"
            assert found.stacking(3) is Stacking.APART
            image = (str(guest.image),)
            rest = [await found.attach_disk(Disk(id=f"d{n}", files=image)) for n in range(14)]
            assert {kept(places) for places in rest} == {True, False}
            assert found.stacking(1) is Stacking.TOGETHER and found.stacking(0) is Stacking.APART
            assert len({first, odd, second, *rest}) == 17
        finally:
            await found.stop()
            await reap(machine)


@pytest.mark.parametrize("hotplug", [False, True])
async def test_a_disk_that_qemu_refuses_leaves_no_trace(
    guest: GuestArtifacts, saved: Path, place: Path, *, hotplug: bool
) -> None:
    bad = place / "directory"
    bad.mkdir()
    good = place / "good"
    good.write_bytes(bytes(1 << 20))
    async with clone(guest, saved, place) as (_, machine):
        with pytest.raises(Exception, match="refused blockdev-add"):
            await machine.attach_disk(Disk(id="x", files=(str(bad),)), reversible=hotplug)
        await machine.attach_disk(Disk(id="x", files=(str(good),)), reversible=hotplug)


async def test_memory_grows_and_comes_back(guest: GuestArtifacts, saved: Path, place: Path) -> None:
    async with clone(guest, saved, place) as (_, machine), agent_of(machine) as agent:
        start = machine.shape.memory_mib
        before = (await agent.call(Stats())).system_memory_total
        assert (await machine.resize(MachineShape(memory_mib=start + 512))).memory_mib == start + 512
        async with asyncio.timeout(60 * PATIENCE):
            # The guest takes the last block into use a little after QEMU has given it.
            while (await agent.call(Stats())).system_memory_total - before < 500 << 20:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await machine.resize(MachineShape(memory_mib=64))).memory_mib >= start
        with pytest.raises(FailedPrecondition, match="max_memory_mib"):
            await machine.resize(MachineShape(memory_mib=1 << 20))


async def test_a_later_daemon_finds_the_machine(guest: GuestArtifacts, saved: Path, place: Path) -> None:
    async with clone(guest, saved, place) as (hypervisor, machine):
        slot = await machine.attach_disk(Disk(id="root2", files=(str(guest.image),)))
        await machine.close()
        found = await hypervisor.recover(machine.directory)
        try:
            assert (found.pid, found.start_time, found.shape) == (
                machine.pid,
                machine.start_time,
                machine.shape,
            )
            async with agent_of(found) as agent:
                await agent.call(Ping())
            await found.detach_disk("root2")
            assert await found.attach_disk(Disk(id="new", files=(str(guest.image),))) != slot
            await found.stop()
            assert await found.wait() == "it was stopped"
            await reap(machine)
        finally:
            await found.stop()
        with pytest.raises(NotFound):
            await hypervisor.recover(machine.directory)


async def test_the_end_of_a_machine_is_told_with_its_reason(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    async with clone(guest, saved, place) as (hypervisor, machine):
        waiting = [asyncio.create_task(machine.wait()) for _ in range(3)]
        os.kill(machine.pid, signal.SIGKILL)
        assert {await task for task in waiting} == {"QEMU ended by signal 9"}
        with pytest.raises(Unavailable, match="signal 9"):
            await machine.attach_disk(Disk(id="d", files=(str(guest.image),)))
        with pytest.raises(Unavailable):
            await machine.memory()
        await machine.detach_disk("d")
        with pytest.raises(NotFound):
            await hypervisor.recover(machine.directory)


async def test_a_command_that_finds_qemu_gone_tells_why(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    async with clone(guest, saved, place) as (_, machine):
        os.kill(machine.pid, signal.SIGSTOP)
        asked = asyncio.create_task(machine.monitor.execute("query-status"))
        done, _ = await asyncio.wait((asked,), timeout=0.2)
        assert not done, "a QEMU that is stopped answers nothing"
        os.kill(machine.pid, signal.SIGKILL)
        with pytest.raises(Unavailable, match="has ended: QEMU ended by signal 9"):
            await asked


async def test_stop_that_is_cancelled_still_ends_the_machine(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    async with clone(guest, saved, place) as (_, machine):
        stopping = asyncio.create_task(machine.stop(grace=60))
        await asyncio.sleep(0.1)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        assert not process.pid_alive(machine.pid, machine.start_time)


async def test_a_restore_that_is_cancelled_leaves_nothing(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    hypervisor = qemu(guest, saved)
    template = await hypervisor.template(never)
    for delay in (0.0, 0.01, 0.03, 0.05):
        restoring = asyncio.create_task(
            hypervisor.restore(template, place / "m", tap_fd=None, share=place / "share")
        )
        await asyncio.sleep(delay)
        if restoring.cancel():
            with pytest.raises(asyncio.CancelledError):
                await restoring
        else:
            await (await restoring).stop()
            await hypervisor.discard(place / "m")
        assert not (place / "m" / "machine.json").exists()


async def test_a_machine_nobody_recorded_is_ended_too(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    async with clone(guest, saved, place) as (hypervisor, machine):
        await machine.close()
        (machine.directory / "machine.json").unlink()
        await hypervisor.discard(machine.directory)
        await process.wait_pid(machine.pid)
        await reap(machine)


@pytest.mark.parametrize("name", [templates.MEMORY, templates.STATE])
async def test_a_truncated_template_is_made_again(
    guest: GuestArtifacts, saved: Path, place: Path, name: str
) -> None:
    shutil.copytree(saved, place / "root", symlinks=True)
    path = next((place / "root").glob("template-*")) / name
    os.truncate(path, path.stat().st_size // 2)
    built: list[str] = []

    class Stop(Exception):
        pass

    async def refuse(machine: Machine) -> None:
        built.append(machine.directory.name)
        raise Stop

    hypervisor = qemu(guest, place / "root")
    with pytest.raises(Stop):
        await hypervisor.template(refuse)
    assert built
    assert not list((place / "root").glob("boot-*"))


async def test_a_template_changed_under_a_running_daemon_changes_no_clone(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    shutil.copytree(saved, place / "root", symlinks=True)
    hypervisor = qemu(guest, place / "root")
    template = await hypervisor.template(never)
    for name in (templates.MEMORY, templates.STATE):
        os.truncate(template.directory / name, 1000)
    machine = await hypervisor.restore(template, place / "m", tap_fd=None, share=place / "share")
    try:
        async with agent_of(machine) as agent:
            await agent.call(Ping())
    finally:
        await machine.stop()
        await hypervisor.discard(machine.directory)
        await hypervisor.retire(template)


async def test_a_template_that_was_thrown_away_makes_no_clone(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    shutil.copytree(saved, place / "root", symlinks=True)
    hypervisor = qemu(guest, place / "root")
    template = await hypervisor.template(never)
    await hypervisor.retire(template)
    assert not template.directory.exists()
    with pytest.raises(DataLoss, match="not in use any more"):
        await hypervisor.restore(template, place / "m", tap_fd=None, share=place / "share")
    assert not (place / "m").exists()


async def test_a_state_that_qemu_does_not_accept_is_thrown_away(
    guest: GuestArtifacts, saved: Path, place: Path
) -> None:
    shutil.copytree(saved, place / "root", symlinks=True)
    hypervisor = qemu(guest, place / "root")
    template = await hypervisor.template(never)
    state = os.memfd_create("state", os.MFD_CLOEXEC)
    os.write(state, b"\0" * 1000)
    os.dup2(state, hypervisor._saved[template.directory]._state, inheritable=False)
    os.close(state)
    with pytest.raises((DataLoss, Unavailable)):
        await hypervisor.restore(template, place / "m", tap_fd=None, share=place / "share")


async def test_a_guest_that_hangs_is_told_apart(guest: GuestArtifacts, place: Path) -> None:
    hypervisor = qemu(guest, place / "root")
    machine = await hypervisor.start(
        place / "m", MachineShape(memory_mib=256), tap_fd=None, share=place / "share"
    )
    try:
        with pytest.raises(DeadlineExceeded, match=r"did not come up within 0\.01 seconds"):
            await machine.wait_agent_port(0.01)
    finally:
        await machine.stop()
        await hypervisor.discard(machine.directory)


async def test_missing_pieces_are_named(guest: GuestArtifacts, place: Path) -> None:
    config = VmConfig(others={"qemu": {"accelerator": "tcg", "binary": "no-such-qemu"}})
    with pytest.raises(NotFound, match="no-such-qemu is not installed"):
        await qemu(guest, place, config).probe()
    absent = GuestArtifacts(kernel=place / "none", initrd=guest.initrd, image=guest.image, digest="x", size=0)
    with pytest.raises(NotFound, match="orlop guest build"):
        await qemu(absent, place).probe()


async def test_the_guest_is_found_once_it_was_built() -> None:
    made = await build(CACHE / "guest")
    assert find(GuestConfig(), CACHE / "guest") == made
    assert made.size < 64 << 20
