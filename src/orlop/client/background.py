"""An event loop in a thread of its own, for programs that have none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Generator, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager
from typing import Any, TypeVar

T = TypeVar("T")


class BackgroundLoop:
    """Runs coroutines for callers that wait; :meth:`close` ends the thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="orlop", daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Wait for the result. An interrupt (Ctrl-C) cancels the work, and waits until it has cleaned up."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            if future.cancel():
                concurrent.futures.wait([asyncio.run_coroutine_threadsafe(self._idle(), self._loop)])
            raise

    async def _idle(self) -> None:
        """Until nothing is being cancelled any more."""
        others = [task for task in asyncio.all_tasks() if task.cancelling()]
        await asyncio.gather(*others, return_exceptions=True)

    def iterate(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """The items of an asynchronous iterator; closing the generator closes it, too."""

        async def following() -> tuple[bool, T | None]:
            try:
                return True, await anext(items)
            except StopAsyncIteration:
                return False, None

        try:
            while True:
                more, item = self.call(following())
                if not more:
                    return
                yield item  # type: ignore[misc]  # only the end has None in place of an item
        finally:
            self.call(_closed(items))

    @contextmanager
    def entered(self, context: AbstractAsyncContextManager[T]) -> Iterator[T]:
        """An asynchronous context manager as a plain one."""
        value = self.call(_enter(context))
        try:
            yield value
        except BaseException as error:
            if not self.call(_leave(context, error)):
                raise
        else:
            self.call(_leave(context, None))

    def close(self) -> None:
        """End the thread."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _closed(items: AsyncIterator[Any]) -> None:
    if isinstance(items, AsyncGenerator):
        await items.aclose()


async def _enter(context: AbstractAsyncContextManager[T]) -> T:
    return await context.__aenter__()


async def _leave(context: AbstractAsyncContextManager[Any], error: BaseException | None) -> bool:
    return bool(await context.__aexit__(type(error) if error else None, error, None))
