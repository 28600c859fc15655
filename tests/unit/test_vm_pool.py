"""The pool's decisions, with clones that are only names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.config import PoolConfig, VmConfig
from orlop.errors import Unavailable
from orlop.host import scheduling
from orlop.hypervisor.base import Accelerator, MachineShape, MemoryUse, Template
from orlop.sandbox.vm import pool as pools
from orlop.sandbox.vm.clone import Clone, Cloner
from orlop.sandbox.vm.demand import BURST, HALF_LIFE, Bursts, Demand
from orlop.sandbox.vm.gate import Gate
from orlop.sandbox.vm.pool import Pool
from orlop.sandbox.vm.pressure import memory_pressure
from tests.patience import until

MIB = 1 << 20
SMALL = MachineShape(memory_mib=256)
BIG = MachineShape(memory_mib=1024)
HUGE = MachineShape(memory_mib=4096, vcpus=4)


class FakeMachine:
    pid = 0

    def __init__(self, shape: MachineShape) -> None:
        self.shape = shape

    async def memory(self) -> MemoryUse:
        return MemoryUse(pss=40 * MIB, private=30 * MIB, shared=10 * MIB)


class FakeAgent:
    closed = False

    async def close(self, reason: str) -> None:
        self.closed = True


class FakeClone(Clone):
    def __init__(self, directory: Path) -> None:
        super().__init__(directory, cast(Any, FakeMachine(SMALL)), cast(Any, FakeAgent()))
        self.death: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def wait(self) -> str:
        return await asyncio.shield(self.death)

    async def resize(self, shape: MachineShape) -> MachineShape:
        cast(FakeMachine, self.machine).shape = shape
        return shape


class FakeCloner(Cloner):
    def __init__(self, state: Path) -> None:
        config = VmConfig(default_memory_mib=256)
        super().__init__(config, cast(Any, None), state=state, scratch=state, image=Path())
        self.alive: dict[str, FakeClone] = {}
        self.made = 0
        self.origin: Template | None = None
        self.current: tuple[Template, ...] = ()
        self.failure = ""
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def templated(self) -> bool:
        return True

    @property
    def templates(self) -> tuple[Template, ...]:
        return self.current

    async def make(self) -> Clone:
        if self.failure:
            raise Unavailable(self.failure)
        self.made += 1
        clone = FakeClone(self.directory / str(self.made))
        clone.origin = self.origin
        self.alive[clone.id] = clone
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            await self.discard(clone.directory)
            raise
        return clone

    async def warm_up(self, clone: Clone) -> None:
        pass

    async def discard(self, directory: Path) -> None:
        self.alive.pop(directory.name, None)


@asynccontextmanager
async def pool_of(
    tmp_path: Path,
    *,
    size: int = 2,
    limit: int = 2048,
    most: int = 0,
    pressure: Callable[[], str] = lambda: "",
    gate: Gate | None = None,
) -> AsyncIterator[tuple[Pool, FakeCloner]]:
    cloner = FakeCloner(tmp_path)
    pool = Pool(
        PoolConfig(size=size, max_size=most, max_memory_mib=limit),
        cloner,
        SMALL,
        gate or Gate(1),
        pressure=pressure,
    )
    pool.open()
    try:
        yield pool, cloner
    finally:
        await pool.close()
        assert not cloner.alive or pool.size == 0


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "_QUIET", 0.0)
    monkeypatch.setattr(pools, "_CHECK_EVERY", 0.02)
    monkeypatch.setattr(pools, "_RETRY_AFTER", 0.02)


async def test_fills_is_claimed_and_refills(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, cloner):
        await until(lambda: pool.size == 2)
        clone = pool.claim(SMALL)
        assert clone is not None and clone.id in cloner.alive
        await until(lambda: pool.size == 2)
        assert cloner.made == 3
    assert set(cloner.alive) == {clone.id}


async def test_a_clone_whose_agent_is_gone_is_not_claimed(tmp_path: Path) -> None:
    """Its watcher may not have noticed so far."""
    async with pool_of(tmp_path) as (pool, _cloner):
        await until(lambda: pool.size == 2)
        first, second = pool._ready
        cast(FakeAgent, first.agent).closed = True
        async with pool._gate.place(1):
            assert pool.claim(SMALL) is second
            assert pool.claim(SMALL) is None
        await pool._cloner.discard(second.directory)


async def test_nothing_is_made_while_a_pod_starts(tmp_path: Path) -> None:
    gate = Gate(1)
    async with pool_of(tmp_path, gate=gate) as (pool, _cloner):
        await until(lambda: pool.size == 2)
        async with gate.place(1):
            assert pool.claim(SMALL) is not None
            await asyncio.sleep(0.1)
            assert pool.size == 1
        await until(lambda: pool.size == 2)


async def test_a_dead_clone_is_replaced(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, cloner):
        await until(lambda: pool.size == 2)
        first = next(iter(cloner.alive.values()))
        first.death.set_result("killed")
        await until(lambda: first.id not in cloner.alive and pool.size == 2)


async def test_clones_of_a_template_that_was_retired_are_replaced_one_after_the_other(tmp_path: Path) -> None:
    accelerator = Accelerator(kind="tcg", reason="for the test")
    old, new = (
        Template(key="k", directory=tmp_path / name, shape=SMALL, accelerator=accelerator)
        for name in ("old", "new")
    )
    async with pool_of(tmp_path) as (pool, cloner):
        cloner.current = (old,)
        cloner.origin = old
        await until(lambda: pool.size == 2)
        for clone in pool._ready:
            clone.origin = old
        sizes = set()

        def replaced() -> bool:
            sizes.add(pool.size)
            return pool.size == 2 and all(clone.origin is new for clone in pool._ready)

        cloner.origin = new
        cloner.current = (new,)
        await until(replaced)
        assert 0 not in sizes
        assert len(cloner.alive) == 2


async def test_shapes_that_pods_ask_for_are_kept_ready(tmp_path: Path) -> None:
    async with pool_of(tmp_path) as (pool, _cloner):
        await until(lambda: pool.size == 2)
        for _ in range(12):
            pool.claim(HUGE)
        await until(lambda: pool.size == 2)
        clone = pool.claim(HUGE)
        assert clone is not None
        assert clone.machine.shape == HUGE
        for _ in range(40):
            pool.claim(SMALL)
        await until(lambda: pool.size == 2)
        clone = pool.claim(SMALL)
        assert clone is not None and clone.machine.shape == SMALL


async def test_a_smaller_clone_serves_a_bigger_pod_but_not_the_reverse(tmp_path: Path) -> None:
    async with pool_of(tmp_path, size=1) as (pool, _):
        await until(lambda: pool.size == 1)
        assert pool.claim(MachineShape(memory_mib=128)) is None
        assert pool.claim(BIG) is not None


async def test_memory_bounds_the_pool(tmp_path: Path) -> None:
    async with pool_of(tmp_path, size=5, limit=100) as (pool, _):
        await until(lambda: "max_memory_mib" in pool.reason)
        assert pool.size == 2


async def test_memory_pressure_empties_it_and_its_end_fills_it(tmp_path: Path) -> None:
    short = [""]
    async with pool_of(tmp_path, pressure=lambda: short[0]) as (pool, cloner):
        await until(lambda: pool.size == 2)
        short[0] = "no memory"
        await until(lambda: pool.size == 0 and not cloner.alive)
        short[0] = ""
        await until(lambda: pool.size == 2)


async def test_a_failure_is_told_and_tried_again(tmp_path: Path) -> None:
    cloner = FakeCloner(tmp_path)
    cloner.failure = "no QEMU"
    pool = Pool(PoolConfig(size=1), cloner, SMALL, Gate(1), pressure=lambda: "")
    pool.open()
    await until(lambda: pool.reason == "no QEMU")
    cloner.failure = ""
    await until(lambda: pool.size == 1)
    await pool.close()
    assert not cloner.alive


async def test_closing_while_a_clone_is_being_made(tmp_path: Path) -> None:
    cloner = FakeCloner(tmp_path)
    cloner.gate.clear()
    pool = Pool(PoolConfig(size=1), cloner, SMALL, Gate(1), pressure=lambda: "")
    pool.open()
    await until(lambda: cloner.made == 1)
    await pool.close()
    assert not cloner.alive
    await pool.close()


def test_plan() -> None:
    demand = Demand()
    assert demand.plan(2, SMALL) == [SMALL, SMALL]
    for _ in range(3):
        demand.note(BIG)
    demand.note(SMALL)
    assert sorted(demand.plan(3, SMALL), key=lambda shape: shape.memory_mib) == [SMALL, BIG, BIG]
    assert demand.plan(0, SMALL) == []


async def test_a_burst_is_expected_again_within_bounds(tmp_path: Path) -> None:
    async with pool_of(tmp_path, most=5) as (pool, cloner):
        await until(lambda: pool.size == 2)
        for _ in range(4):
            pool.claim(SMALL)
        await until(lambda: pool.size == 4)
        for _ in range(9):
            pool.claim(SMALL)
        await until(lambda: pool.size == 5)
        # What was kept for a burst goes when it is long ago.
        pool._bursts._at -= 10 * HALF_LIFE
        pool._wake.set()
        await until(lambda: pool.size == 2)
    assert cloner.made >= 7


def test_a_burst_is_what_comes_within_seconds_and_fades() -> None:
    bursts = Bursts()
    assert bursts.expected(0) == 0
    for number in range(8):
        bursts.note(100 + number / 10)
    assert bursts.expected(101) == 8
    # One pod now and then is no burst, and takes nothing from the last one.
    for number in range(30):
        bursts.note(120 + number * 2 * BURST)
    assert 4 <= bursts.expected(720) <= 5
    assert bursts.expected(720 + 2 * HALF_LIFE) == 1 and bursts.expected(720 + 9 * HALF_LIFE) == 0


def test_processors_that_nobody_uses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduling.os, "sched_getaffinity", lambda pid: {0, 1, 2, 3})
    for running, free in ((1, 4), (2, 3), (5, 0), (40, 0)):
        (tmp_path / "stat").write_text(f"cpu 1 2 3\nprocs_running {running}\nprocs_blocked 0\n")
        assert scheduling.free_processors(tmp_path) == free
    assert scheduling.free_processors(tmp_path / "none") == 4


def test_pressure_is_read_from_proc(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    psi = tmp_path / "pressure/memory"
    info = tmp_path / "meminfo"
    info.write_text("MemTotal: 1000000 kB\nMemAvailable: 500000 kB\n")
    assert memory_pressure(tmp_path) == ""
    psi.write_text("some avg10=25.00 avg60=0.00 avg300=0.00 total=1\nfull avg10=0.00\n")
    assert "25 %" in memory_pressure(tmp_path)
    info.write_text("MemTotal: 1000000 kB\nMemAvailable: 50000 kB\n")
    assert "available" in memory_pressure(tmp_path)
    assert memory_pressure(tmp_path / "nothing") == ""
