"""Who is next: one round at a time for each tenant, several tenants at once."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

from orlop.errors import Aborted, OrlopError

log = logging.getLogger(__name__)

AT_ONCE: Final = 8
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 60.0
"""Seconds before a round that failed is tried again: each time twice as long."""


class Rounds:
    """Runs a round for each tenant that somebody asked for.

    Asked for while it runs, there will be one more; asked for ten times before it begins, there is one. A
    round is ``whole``, or only counts what is used: that is what pods that come and go ask for. ``run``
    returns the seconds after which to ask again by ourselves, or None.
    """

    def __init__(self, run: Callable[[str, bool], Awaitable[float | None]]) -> None:
        self._run = run
        self._whole: set[str] = set()
        self._wanted: dict[str, None] = {}
        self._running: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._ready = asyncio.Event()

    def ask(self, name: str, after: float = 0.0, *, whole: bool = True) -> None:
        """Ask for a round, in so many seconds at the latest."""
        if whole:
            self._whole.add(name)
        loop, timer = asyncio.get_running_loop(), self._timers.get(name)
        if after and timer is not None and timer.when() <= loop.time() + after:
            return
        if timer is not None:
            timer.cancel()
            del self._timers[name]
        if after:
            self._timers[name] = loop.call_later(after, partial(self.ask, name, whole=False))
        else:
            self._wanted[name] = None
            self._ready.set()

    async def serve(self) -> None:
        """Run rounds until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(self._work())
        finally:
            for timer in self._timers.values():
                timer.cancel()

    async def _work(self) -> None:
        while True:
            name = await self._next()
            self._running.add(name)
            try:
                after = await self._once(name)
            finally:
                self._running.discard(name)
            if name in self._wanted:
                self._ready.set()
            elif after is not None:
                self.ask(name, after)

    async def _next(self) -> str:
        while True:
            for name in self._wanted:
                if name not in self._running:
                    del self._wanted[name]
                    return name
            self._ready.clear()
            await self._ready.wait()

    async def _once(self, name: str) -> float | None:
        whole = name in self._whole
        self._whole.discard(name)
        try:
            after = await self._run(name, whole)
        except OrlopError as error:
            self._whole.add(name)
            failures = self._failures.get(name, 0)
            self._failures[name] = failures + 1
            pause = min(FIRST_PAUSE * 2.0 ** min(failures, 10), LONGEST_PAUSE)
            # That something changed in between is everyday life.
            level = logging.DEBUG if isinstance(error, Aborted) else logging.WARNING
            log.log(level, "tenant %s: %s; again in %g s", name, error, pause)
            return pause
        self._failures.pop(name, None)
        return after
