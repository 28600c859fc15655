"""Which disks a container's layers become, as long as a machine has lasting devices and after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import pytest

from orlop.hypervisor.base import Disk, Machine, Slot
from orlop.sandbox.spec import ContainerSpec
from orlop.sandbox.vm.files import ContainerFile
from orlop.sandbox.vm.plugs import Plugs


class FakeMachine:
    """Gives out ``lasting`` devices once each, then new ones."""

    def __init__(self, lasting: int) -> None:
        self.lasting = lasting
        self.pid = os.getpid()
        self.plugged: dict[str, Slot] = {}
        self._next = 0

    async def attach_disk(self, disk: Disk, *, hotplug: bool = False) -> Slot:
        assert disk.id not in self.plugged
        lasting = disk.read_only and self.lasting > 0
        self.lasting -= lasting
        self._next += 1
        self.plugged[disk.id] = Slot(lun=self._next, lasting=lasting)
        return self.plugged[disk.id]

    async def detach_disk(self, disk_id: str) -> None:
        self.plugged.pop(disk_id, None)


@pytest.fixture
def layers(tmp_path: Path) -> tuple[str, ...]:
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.erofs"
        path.write_bytes(bytes(4096))
        found.append(os.fspath(path))
    return tuple(found)


def plugs_of(machine: FakeMachine, place: Path) -> Plugs:
    return Plugs(
        cast(Machine, machine),
        place / "share",
        disk_directory=place / "disks",
        scratch_directory=place / "scratch",
        scratch_mib=8,
    )


def spec(name: str, layers: tuple[str, ...]) -> ContainerSpec:
    return ContainerSpec(id=name, pod_id="p", name=name, layers=layers)


async def plug(plugs: Plugs, wanted: ContainerSpec) -> tuple[ContainerFile, list[tuple[int, bool]]]:
    plan = plugs.plan(wanted)
    plugged = await plugs.plug(wanted, plan)
    held = ContainerFile(id=plan.id, disks=plugs.described(plan, plugged), scratch=plan.scratch)
    return held, [(disk.partitions, disk.lasting) for disk in plugged.root]


async def test_layers_have_devices_of_their_own_while_there_are_any(
    tmp_path: Path, layers: tuple[str, ...]
) -> None:
    machine = FakeMachine(lasting=4)
    plugs = plugs_of(machine, tmp_path)
    first, disks = await plug(plugs, spec("a", layers))
    assert disks == [(0, True)] * 3
    second, disks = await plug(plugs, spec("b", layers))
    assert disks == [(0, True)] * 3 and machine.lasting == 1, "two containers share their image's disks"
    await plugs.unplug(first, running=True)
    assert len(machine.plugged) == 4
    await plugs.unplug(second, running=True)
    assert machine.plugged == {}
    _, disks = await plug(plugs, spec("c", layers))
    assert disks == [(3, True)], "one disk with partitions, for three devices are not left"


async def test_a_layer_that_comes_twice_needs_partitions(tmp_path: Path, layers: tuple[str, ...]) -> None:
    _, disks = await plug(plugs_of(FakeMachine(lasting=9), tmp_path), spec("a", (layers[0], layers[0])))
    assert disks == [(2, True)]


async def test_a_later_daemon_shares_what_is_plugged(tmp_path: Path, layers: tuple[str, ...]) -> None:
    machine = FakeMachine(lasting=3)
    held, _ = await plug(plugs_of(machine, tmp_path), spec("a", layers))
    later = plugs_of(machine, tmp_path)
    later.adopt(held)
    _, disks = await plug(later, spec("b", layers))
    assert disks == [(0, True)] * 3 and len(machine.plugged) == 5
