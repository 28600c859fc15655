"""A QEMU that was taken over answers as it likes: its own pod may fail by it, with an error that says so."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import Unavailable
from orlop.hypervisor.base import MachineShape
from orlop.hypervisor.qemu import machine as machines
from orlop.hypervisor.qemu import record
from orlop.hypervisor.qemu.machine import QemuMachine

NOBODY = 1 << 30


class Monitor:
    def __init__(self, answer: object) -> None:
        self.answer = answer

    async def execute(self, command: str, arguments: Any = None, *, timeout: float = 0) -> object:
        return self.answer

    async def close(self) -> None:
        pass


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[QemuMachine]:
    shape = MachineShape(memory_mib=128)
    known = record.MachineRecord(
        pid=NOBODY, start_time=0, shape=shape, base_memory_mib=128, max_memory_mib=512
    )
    one = QemuMachine(tmp_path, known)
    one._watch.cancel()
    yield one
    await one.close()


@pytest.mark.parametrize("answer", [0, -5, "much", None, [], {}])
async def test_sizes_that_make_no_sense(machine: QemuMachine, answer: object) -> None:
    machine._monitor = Monitor(answer)  # type: ignore[assignment]
    with pytest.raises(Unavailable, match="makes no sense"):
        await machine._resize_memory(256)


@pytest.mark.parametrize("answer", [[{}], [{"props": 3, "type": "c"}], [{"props": {}}]])
async def test_processors_that_make_no_sense(machine: QemuMachine, answer: object) -> None:
    machine._monitor = Monitor(answer)  # type: ignore[assignment]
    with pytest.raises(Unavailable, match="makes no sense"):
        await machine._add_vcpus(2)


async def test_processors_of_any_kind_are_in_some_order(machine: QemuMachine) -> None:
    slots = [{"type": "c", "props": {"socket-id": number}} for number in ("x", None, 3)]
    machine._monitor = Monitor(slots)  # type: ignore[assignment]
    assert await machine._add_vcpus(2) == 2
    machine._monitor = Monitor("none")  # type: ignore[assignment]
    assert await machine._add_vcpus(2) == 0


async def test_a_console_that_makes_no_sense_does_not_keep_it_alive(
    machine: QemuMachine, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed: list[int] = []

    async def kill(pid: int, start_time: int) -> None:
        killed.append(pid)

    monkeypatch.setattr(machines.process, "kill_pid", kill)
    machine._monitor = Monitor("a")  # no base64
    assert await machine.console_tail() == ""
    await machine._go_down("it was asked to")
    assert killed == [NOBODY]


async def test_many_events_are_not_kept(machine: QemuMachine) -> None:
    machine._monitor = Monitor({"status": "running"})  # type: ignore[assignment]
    for _ in range(10_000):
        machine._on_event("MIGRATION", {"status": "setup"})
        machine._on_event("STOP", {})
    assert machine.migration.qsize() < 100
    assert len(machine._tasks) < 5
