"""Calls that outlive their callers, and callers that join a call.

A kubelet that ran out of patience sends the same RunPodSandbox again while the first one still
works. So the work belongs to a task of our own, keyed by what is being made; each caller only
waits for it. A caller that is cancelled goes away alone: the work goes on for the retry. When it
fails, whoever waits gets the error and the key is free again; the work has undone its own traces.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

from orlop.errors import Unavailable
from orlop.host.tasks import Tasks

T = TypeVar("T")


class JointCalls(Generic[T]):
    """Single flight: of calls with equal keys only one works, all get its result."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._flights: dict[Hashable, tuple[object, asyncio.Task[T]]] = {}

    def __contains__(self, key: Hashable) -> bool:
        return key in self._flights

    async def run(
        self,
        key: Hashable,
        request: object,
        work: Callable[[], Coroutine[Any, Any, T]],
        *,
        conflict: Callable[[], Exception] | None = None,
    ) -> T:
        """Join the running call for ``key``, or start ``work`` as one.

        A running call for an unequal ``request`` raises ``conflict()`` when that is given.
        """
        flight = self._flights.get(key)
        if flight is None:
            task = self._tasks.spawn(work(), f"call {key}", awaited=True)
            self._flights[key] = (request, task)
            task.add_done_callback(lambda _: self._flights.pop(key, None))
        else:
            running, task = flight
            if conflict is not None and running != request:
                raise conflict()
        return await wait_shielded(task, str(key))

    async def settled(self, key: Hashable) -> None:
        """Wait until no call for ``key`` is under way, whatever comes of it."""
        while (flight := self._flights.get(key)) is not None:
            await asyncio.wait((flight[1],))


async def wait_shielded(task: asyncio.Task[T], what: str) -> T:
    """The result of ``task``, which a cancelled waiter leaves running.

    Raises Unavailable when the task itself was cancelled, since the caller was not.
    """
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.cancelled() and not _cancelling():
            raise Unavailable(f"{what}: the daemon is stopping") from None
        raise


def _cancelling() -> bool:
    current = asyncio.current_task()
    return current is not None and current.cancelling() > 0
