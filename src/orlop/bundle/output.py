"""What a process writes that a front's caller has started, in the files and FIFOs of that caller."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from orlop.host.tasks import beside
from orlop.sandbox.base import StartedProcess
from orlop.sandbox.rawoutput import RawOutput
from orlop.sandbox.spec import Sink

CODE_LOST = 137
"""The exit code of a process of which nobody knows how it ended."""

DRAIN_TIME = 2.0
"""Seconds that what has ended may have output left: what it left running may hold that open for ever, and
a FIFO may have no reader."""


@asynccontextmanager
async def written(process: StartedProcess, sink: Sink) -> AsyncIterator[asyncio.Task[None]]:
    """Have all that it writes go to ``sink`` while the block runs; the task ends with the last of it.

    Raises FailedPrecondition when there is no writing there.
    """
    output = RawOutput(sink)
    try:
        await output.open()
        async with beside(_pump(process, output), "the output of an exec") as pump:
            yield pump
    finally:
        await output.close()


async def drained(pump: asyncio.Task[None]) -> None:
    """Wait for the last of what a process wrote that has ended, but not for ever."""
    await asyncio.wait((pump,), timeout=DRAIN_TIME)


async def _pump(process: StartedProcess, output: RawOutput) -> None:
    async for stream, data in process.output():
        await output.write(stream, data)
