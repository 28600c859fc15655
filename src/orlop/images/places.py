"""Who may pull now: a few at a time, the registries in turn, and nobody behind one who only waits.

A place is for a pull that keeps the machine busy. One that has had its place for a while, and others wait,
goes on beside them (it is *aside*): its registry is slow, or its image is large. Only when many are aside
the slowest of them has to go, and may be tried again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orlop.errors import Unavailable

PATIENCE = 20.0
"""Seconds for which a pull has its place to itself though others wait."""

ASIDE = 4
"""Pulls that may go on aside, for each place."""

LEAST_TIME = 60.0
"""Seconds that a pull has in any case."""

_TICK = 1.0


class _PlacedPull:
    def __init__(self, registry: str, moved: Callable[[], int]) -> None:
        self.registry = registry
        self.moved = moved
        self.since = time.monotonic()
        self.admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.deadline = asyncio.timeout(None)

    @property
    def age(self) -> float:
        return time.monotonic() - self.since

    @property
    def pace(self) -> float:
        """Bytes a second since it was admitted."""
        return self.moved() / max(self.age, 0.001)


class Places:
    """``count`` places. Nothing here runs by itself: whoever waits looks for room now and then."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._waiting: list[_PlacedPull] = []
        self._placed: list[_PlacedPull] = []
        self._aside: list[_PlacedPull] = []

    @asynccontextmanager
    async def taken(self, registry: str, moved: Callable[[], int]) -> AsyncIterator[None]:
        """Wait for a place for a pull from ``registry``, of which ``moved`` tells the bytes that came.

        Raises Unavailable in the block when it has to go for others.
        """
        pull = _PlacedPull(registry, moved)
        self._waiting.append(pull)
        try:
            self._look_for_room()
            while not pull.admitted.done():
                await asyncio.wait((pull.admitted,), timeout=_TICK)
                self._look_for_room()
            try:
                async with pull.deadline:
                    yield
            except TimeoutError as error:
                if not pull.deadline.expired():
                    raise
                raise Unavailable(
                    f"the pull from {registry} brought {moved()} bytes in {pull.age:.0f} s and "
                    "was given up for others that wait; try again"
                ) from error
        finally:
            for pulls in (self._waiting, self._placed, self._aside):
                if pull in pulls:
                    pulls.remove(pull)
            self._look_for_room()

    def _look_for_room(self) -> None:
        while self._waiting and (len(self._placed) < self._count or self._made_room()):
            pull = min(self._waiting, key=lambda each: self._share(each.registry))
            self._waiting.remove(pull)
            pull.since = time.monotonic()
            self._placed.append(pull)
            pull.admitted.set_result(None)

    def _share(self, registry: str) -> int:
        """How many pulls of a registry run; of equals the one that came first is taken."""
        return sum(each.registry == registry for each in (*self._placed, *self._aside))

    def _made_room(self) -> bool:
        """Put the pull aside that has had its place for longest, if that is long enough."""
        oldest = self._placed[0]
        if oldest.age < PATIENCE:
            return False
        if len(self._aside) >= ASIDE * self._count:
            self._send_away()
            return False
        self._placed.remove(oldest)
        self._aside.append(oldest)
        return True

    def _send_away(self) -> None:
        slow = [each for each in self._aside if each.age >= LEAST_TIME and each.deadline.when() is None]
        if slow:
            min(slow, key=lambda each: each.pace).deadline.reschedule(asyncio.get_running_loop().time())
