"""Places for pulls: the registries take turns, and nobody waits behind one who waits for the network."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from orlop.errors import Unavailable
from orlop.images import places
from orlop.images.places import Places


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(places, "PATIENCE", 0.2)
    monkeypatch.setattr(places, "LEAST_TIME", 0.3)
    monkeypatch.setattr(places, "_TICK", 0.02)


class Run:
    """Pulls that go on until they are told to end."""

    def __init__(self, count: int) -> None:
        self.places = Places(count)
        self.began: list[str] = []
        self.tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, registry: str, moved: Callable[[], int] = lambda: 0) -> None:
        async def pull() -> None:
            async with self.places.taken(registry, moved):
                self.began.append(name)
                await asyncio.Event().wait()

        self.tasks[name] = asyncio.ensure_future(pull())

    async def until_begun(self, count: int) -> None:
        async with asyncio.timeout(60):
            while len(self.began) < count:  # noqa: ASYNC110 - nothing would set an event
                await asyncio.sleep(0.02)

    async def end(self, name: str) -> None:
        self.tasks[name].cancel()
        await asyncio.gather(self.tasks[name], return_exceptions=True)


@asynccontextmanager
async def running(count: int) -> AsyncIterator[Run]:
    run = Run(count)
    yield run
    for name in run.tasks:
        await run.end(name)


async def test_registries_take_turns() -> None:
    async with running(1) as run:
        for name in ("a1", "a2", "a3", "b1"):
            run.start(name, name[0])
        await run.until_begun(2)
        assert run.began[:2] == ["a1", "b1"]


async def test_a_place_is_free_when_its_pull_ends() -> None:
    async with running(2) as run:
        for name in ("a", "b", "c"):
            run.start(name, name)
        await run.until_begun(2)
        assert run.began[:2] == ["a", "b"]
        await run.end("b")
        await run.until_begun(3)
        assert run.began == ["a", "b", "c"]


async def test_slow_pulls_hold_up_nobody_and_the_slowest_goes_when_there_are_too_many() -> None:
    async with running(1) as run:
        paces = {f"slow{number}": 10 * (number + 1) for number in range(places.ASIDE)}
        for name, pace in paces.items():
            run.start(name, name, lambda pace=pace: pace)
        run.start("last", "last", lambda: 10_000)
        await run.until_begun(5)
        run.start("honest", "honest", lambda: 10_000)
        await run.until_begun(6)
        ended = [name for name, task in run.tasks.items() if task.done()]
        assert ended == ["slow0"]
        with pytest.raises(Unavailable, match="given up for others"):
            await run.tasks["slow0"]


async def test_one_that_is_cancelled_while_it_waits_leaves_nothing() -> None:
    async with running(1) as run:
        run.start("a", "a")
        run.start("b", "b")
        await asyncio.sleep(0.05)
        await run.end("b")
        await run.end("a")
        assert (run.places._waiting, run.places._placed, run.places._aside) == ([], [], [])
