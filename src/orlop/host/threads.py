"""Run one function on a thread of its own that ends with it.

A thread that changed a namespace must never serve other work again, so these calls cannot use
the loop's shared pool.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

from orlop.host.tasks import uncancelled

T = TypeVar("T")


async def in_own_thread(function: Callable[[], T], *, name: str = "orlop-host") -> T:
    """Call ``function`` on a new thread and await its result.

    A cancellation waits for the function, which cannot be interrupted, and is raised after it:
    the caller may therefore undo what was done. Functions given here are short.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def deliver(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = function()
        except BaseException as error:  # delivered to the awaiting task
            failure = error
        loop.call_soon_threadsafe(deliver, result, failure)

    threading.Thread(target=body, name=name, daemon=True).start()
    return await uncancelled(future)
