"""Whose turn it is at the processors, when many pods start at once.

To restore a VM and to make a container in it takes a processor for a while, most of all under emulation.
Thirty at a time would all be ready at the very end, late for their probes, and their agents late for their
deadlines. So there are as many places as there are processors, and the pod that came first goes first with
each of its steps: pods get ready one after the other, the first as soon as if it were alone. The clock of a
step's time limits starts in its place; what a pod waits for one does not count.

A step that takes long waits for something else than a processor, such as a network plug-in: after
:data:`OVERTIME` it goes on without its place.
"""

from __future__ import annotations

import asyncio
import heapq
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count

OVERTIME = 5.0
"""Seconds for which a step has its place."""


class Gate:
    """Places at the processors. ``places`` is as many as this process may use unless given."""

    def __init__(self, places: int = 0, *, overtime: float = OVERTIME) -> None:
        self._free = places or len(os.sched_getaffinity(0))
        self._overtime = overtime
        self._numbers = count(1)
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._steps = 0
        self.on_end: Callable[[], None] = lambda: None
        """Called when a step has ended."""

    @property
    def idle(self) -> bool:
        """Whether no step is under way or waits."""
        return self._steps == 0

    @property
    def waiting(self) -> int:
        """Steps that wait for a place."""
        return sum(1 for _, _, ticket in self._waiting if not ticket.done())

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return self._free

    def number(self) -> int:
        """The number of a pod that comes now: a lower one goes first."""
        return next(self._numbers)

    @asynccontextmanager
    async def place(self, number: int) -> AsyncIterator[None]:
        """Wait for a place, and have it until the block ends or its time is up."""
        self._steps += 1
        try:
            async with self._held(number):
                yield
        finally:
            self._steps -= 1
            self.on_end()

    @asynccontextmanager
    async def _held(self, number: int) -> AsyncIterator[None]:
        await self._enter(number)
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self._free += 1
                self._admit()

        timer = asyncio.get_running_loop().call_later(self._overtime, leave)
        try:
            yield
        finally:
            timer.cancel()
            leave()

    async def _enter(self, number: int) -> None:
        if self._free > 0:
            self._free -= 1
            return
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        # Steps of one pod, which have one number, go in the order in which they came.
        heapq.heappush(self._waiting, (number, next(self._numbers), ticket))
        try:
            await ticket
        except asyncio.CancelledError:
            if ticket.done() and not ticket.cancelled():
                self._free += 1
                self._admit()
            raise

    def _admit(self) -> None:
        while self._free > 0 and self._waiting:
            _, _, ticket = heapq.heappop(self._waiting)
            if not ticket.done():
                self._free -= 1
                ticket.set_result(None)
