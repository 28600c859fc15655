"""One-time tokens that stand for a prepared request in a streaming URL.

Whoever holds the URL may use it once, within a short time; the CRI call that made it carried
the request itself, so that nothing in the URL can be forged.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from orlop.errors import ResourceExhausted

MAX_TOKENS = 1000

T = TypeVar("T")


class TokenCache(Generic[T]):
    """Requests waiting for their connection: at most :data:`MAX_TOKENS`, each for ``ttl`` seconds."""

    def __init__(self, ttl: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[str, tuple[float, T]] = OrderedDict()

    def insert(self, request: T) -> str:
        """Keep a request; returns its token. Raises ResourceExhausted when too many wait."""
        self._expire()
        if len(self._entries) >= MAX_TOKENS:
            raise ResourceExhausted(
                f"{MAX_TOKENS} streaming requests wait for their connection already; try again later"
            )
        token = secrets.token_urlsafe(16)
        self._entries[token] = (self._clock() + self._ttl, request)
        return token

    def consume(self, token: str) -> T | None:
        """The request behind a token, once; None when it is unknown, used or too old."""
        self._expire()
        entry = self._entries.pop(token, None)
        return entry[1] if entry else None

    def _expire(self) -> None:
        now = self._clock()
        while self._entries:
            token, (deadline, _) = next(iter(self._entries.items()))
            if deadline > now:
                return
            del self._entries[token]
