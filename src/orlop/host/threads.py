"""Functions on threads, which a cancelled caller waits for.

A thread cannot be interrupted. Whoever were to leave it behind would undo what it is still doing, so a
cancellation is raised only when it has come back.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

from orlop.host.tasks import uncancelled

P = ParamSpec("P")
T = TypeVar("T")


async def call(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call ``function`` on a thread of the loop's pool and await its result."""
    work = partial(contextvars.copy_context().run, function, *args, **kwargs)
    return await uncancelled(asyncio.get_running_loop().run_in_executor(None, work))


def unheeded(function: Callable[[], object], *, name: str = "orlop-host") -> None:
    """Call ``function`` on a new thread that ends with it: for an end that takes long, and that nobody minds.

    Nobody waits for it, and what it raises goes to the log of the interpreter.
    """
    threading.Thread(target=function, name=name, daemon=True).start()


async def in_own_thread(
    function: Callable[[], T], *, name: str = "orlop-host", unwanted: Callable[[T], object] | None = None
) -> T:
    """Call ``function`` on a new thread that ends with it, and await its result.

    For a function that changes the thread's namespaces: it must never serve other work again. ``unwanted``
    releases what the function returned when the caller was cancelled meanwhile.
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
    return await uncancelled(future, unwanted=unwanted)
