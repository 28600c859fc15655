"""Keeping a guest's clock in step with the host's.

A guest is told the time when it becomes a pod's, but on a busy host it hears of it late; and its clock
stands still while its VM is stopped. So it is asked, again and again. The guest's answer lies between the
question and its arrival: that gives bounds for how far its clock is off, which no load makes wrong, only
wide; several answers narrow them. A clock is moved only if it is off for sure. By more than :data:`STEP` it
is set at once; else it is led there slowly, so that no program sees time go back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import AsyncExitStack
from typing import NamedTuple

from orlop.errors import DeadlineExceeded, OrlopError
from orlop.host import tasks
from orlop.hypervisor.base import Machine
from orlop.sandbox.vm.agent import AgentClient
from orlop.wire.messages import Clock, State
from orlop.wire.values import Exit

log = logging.getLogger(__name__)

MILLISECOND = 10**6
STEP = 50 * MILLISECOND
"""Nanoseconds that a clock may be off without being set at once."""

ENOUGH = 10 * MILLISECOND
"""Bounds so close need no further question."""

OFTEN = 1.0
SELDOM = 120.0
"""Seconds between two looks at a clock: at first and after it was wrong, and in the long run."""

_LONGEST_AGO = 365 * 86400 * 10**9
_QUESTIONS = 5
_TIMEOUT = 30.0
_FIRST = 2.0


class Bounds(NamedTuple):
    """How far a guest's clock is ahead of the host's: at least ``low``, at most ``high`` nanoseconds."""

    low: int
    high: int

    @property
    def certain(self) -> int:
        """The part of it that is certain."""
        return self.low if self.low > 0 else min(self.high, 0)

    @property
    def middle(self) -> int:
        """The best guess."""
        return (self.low + self.high) // 2


async def measure(agent: AgentClient) -> Bounds:
    """Ask until the bounds are close, or they are not going to be. Raises what the call raises."""
    low, high = -(1 << 62), 1 << 62
    for _ in range(_QUESTIONS):
        asked = time.time_ns()
        told = (await agent.call(Clock(), _TIMEOUT)).time
        now = Bounds(told - time.time_ns(), told - asked)
        low, high = max(low, now.low), min(high, now.high)
        if low > high:
            low, high = now  # one of the clocks was set in between
        if high - low <= ENOUGH:
            break
    return Bounds(low, high)


class ClockKeeper:
    """Keeps one guest's clock. :meth:`keep` it as long as the pod lives."""

    def __init__(self, machine: Machine, agent: AgentClient) -> None:
        self._machine = machine
        self._agent = agent
        self._first = asyncio.Event()
        self._kept = False

    async def settled(self) -> None:
        """Return once the clock was looked at, if it is kept, or that takes too long."""
        if not self._kept:
            return
        try:
            async with asyncio.timeout(_FIRST):
                await self._first.wait()
        except TimeoutError:
            log.warning("the clock of %s is not known to be right", self._agent.name)

    async def keep(self, *, fresh: bool) -> None:
        """Look at the clock now and then, sooner after it was wrong or a clock jumped.

        In a ``fresh`` guest, in which nothing runs yet, it is set as exactly as it can be.
        """
        self._kept = True
        pause = OFTEN
        try:
            while not self._agent.closed:
                sure = await self._look(0 if fresh and not self._first.is_set() else STEP)
                self._first.set()
                pause = min(pause * 2, SELDOM) if sure else OFTEN
                if await self._wait(pause):
                    pause = OFTEN
        except OrlopError as error:
            # The pod's end, or an agent of before that knows nothing of clocks.
            log.debug("the clock of %s is left alone: %s", self._agent.name, error)
        finally:
            self._first.set()

    async def _look(self, slewed: int) -> bool:
        """Look at the clock and correct it; whether the next look may come later than this one did."""
        try:
            bounds = await self._correct(slewed)
        except DeadlineExceeded as error:
            # A machine that is stopped, or very late. It may be asked again, but not ever more often in vain.
            log.debug("the clock of %s is looked at later: %s", self._agent.name, error)
            return True
        return bounds.high - bounds.low <= STEP and abs(bounds.middle) <= STEP

    async def _correct(self, slewed: int) -> Bounds:
        """Correct the clock, slowly if it is off by at most ``slewed``; returns how it was."""
        bounds = await measure(self._agent)
        if bounds.certain:
            step = abs(bounds.middle) > slewed
            await self._agent.call(Clock(shift=-bounds.middle, step=step), _TIMEOUT)
            if abs(bounds.certain) > STEP:
                log.info(
                    "the clock of %s was %d ms %s and is set",
                    self._agent.name,
                    abs(bounds.middle) // MILLISECOND,
                    "ahead" if bounds.middle > 0 else "behind",
                )
        return bounds

    async def _wait(self, seconds: float) -> bool:
        """Wait, unless the machine goes on after a stop or the host's own clock is set; whether one did."""
        async with AsyncExitStack() as stack:
            waits = [
                await stack.enter_async_context(tasks.beside(work))
                for work in (self._machine.resumed(), _jump(seconds))
            ]
            done, _ = await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            return bool(done)


_LOOK = 10.0


async def _jump(within: float) -> None:
    """Return when the host's clock is set, or the host slept, if that is ``within`` so many seconds."""
    before = time.time_ns() - time.monotonic_ns()
    end = time.monotonic() + within
    while time.monotonic() < end:
        await asyncio.sleep(_LOOK)
        if abs(time.time_ns() - time.monotonic_ns() - before) > STEP:
            return
    await asyncio.Event().wait()


def when(exit_status: Exit, state: State) -> int:
    """The host's time of an exit that the guest kept: as long ago as it is by the guest's clock."""
    ago = state.clock - exit_status.finished_at if state.clock else 0  # an agent of before tells no clock
    return time.time_ns() - min(max(ago, 0), _LONGEST_AGO)
