"""How a guest's clock is measured and moved, with an agent whose clock and whose lateness are made up."""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import suppress
from typing import Any, cast

import pytest

from orlop.errors import DeadlineExceeded, Unimplemented
from orlop.sandbox.vm import clock
from orlop.sandbox.vm.clock import MILLISECOND, ClockKeeper, measure
from orlop.wire.messages import Clock, ClockReply


class LateAgent:
    """Its clock is ``ahead`` by so many nanoseconds; questions and answers take up to ``late`` seconds."""

    name = "the guest"
    closed = False

    def __init__(self, ahead: int, late: float = 0.0) -> None:
        self.ahead = ahead
        self.late = late
        self.asked: list[Clock] = []
        self.random = random.Random(1)

    async def call(self, request: Clock, timeout: float = 0) -> ClockReply:
        self.asked.append(request)
        await asyncio.sleep(self.random.random() * self.late)
        if request.step:
            self.ahead += request.shift
        told = time.time_ns() + self.ahead
        await asyncio.sleep(self.random.random() * self.late)
        return ClockReply(time=told)

    @property
    def moved(self) -> list[Clock]:
        return [one for one in self.asked if one.shift]


class StoppedMachine:
    def __init__(self) -> None:
        self.goes_on = asyncio.Event()

    async def resumed(self) -> None:
        await self.goes_on.wait()


async def kept(agent: LateAgent, *, fresh: bool, machine: StoppedMachine | None = None) -> asyncio.Task[None]:
    keeper = ClockKeeper(cast(Any, machine or StoppedMachine()), cast(Any, agent))
    task = asyncio.create_task(keeper.keep(fresh=fresh))
    await asyncio.sleep(0)
    await keeper.settled()
    return task


async def ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("ahead", [0, -3 * 10**9, 70 * MILLISECOND, 5])
async def test_the_bounds_are_true_however_late_the_answers_are(ahead: int) -> None:
    for late in (0.0, 0.02):
        bounds = await measure(cast(Any, LateAgent(ahead, late)))
        assert bounds.low <= ahead <= bounds.high


async def test_a_fresh_guest_is_set_even_by_a_little_and_a_running_one_is_led() -> None:
    agent = LateAgent(-30 * MILLISECOND)
    task = await kept(agent, fresh=True)
    assert [one.step for one in agent.moved] == [True] and abs(agent.ahead) < 10 * MILLISECOND
    await ended(task)
    agent = LateAgent(-30 * MILLISECOND)
    task = await kept(agent, fresh=False)
    assert [one.step for one in agent.moved] == [False]
    assert agent.moved[0].shift == pytest.approx(30 * MILLISECOND, abs=10 * MILLISECOND)
    await ended(task)


@pytest.mark.parametrize("ahead", [-(10**9), 10**9])
async def test_a_clock_that_is_far_off_is_set_at_once(ahead: int) -> None:
    agent = LateAgent(ahead)
    task = await kept(agent, fresh=False)
    assert [one.step for one in agent.moved] == [True] and abs(agent.ahead) < 10 * MILLISECOND
    await ended(task)


async def test_what_may_be_lateness_moves_nothing() -> None:
    agent = LateAgent(0, 0.05)
    task = await kept(agent, fresh=True)
    assert agent.moved == []
    await ended(task)


async def test_a_machine_that_goes_on_is_asked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "OFTEN", 3600.0)
    monkeypatch.setattr(clock, "SELDOM", 3600.0)
    agent, machine = LateAgent(0), StoppedMachine()
    task = await kept(agent, fresh=True, machine=machine)
    await asyncio.sleep(0.01)
    agent.ahead = -2 * 10**9
    machine.goes_on.set()
    async with asyncio.timeout(30):
        while not agent.moved:  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)
    machine.goes_on.clear()
    assert agent.moved[0].step
    await ended(task)


async def test_a_question_without_an_answer_is_not_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that was stopped for long lets one run out, and its clock is wrong when it goes on."""
    monkeypatch.setattr(clock, "OFTEN", 3600.0)
    monkeypatch.setattr(clock, "SELDOM", 3600.0)

    class Stopped(LateAgent):
        stopped = True

        async def call(self, request: Clock, timeout: float = 0) -> ClockReply:
            if self.stopped:
                raise DeadlineExceeded("the agent did not answer clock")
            return await super().call(request, timeout)

    agent, machine = Stopped(-2 * 10**9), StoppedMachine()
    task = await kept(agent, fresh=False, machine=machine)
    await asyncio.sleep(0.01)
    agent.stopped = False
    machine.goes_on.set()
    async with asyncio.timeout(30):
        while not agent.moved:  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.001)
    machine.goes_on.clear()
    assert abs(agent.ahead) < 10 * MILLISECOND
    await ended(task)


async def test_an_agent_of_before_is_left_alone() -> None:
    class Old(LateAgent):
        async def call(self, request: Clock, timeout: float = 0) -> ClockReply:
            raise Unimplemented("this agent does not know the operation 'clock'")

    task = await kept(Old(0), fresh=False)
    await task
