"""Our own terminal and streams, joined with a command's in a container."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from orlop.cli import terminal
from orlop.client.container import Process
from orlop.client.logs import Line
from orlop.host import tasks


def write(stream: str, data: bytes) -> None:
    """Write to our own stdout or stderr."""
    target = sys.stderr.buffer if stream == "stderr" else sys.stdout.buffer
    target.write(data)
    target.flush()


async def _resize(process: Process) -> None:
    with contextlib.suppress(ConnectionError):
        await process.resize(*terminal.size())


async def interact(process: Process, *, stdin: bool, tty: bool) -> int | None:
    """Connect our terminal or streams with the other side, until it ends; its exit code if it told one."""
    async with contextlib.AsyncExitStack() as stack:
        if tty:
            resizing = await stack.enter_async_context(asyncio.TaskGroup())
            if stdin:
                stack.enter_context(terminal.raw_mode())

            def told_to_resize() -> None:
                resizing.create_task(_resize(process))

            stack.enter_context(terminal.on_resize(told_to_resize))
            await _resize(process)
        if stdin:
            await stack.enter_async_context(tasks.beside(process.feed(terminal.StdinReader().read)))
        async for stream, data in process.output():
            write(stream, data)
        return process.exit_code


def show(line: Line, *, timestamps: bool = False) -> None:
    """Write an entry to our own stdout or stderr."""
    write(line.stream, (line.time.encode() + b" " if timestamps else b"") + line.content)
