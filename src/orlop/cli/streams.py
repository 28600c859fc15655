"""Our own terminal and streams, joined with a command's in a container."""

from __future__ import annotations

import asyncio
import contextlib
import sys

from orlop.cli import terminal
from orlop.client.channels import STDERR, Channels, Take
from orlop.client.logs import Line


def to_own_streams(channel: int, data: bytes) -> None:
    """Write what comes to our own stdout and stderr."""
    target = sys.stderr.buffer if channel == STDERR else sys.stdout.buffer
    target.write(data)
    target.flush()


async def resize(channels: Channels) -> None:
    """Tell the other side how large our terminal is."""
    await channels.resize(*terminal.size())


async def pump_stdin(channels: Channels) -> None:
    """Our stdin to its end, and then that end."""
    await channels.feed(terminal.StdinReader().read)


async def interact(channels: Channels, *, stdin: bool, tty: bool, take: Take = to_own_streams) -> int | None:
    """Connect our terminal or streams with the other side, until it ends; its exit code if it told one."""
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()

    def told_to_resize() -> None:
        task = loop.create_task(resize(channels))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    with contextlib.ExitStack() as stack:
        if tty:
            if stdin:
                stack.enter_context(terminal.raw_mode())
            stack.enter_context(terminal.on_resize(told_to_resize))
            await resize(channels)
        feeding = loop.create_task(pump_stdin(channels)) if stdin else None
        try:
            return await channels.receive(take)
        finally:
            if feeding is not None:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


def show(line: Line, *, timestamps: bool = False) -> None:
    """Write an entry to our own stdout or stderr."""
    target = sys.stderr.buffer if line.stream == "stderr" else sys.stdout.buffer
    if timestamps:
        target.write(line.time.encode() + b" ")
    target.write(line.content)
    target.flush()
