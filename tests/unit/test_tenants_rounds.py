"""Who is next: one round at a time for each tenant."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest

from orlop.errors import Unavailable
from orlop.tenants import rounds
from orlop.tenants.rounds import Rounds


class Ring:
    """Rounds that a test lets go on one by one."""

    def __init__(self) -> None:
        self.begun: list[tuple[str, bool]] = []
        self.answers: list[float | None] = []
        self.fails = 0
        self._change = asyncio.Event()
        self._let = asyncio.Semaphore(0)
        self.rounds = Rounds(self._run)

    async def _run(self, name: str, whole: bool) -> float | None:
        self.begun.append((name, whole))
        self._change.set()
        await self._let.acquire()
        if self.fails:
            self.fails -= 1
            raise Unavailable("the API server does not answer")
        return self.answers.pop() if self.answers else None

    def let(self) -> None:
        """One round goes on."""
        self._let.release()

    async def until(self, *begun: tuple[str, bool]) -> None:
        """Wait until these rounds have begun, and no others."""
        while len(self.begun) < len(begun):
            self._change.clear()
            await self._change.wait()
        await asyncio.sleep(0)
        assert self.begun == list(begun)


@pytest.fixture
async def ring() -> AsyncIterator[Ring]:
    one = Ring()
    serving = asyncio.ensure_future(one.rounds.serve())
    yield one
    serving.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await serving


async def test_a_tenant_has_one_round_at_a_time_and_another_does_not_wait(ring: Ring) -> None:
    ring.rounds.ask("a")
    await ring.until(("a", True))
    ring.rounds.ask("a")
    ring.rounds.ask("a")
    ring.rounds.ask("b")
    await ring.until(("a", True), ("b", True))
    ring.let()
    ring.let()
    await ring.until(("a", True), ("b", True), ("a", True))


async def test_a_count_becomes_whole_when_anybody_asks_for_that(ring: Ring) -> None:
    ring.rounds.ask("a", 0.01, whole=False)
    await ring.until(("a", False))
    ring.rounds.ask("a", 0.01, whole=False)
    ring.rounds.ask("a", 0.01)
    ring.rounds.ask("a", 0.01, whole=False)
    ring.let()
    await ring.until(("a", False), ("a", True))


async def test_what_failed_is_tried_again_whole_and_what_asks_for_more_gets_it(
    ring: Ring, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rounds, "FIRST_PAUSE", 0.01)
    ring.fails, ring.answers = 1, [0.01]
    ring.rounds.ask("a", whole=False)
    await ring.until(("a", False))
    ring.let()
    await ring.until(("a", False), ("a", True))
    ring.let()
    await ring.until(("a", False), ("a", True), ("a", True))
