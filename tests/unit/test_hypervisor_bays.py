"""Each bay is used once, and a machine says how many layers it still has bays for."""

from __future__ import annotations

from pathlib import Path

from orlop.hypervisor.base import MachineShape, Stacking
from orlop.hypervisor.qemu import bays, record
from orlop.hypervisor.qemu.machine import QemuMachine

EVERY = bays.bays(64, 96)
IMAGES = [bay for bay in EVERY if bay.read_only]
SCRATCHES = [bay for bay in EVERY if not bay.read_only]


def test_a_bay_is_chosen_once() -> None:
    spent: list[int] = []
    for bay in IMAGES:
        assert bays.choose(EVERY, spent, 1, read_only=True) == bay
        spent.append(bay.lun)
        assert bays.left(EVERY, spent, read_only=True) == len(IMAGES) - len(spent)
    assert bays.choose(EVERY, spent, 1, read_only=True) is None
    assert bays.left(EVERY, spent, read_only=False) == len(SCRATCHES)


def test_a_writable_bay_takes_disks_of_its_very_size() -> None:
    assert bays.choose(EVERY, (), 64 << 20, read_only=False) == SCRATCHES[0]
    assert bays.choose(EVERY, (), 65 << 20, read_only=False) is None
    assert bays.choose(EVERY, (), 96 << 20, read_only=False) is None
    volume = bays.choose(EVERY, (), 96 << 20, read_only=False, durable=True)
    assert volume is not None and volume.size == 96 << 20
    assert bays.choose(bays.bays(64, 64), (), 64 << 20, read_only=False, durable=True) not in SCRATCHES
    assert "no-flush" not in " ".join(bays.arguments([volume]))
    assert "no-flush" in " ".join(bays.arguments(SCRATCHES[:1]))


async def test_layers_stand_apart_as_long_as_there_is_a_bay_for_each(tmp_path: Path) -> None:
    spent = tuple(bay.lun for bay in IMAGES[:5])
    known = record.MachineRecord(
        pid=0, start_time=0, shape=MachineShape(memory_mib=64), base_memory_mib=64, max_memory_mib=64,
        bays=EVERY, spent=spent,
    )  # fmt: skip
    machine = QemuMachine(tmp_path, known)
    room = len(IMAGES) - len(spent)
    assert machine.stacking(room) is Stacking.APART
    assert machine.stacking(room + 1) is Stacking.TOGETHER
    await machine.close()
