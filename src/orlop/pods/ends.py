"""How the last containers have ended, for those who wait and come too late to ask the container itself."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import suppress

KEPT = 1024
"""Exit codes that are kept."""


class Ends:
    """Exit codes by the ids of containers, also of those that have gone."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._codes: OrderedDict[str, int] = OrderedDict()

    def note(self, container_id: str, code: int) -> None:
        """A container has ended."""
        self._codes[container_id] = code
        while len(self._codes) > KEPT:
            self._codes.popitem(last=False)
        # Each has an event of its own: whoever looks around meanwhile has the one that is set.
        self._news.set()
        self._news = asyncio.Event()

    async def rounds(self, interval: float) -> AsyncIterator[None]:
        """A turn at once, one after each end, and one after ``interval`` seconds without any; for ever."""
        while True:
            news = self._news
            yield
            with suppress(TimeoutError):
                async with asyncio.timeout(interval):
                    await news.wait()

    def code(self, container_id: str) -> int | None:
        """How it ended; None when that is not known, or not any more."""
        return self._codes.get(container_id)
