"""Between a stand-in and what it stands in for: stdin, the size of the terminal, signals."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from orlop.bundle import output
from orlop.errors import OrlopError
from orlop.host.tasks import beside
from orlop.oci.companion import WINDOW_CHANGED, Companion
from orlop.sandbox.base import ProcessIO, StartedProcess

log = logging.getLogger(__name__)

Signal = Callable[[int], Awaitable[None]]


async def hear(companion: Companion, send: Signal) -> None:
    """Pass on the signals of a stand-in until it has ended."""
    async for number in companion.signals():
        try:
            await send(number)
        except OrlopError as error:
            log.debug("signal %d of process %d: %s", number, companion.pid, error)


async def resize(companion: Companion, io: ProcessIO) -> None:
    """Give a terminal the size of the stand-in's."""
    columns, rows = companion.size()
    if columns and rows:
        await io.resize(columns, rows)


async def feed(companion: Companion, io: ProcessIO) -> None:
    """Pass on what comes to a stand-in's stdin, and its end."""
    await companion.feed(io.write)
    await io.close_stdin()


async def accompany(companion: Companion, io: ProcessIO) -> None:
    """Serve stdin of a container that somebody has attached to, and drop its output, which goes elsewhere."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(io.close)
        if companion.stdin:
            await stack.enter_async_context(beside(feed(companion, io), "the stdin of a container"))
        async for _ in io.output():
            pass


async def run(companion: Companion, process: StartedProcess, *, tty: bool) -> int:
    """Connect an exec with its stand-in until it has ended; its exit code. Kills it if the stand-in dies."""
    async with AsyncExitStack() as stack:
        stack.push_async_callback(process.close)
        pump = await stack.enter_async_context(output.written(process, companion.sink(tty=tty)))

        async def send(number: int) -> None:
            if tty and number == WINDOW_CHANGED:
                await resize(companion, process)
            else:
                await process.signal(number)

        heard = await stack.enter_async_context(beside(hear(companion, send), "the signals of an exec"))
        if tty:
            await resize(companion, process)
        if companion.stdin:
            await stack.enter_async_context(beside(feed(companion, process), "the stdin of an exec"))
        ended = await stack.enter_async_context(beside(process.wait(), "the end of an exec"))
        await asyncio.wait((ended, heard), return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            return output.CODE_LOST
        await output.drained(pump)
        return ended.result().code
