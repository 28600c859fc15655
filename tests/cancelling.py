"""Cancel something at every point at which it can be, one run for each."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

from orlop.host.tasks import beside

MANY = 3000
"""More turns of the event loop than anything here takes."""


async def cancelled_everywhere(make: Callable[[], Coroutine[Any, Any, Any]]) -> AsyncIterator[bool]:
    """Run ``make()`` again and again, cancelled after one more turn of the event loop each time.

    A turn is the smallest thing that can be between two steps of any of the tasks it is made of. After
    each run this yields, so that the caller can look whether anything is left: true after a run that
    came to its end before the cancellation did, which is the last.
    """
    for turns in range(1, MANY):
        async with beside(make()) as task:
            for _ in range(turns):
                await asyncio.sleep(0)
            ended = task.done()
            task.cancel()
            try:
                await task
            except asyncio.CancelledError:
                assert not ended
            else:
                ended = True
        yield ended
        if ended:
            return
    raise AssertionError(f"it has not ended after {MANY} turns")
