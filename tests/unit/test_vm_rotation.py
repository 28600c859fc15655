"""Which templates there are, and for how long, with templates that are only names."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.config import VmConfig
from orlop.errors import Unavailable
from orlop.hypervisor.base import Accelerator, MachineShape, Template
from orlop.sandbox.vm import rotation
from orlop.sandbox.vm.clone import Cloner
from orlop.sandbox.vm.gate import Gate
from tests.patience import until

SHAPE = MachineShape(memory_mib=256)
TCG = Accelerator(kind="tcg", reason="for the test")


class Shelf:
    """A cloner, in so far as it has templates."""

    templated = True

    def __init__(self, *ages: float) -> None:
        self.made = 0
        self.retired: list[Template] = []
        self.failure = ""
        self.held: list[Template] = [self._make(age) for age in ages]

    def _make(self, age: float) -> Template:
        self.made += 1
        directory = Path(str(self.made))
        return Template(key="k", directory=directory, shape=SHAPE, accelerator=TCG, made=time.time() - age)

    @property
    def names(self) -> list[str]:
        return [one.directory.name for one in self.held]

    @property
    def templates(self) -> tuple[Template, ...]:
        return tuple(self.held)

    async def add_template(self) -> None:
        if self.failure:
            raise Unavailable(self.failure)
        self.held.append(self._make(0))

    async def retire_template(self, template: Template) -> None:
        assert len(self.held) > 1, "there would be none to start from"
        self.held.remove(template)
        self.retired.append(template)


@asynccontextmanager
async def kept(
    shelf: Shelf, gate: Gate | None = None, pressure: Callable[[], str] = lambda: "", **vm: Any
) -> AsyncIterator[asyncio.Task[None]]:
    keeping = rotation.keep(cast(Cloner, shelf), VmConfig(**vm), gate or Gate(1), pressure=pressure)
    task = asyncio.create_task(keeping)
    yield task
    task.cancel()
    await asyncio.wait((task,))


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "_LOOK_AGAIN", 0.01)
    monkeypatch.setattr(rotation, "_RETRY_AFTER", 0.01)


def test_one_for_ever_needs_nobody() -> None:
    shelf = cast(Cloner, Shelf(1e9))
    assert not rotation.wanted(shelf, VmConfig())
    assert rotation.wanted(shelf, VmConfig(templates=2))
    assert rotation.wanted(shelf, VmConfig(template_lifetime=60.0))


async def test_as_many_as_are_wanted() -> None:
    shelf = Shelf(1e9)
    async with kept(shelf, templates=3) as task:
        await until(lambda: shelf.names == ["1", "2", "3"])
        assert not task.done()
    assert not shelf.retired


async def test_one_that_has_served_its_time_serves_until_another_is_there() -> None:
    shelf = Shelf(100)
    shelf.failure = "no QEMU"
    async with kept(shelf, template_lifetime=50):
        await asyncio.sleep(0.05)
        assert shelf.names == ["1"]
        shelf.failure = ""
        await until(lambda: shelf.names == ["2"])


async def test_all_that_have_served_their_time_are_replaced() -> None:
    shelf = Shelf(100, 10, 60)
    async with kept(shelf, templates=3, template_lifetime=50):
        await until(lambda: shelf.names == ["2", "4", "5"])
    assert [one.directory.name for one in shelf.retired] == ["1", "3"]


async def test_nothing_is_made_while_a_pod_starts_or_memory_is_short() -> None:
    shelf, gate, short = Shelf(0), Gate(1), [""]
    async with gate.place(1), kept(shelf, gate, templates=2):
        await asyncio.sleep(0.05)
        assert shelf.names == ["1"]
    short[0] = "no memory"
    async with kept(shelf, pressure=lambda: short[0], templates=2):
        await asyncio.sleep(0.05)
        assert shelf.names == ["1"]
        short[0] = ""
        await until(lambda: shelf.names == ["1", "2"])
