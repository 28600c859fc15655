"""Bays are used once each, by what fits them; further disks get units that no bay and no disk has."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import AlreadyExists, NotFound, ResourceExhausted
from orlop.hypervisor.base import Disk, MachineShape, Stacking
from orlop.hypervisor.qemu import bays, cmdline, record
from orlop.hypervisor.qemu.machine import QemuMachine

MIB = 1 << 20
EVERY = bays.bays(8, 16)
IMAGES = tuple(bay.lun for bay in EVERY if bay.read_only)
SCRATCHES = tuple(bay.lun for bay in EVERY if not bay.read_only)


def test_every_bay_has_a_unit_of_its_own_beside_the_root() -> None:
    units = [bay.lun for bay in EVERY]
    assert len(set(units)) == len(units) and 0 not in units
    assert {bay.size for bay in EVERY if not bay.read_only} == {8 * MIB, 16 * MIB}


def test_a_bay_is_chosen_once_and_only_for_what_fits() -> None:
    spent: list[int] = []
    for left in range(len(IMAGES), 0, -1):
        assert bays.left(EVERY, spent, read_only=True) == left
        bay = bays.choose(EVERY, spent, 4096, read_only=True)
        assert bay is not None and bay.read_only and bay.lun not in spent
        spent.append(bay.lun)
    assert bays.left(EVERY, spent, read_only=True) == 0
    assert bays.choose(EVERY, spent, 4096, read_only=True) is None, "none is used again"
    assert bays.choose(EVERY, spent, 7 * MIB, read_only=False) is None, "the guest knows the size"
    scratch = bays.choose(EVERY, spent, 8 * MIB, read_only=False)
    assert scratch is not None and not scratch.read_only
    assert bays.left(EVERY, spent, read_only=False) == len(SCRATCHES)


class Monitor:
    """Takes every command, and knows what it was given."""

    def __init__(self) -> None:
        self.nodes: set[str] = set()
        self.devices: set[str] = set()
        self.files: set[int] = set()
        self.machine: QemuMachine | None = None

    async def execute_with(self, file: int, command: str, arguments: Any) -> object:
        os.fstat(file)
        self.files.add(arguments["fdset-id"])
        return {}

    async def execute(self, command: str, arguments: Any = None, *, timeout: float = 0) -> object:
        await asyncio.sleep(0)
        if command == "blockdev-add":
            assert arguments["node-name"] not in self.nodes
            self.nodes.add(arguments["node-name"])
        elif command == "blockdev-del":
            self.nodes.discard(arguments["node-name"])
        elif command == "device_add":
            assert arguments["id"] not in self.devices
            self.devices.add(arguments["id"])
        elif command == "device_del":
            self.devices.remove(arguments["id"])
            assert self.machine is not None
            self.machine._on_event("DEVICE_DELETED", {"device": arguments["id"]})
        elif command == "query-fdsets":
            return [{"fdset-id": number} for number in sorted(self.files)]
        elif command == "remove-fd":
            self.files.remove(arguments["fdset-id"])
        return {}

    async def close(self) -> None:
        pass


@pytest.fixture
def layer(tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "layer"
    path.write_bytes(bytes(4096))
    yield os.fspath(path)


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[QemuMachine]:
    known = record.MachineRecord(
        pid=os.getpid(),
        start_time=1,
        shape=MachineShape(memory_mib=256),
        base_memory_mib=256,
        max_memory_mib=256,
        bays=EVERY,
    )
    one = QemuMachine(tmp_path, known)
    monitor = Monitor()
    monitor.machine = one
    one._monitor = monitor  # type: ignore[assignment]
    yield one
    await one.close()


def unit(places: tuple[str, ...]) -> int:
    return int(places[0].partition(":")[2].partition("/")[0])


async def test_layers_are_apart_exactly_as_long_as_bays_are_left(machine: QemuMachine, layer: str) -> None:
    for number in range(len(IMAGES)):
        left = len(IMAGES) - number
        assert machine.stacking(left) is Stacking.APART
        assert machine.stacking(left + 1) is Stacking.TOGETHER
        places = await machine.attach_disk(Disk(id=f"d{number}", files=(layer,)))
        assert places[0].startswith("scsi-kept:") and unit(places) in IMAGES
    assert machine.stacking(1) is Stacking.TOGETHER
    assert machine.stacking(0) is Stacking.APART, "what is attached already needs no bay"


async def test_a_bay_that_was_emptied_is_not_used_again_by_a_later_daemon_either(
    machine: QemuMachine, layer: str, tmp_path: Path
) -> None:
    seen = set()
    for number in range(len(IMAGES)):
        seen.add(unit(await machine.attach_disk(Disk(id=f"d{number}", files=(layer,)))))
        await machine.detach_disk(f"d{number}")
    assert seen == set(IMAGES)
    later = QemuMachine(tmp_path, record.load(tmp_path))
    later._monitor = machine._monitor
    places = await later.attach_disk(Disk(id="more", files=(layer,)))
    assert places[0].startswith("scsi:") and unit(places) not in {0, *IMAGES, *SCRATCHES}
    assert later.stacking(1) is Stacking.TOGETHER
    await later.close()


async def test_what_is_reversible_uses_up_nothing(machine: QemuMachine, layer: str) -> None:
    places = await machine.attach_disk(Disk(id="d", files=(layer, layer)), reversible=True)
    assert len(places) == 2 and all(place.startswith("scsi:") for place in places)
    assert unit(places) not in {0, *IMAGES, *SCRATCHES}
    await machine.detach_disk("d")
    assert machine.stacking(len(IMAGES)) is Stacking.APART
    assert not list(machine.directory.glob("d.*")), "what described the disk is gone"
    assert machine.monitor.files == set(), "and no file is left open"  # type: ignore[attr-defined]


async def test_units_are_not_used_again_soon_and_never_twice(machine: QemuMachine, layer: str) -> None:
    first = unit(await machine.attach_disk(Disk(id="a", files=(layer,)), reversible=True))
    await machine.detach_disk("a")
    second = unit(await machine.attach_disk(Disk(id="a", files=(layer,)), reversible=True))
    assert second == first + 1, "the guest may still be forgetting the disk before"
    assert second < cmdline.MAX_LUN


async def test_what_cannot_be_attached(
    machine: QemuMachine, layer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await machine.attach_disk(Disk(id="d", files=(layer,)))
    with pytest.raises(AlreadyExists):
        await machine.attach_disk(Disk(id="d", files=(layer,)))
    with pytest.raises(NotFound):
        await machine.attach_disk(Disk(id="e", files=(layer, os.fspath(tmp_path / "none"))))
    monkeypatch.setattr(cmdline, "MAX_LUN", len(EVERY))
    with pytest.raises(ResourceExhausted):
        await machine.attach_disk(Disk(id="f", files=(layer,)), reversible=True)
