"""A process of a task between start and end: its streams, its size, what it ended with."""

from __future__ import annotations

import logging
import time
from contextlib import AsyncExitStack

from orlop.bundle import output
from orlop.errors import FailedPrecondition, OrlopError
from orlop.host.tasks import beside
from orlop.sandbox.base import ProcessIO, StartedProcess
from orlop.sandbox.spec import ExitStatus
from orlop.shim.model import TaskProcess
from orlop.shim.stdio import Feed

log = logging.getLogger(__name__)


def lost(reason: str) -> ExitStatus:
    """The end of what nobody knows the end of."""
    return ExitStatus(code=output.CODE_LOST, finished_at=time.time_ns(), message=reason)


def stopped() -> ExitStatus:
    """The end of a VM that was to end."""
    return ExitStatus(code=0, finished_at=time.time_ns())


async def resize(process: TaskProcess, columns: int, rows: int) -> None:
    """Give its terminal a size, now or as soon as it runs."""
    process.size = (columns, rows)
    if process.io is not None:
        await process.io.resize(columns, rows)


def finish_stdin(process: TaskProcess) -> None:
    """No more comes to it than what clients have written, or write still."""
    process.stdin_done = True
    if process.feed is not None:
        process.feed.finish()


async def accompany(process: TaskProcess, io: ProcessIO) -> None:
    """Serve stdin and the size of a container's first process; its output goes to its FIFOs by itself."""
    async with AsyncExitStack() as stack:
        await _serve(process, io, stack)
        async for _ in io.output():
            pass


async def run(process: TaskProcess, io: StartedProcess) -> ExitStatus:
    """Connect an exec with its streams until it has ended."""
    async with AsyncExitStack() as stack:
        await _serve(process, io, stack)
        process.send = io.signal
        stack.callback(setattr, process, "send", None)
        pump = await stack.enter_async_context(output.written(io, process.stdio.sink))
        status = await io.wait()
        await output.drained(pump)
        return status


async def _serve(process: TaskProcess, io: ProcessIO, stack: AsyncExitStack) -> None:
    stack.push_async_callback(io.close)
    process.io = io
    stack.callback(setattr, process, "io", None)
    if process.stdio.terminal and all(process.size):
        await io.resize(*process.size)
    if process.stdio.stdin:
        await stack.enter_async_context(beside(_feed(process, io), "the stdin of a task"))


async def _feed(process: TaskProcess, io: ProcessIO) -> None:
    try:
        feed = process.feed = Feed(process.stdio.stdin)
    except FailedPrecondition as error:
        log.info("a task has no stdin: %s", error)
        await io.close_stdin()
        return
    if process.stdin_done:
        feed.finish()
    try:
        await feed.pass_on(io.write)
        await io.close_stdin()
    except (OrlopError, OSError) as error:
        log.info("the stdin of a task from %s has ended: %s", process.stdio.stdin, error)
    finally:
        feed.close()
