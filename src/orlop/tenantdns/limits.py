"""What a tenant may take of the process that answers all of them."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from orlop.errors import ResourceExhausted

SHARE: Final = 0.2
"""Of one processor, for the questions of one tenant on one node."""
BURST: Final = 0.1
"""Seconds of a processor that it may have saved up."""


class TimeShare:
    """Processor time, saved up by the second and spent by the question."""

    def __init__(
        self, share: float = SHARE, burst: float = BURST, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._share, self._burst, self._clock = share, burst, clock
        self._left, self._seen = burst, clock()

    @contextmanager
    def spending(self) -> Iterator[None]:
        """What the thread does within is paid for."""
        begun = time.thread_time()
        try:
            yield
        finally:
            self.spend(time.thread_time() - begun)

    def spend(self, seconds: float) -> None:
        """Pay, also with what is not there yet."""
        self._earn()
        self._left -= seconds

    def pause(self) -> float:
        """Seconds until there is something to spend again; 0 when there is."""
        self._earn()
        return max(-self._left / self._share, 0.0)

    async def wait(self) -> None:
        """Wait until there is. Of those who wait, one after the other finds whether there still is."""
        pause = self.pause()
        while pause:
            await asyncio.sleep(pause)
            pause = self.pause()

    def _earn(self) -> None:
        now = self._clock()
        self._left = min(self._left + (now - self._seen) * self._share, self._burst)
        self._seen = now


class AtOnce:
    """How much goes on at once, in all and for each caller by its address."""

    def __init__(self, what: str, *, together: int, each: int) -> None:
        self._what, self._together, self._each = what, together, each
        self._running: Counter[str] = Counter()
        self._sum = 0

    @contextmanager
    def one(self, caller: str) -> Iterator[None]:
        """One more, until the block ends. Raises ResourceExhausted."""
        if self._sum >= self._together or self._running[caller] >= self._each:
            raise ResourceExhausted(f"{caller} has, or all have together, too many {self._what} at once")
        self._sum += 1
        self._running[caller] += 1
        try:
            yield
        finally:
            self._sum -= 1
            self._running[caller] -= 1
            if not self._running[caller]:
                del self._running[caller]
