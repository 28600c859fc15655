"""How the last containers have ended, for those who wait and come too late to ask the container itself."""

from __future__ import annotations

import asyncio
from collections import OrderedDict

KEPT = 1024
"""Exit codes that are kept."""


class Ends:
    """Exit codes by the ids of containers, also of those that have gone; :attr:`news` is set at each."""

    def __init__(self) -> None:
        self.news = asyncio.Event()
        self._codes: OrderedDict[str, int] = OrderedDict()

    def note(self, container_id: str, code: int) -> None:
        """A container has ended."""
        self._codes[container_id] = code
        while len(self._codes) > KEPT:
            self._codes.popitem(last=False)
        self.news.set()

    def code(self, container_id: str) -> int | None:
        """How it ended; None when that is not known, or not any more."""
        return self._codes.get(container_id)
