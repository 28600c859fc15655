"""Which disks a container's layers become, and who shares them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import msgspec
import pytest

from orlop.hypervisor.base import Disk, Machine, Stacking
from orlop.sandbox.spec import ContainerSpec, ImageVolume, Mount, Root
from orlop.sandbox.vm.files import ContainerFile
from orlop.sandbox.vm.plugs import Plugs
from orlop.sandbox.vm.volumes import Volumes
from orlop.sandbox.vm.warm import ReadyLayer
from orlop.wire.values import PluggedDisk


class FakeMachine:
    """Likes layers apart while it has ``room`` for them."""

    confinement = None

    def __init__(self, room: int) -> None:
        self.room = room
        self.pid = os.getpid()
        self.plugged: dict[str, Disk] = {}
        self.attached = 0

    def stacking(self, layers: int) -> Stacking:
        return Stacking.APART if layers <= self.room else Stacking.TOGETHER

    async def attach_disk(self, disk: Disk, *, reversible: bool = False) -> tuple[str, ...]:
        assert disk.id not in self.plugged
        self.room -= disk.read_only and self.room > 0
        self.attached += 1
        self.plugged[disk.id] = disk
        return tuple(f"here:{self.attached}/{number}" for number, _ in enumerate(disk.files))

    async def detach_disk(self, disk_id: str) -> None:
        self.plugged.pop(disk_id, None)


class NoVolumes:
    """A guest that holds no volume."""

    @property
    def copies(self) -> NoVolumes:
        return self

    async def place(self, spec: ContainerSpec) -> dict[str, tuple[str, str]]:
        return {}

    async def release(self, container_id: str) -> None:
        return None


@pytest.fixture
def layers(tmp_path: Path) -> tuple[str, ...]:
    found = []
    for number in range(3):
        path = tmp_path / f"{number}.erofs"
        path.write_bytes(bytes(4096))
        found.append(os.fspath(path))
    return tuple(found)


def plugs_of(machine: FakeMachine, place: Path, ready: ReadyLayer | None = None) -> Plugs:
    return Plugs(
        cast(Machine, machine),
        place / "share",
        scratch_directory=place / "scratch",
        scratch_mib=8,
        volumes=cast(Volumes, NoVolumes()),
        ready=ready,
    )


def spec(name: str, layers: tuple[str, ...]) -> ContainerSpec:
    return ContainerSpec(id=name, pod_id="p", name=name, root=Root(layers=layers))


async def plug(plugs: Plugs, wanted: ContainerSpec) -> tuple[ContainerFile, list[int]]:
    """What is held then, and how many file systems each disk of the root has."""
    plan = plugs.plan(wanted)
    plugged = await plugs.plug(wanted, plan)
    held = msgspec.structs.replace(plan, disks=plugged.disks)
    assert [disk.id for disk in held.disks.root] == [disk.id for disk in plan.disks.root]
    assert len({place for disk in held.disks.root for place in disk.at}) == len(wanted.root.layers)
    return held, [len(disk.at) for disk in plugged.disks.root]


async def test_layers_have_disks_of_their_own_while_the_machine_likes_it(
    tmp_path: Path, layers: tuple[str, ...]
) -> None:
    machine = FakeMachine(room=4)
    plugs = plugs_of(machine, tmp_path)
    first, disks = await plug(plugs, spec("a", layers))
    assert disks == [1, 1, 1]
    second, disks = await plug(plugs, spec("b", layers))
    assert disks == [1, 1, 1] and machine.room == 1, "two containers share their image's disks"
    assert first.disks.root == second.disks.root and first.disks.scratch != second.disks.scratch
    await plugs.unplug(first, running=True)
    assert len(machine.plugged) == 4
    await plugs.unplug(second, running=True)
    assert machine.plugged == {}
    _, disks = await plug(plugs, spec("c", layers))
    assert disks == [3], "one disk for all, for there is no room for three"


async def test_a_layer_that_comes_twice_is_on_one_disk(tmp_path: Path, layers: tuple[str, ...]) -> None:
    _, disks = await plug(plugs_of(FakeMachine(room=9), tmp_path), spec("a", (layers[0], layers[0])))
    assert disks == [2]


async def test_an_image_volume_is_one_disk_and_shared_with_a_root(
    tmp_path: Path, layers: tuple[str, ...]
) -> None:
    machine = FakeMachine(room=9)
    plugs = plugs_of(machine, tmp_path)
    mounts = tuple(
        Mount(container_path=path, image=ImageVolume(image_id="i", layers=stack))
        for path, stack in (("/all", layers), ("/one", layers[:1]))
    )
    wanted = msgspec.structs.replace(spec("a", layers), mounts=mounts)
    plan = plugs.plan(wanted)
    plugged = await plugs.plug(wanted, plan)
    by_id = {disk.id: disk for disk in plugged.disks.volumes}
    assert len(by_id[plugged.volumes["/all"]].at) == 3
    assert by_id[plugged.volumes["/one"]] == plugged.disks.root[0]
    await plugs.unplug(msgspec.structs.replace(plan, disks=plugged.disks), running=True)
    assert machine.plugged == {}


async def test_a_later_daemon_shares_what_is_plugged(tmp_path: Path, layers: tuple[str, ...]) -> None:
    machine = FakeMachine(room=3)
    held, _ = await plug(plugs_of(machine, tmp_path), spec("a", layers))
    later = plugs_of(machine, tmp_path)
    later.adopt(held)
    _, disks = await plug(later, spec("b", layers))
    assert disks == [1, 1, 1] and len(machine.plugged) == 5


async def test_a_disk_that_a_killed_daemon_attached_and_did_not_write_down(
    tmp_path: Path, layers: tuple[str, ...]
) -> None:
    machine = FakeMachine(room=9)
    first = plugs_of(machine, tmp_path)
    plan = first.plan(spec("a", layers))
    await first.plug(spec("a", layers), plan)
    later = plugs_of(machine, tmp_path)
    later.adopt(plan)
    held, _ = await plug(later, spec("b", layers))
    assert all(disk.at for disk in held.disks.root)
    await later.unplug(held, running=True)
    await later.unplug(plan, running=True)
    assert machine.plugged == {}


async def ready_layer(machine: FakeMachine, place: Path) -> ReadyLayer:
    """A disk that the guest has mounted for whoever comes first."""
    path = place / "ready.img"
    path.write_bytes(b"")
    at = await machine.attach_disk(Disk(id="ready", files=(os.fspath(path),), read_only=False))
    return ReadyLayer(PluggedDisk(id="ready", at=at), path)


async def test_the_layer_that_is_ready_is_the_first_containers_alone(
    tmp_path: Path, layers: tuple[str, ...]
) -> None:
    machine = FakeMachine(room=12)
    ready = await ready_layer(machine, tmp_path)
    plugs = plugs_of(machine, tmp_path, ready)
    first, second = (plugs.plan(spec(name, layers)) for name in ("first", "second"))
    assert (first.disks.scratch, first.scratch) == (ready.disk, os.fspath(ready.path))
    assert second.disks.scratch == PluggedDisk(id="rw-second")
    plugged = [
        await plugs.plug(spec(name, layers), plan) for name, plan in (("first", first), ("second", second))
    ]
    assert plugged[0].disks.scratch == ready.disk
    assert plugged[1].disks.scratch is not None and plugged[1].disks.scratch.id == "rw-second"
    await plugs.unplug(first, running=True)
    assert "ready" not in machine.plugged and not ready.path.exists()
    assert "rw-second" in machine.plugged
    third = plugs.plan(spec("third", layers))
    assert third.disks.scratch == PluggedDisk(id="rw-third")


async def test_a_container_that_writes_to_no_disk_leaves_the_ready_layer_to_the_next(
    tmp_path: Path, layers: tuple[str, ...]
) -> None:
    machine = FakeMachine(room=12)
    ready = await ready_layer(machine, tmp_path)
    plugs = plugs_of(machine, tmp_path, ready)
    rooted = ContainerSpec(id="rooted", pod_id="p", name="rooted", root=Root(directory="/srv"))
    assert plugs.plan(rooted).disks.scratch is None
    assert plugs.plan(spec("next", layers)).disks.scratch == ready.disk


async def test_what_is_ready_goes_with_a_container_that_could_not_be_made(
    tmp_path: Path, layers: tuple[str, ...]
) -> None:
    machine = FakeMachine(room=12)
    ready = await ready_layer(machine, tmp_path)
    plugs = plugs_of(machine, tmp_path, ready)
    plan = plugs.plan(spec("first", layers))
    await plugs.unplug(plan, running=True)  # before anything was plugged
    assert "ready" not in machine.plugged and not ready.path.exists()
