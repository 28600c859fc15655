"""``orlop run``: one pod with one container, for people."""

from __future__ import annotations

import asyncio
import contextlib
import signal

from orlop.cli import images, streams, terminal
from orlop.cli.problems import CliError
from orlop.client import logs, session
from orlop.client.calls import CriClient
from orlop.client.images import present
from orlop.client.launch import RunOptions
from orlop.client.run import Run
from orlop.errors import InvalidArgument, OrlopError


async def _provide(client: CriClient, image: str, pull: str) -> None:
    if pull != "always" and await present(client, image):
        return
    if pull == "never":
        raise CliError(f"no image {image} here, and --pull never forbids to fetch it")
    await images.pull(client, image)


async def _foreground(run: Run, launch: RunOptions) -> int:
    """Show the output, hand stdin through, return the exit code."""
    if launch.tty:
        await _terminal(run, launch)
    else:
        await _plain(run, launch)
    return await run.exit_code()


async def _plain(run: Run, launch: RunOptions) -> None:
    # Output comes from the log, which holds all of it from the first byte on.
    feeding = asyncio.ensure_future(_feed(run)) if launch.interactive else None
    try:
        async for line in logs.follow(run.log, run.exited):
            streams.show(line)
    finally:
        if feeding is not None:
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)


async def _feed(run: Run) -> None:
    channels = await run.attach(output=False)
    try:
        pumping = asyncio.ensure_future(streams.pump_stdin(channels))
        try:
            await channels.receive(streams.to_own_streams)
        finally:
            pumping.cancel()
            await asyncio.gather(pumping, return_exceptions=True)
    finally:
        await channels.close()


async def _terminal(run: Run, launch: RunOptions) -> None:
    try:
        channels = await run.attach(output=True)
    except OrlopError:
        if not await run.exited():
            raise
        channels = None
    for line in await asyncio.to_thread(logs.read_all, run.log):
        streams.show(line)
    if channels is None:
        return
    try:
        await streams.interact(channels, stdin=launch.interactive, tty=True)
    finally:
        await channels.close()


async def run_command(socket: str, launch: RunOptions, *, pull: str, detach: bool, remove: bool) -> int:
    """``orlop run``: the exit code of the container, 0 when detached."""
    if detach and remove:
        raise CliError(
            "--rm needs the foreground: a detached container is removed with `orlop rm`", exit_code=2
        )
    if launch.tty and launch.interactive and not terminal.is_terminal():
        raise CliError("-it needs a terminal, and stdin is none: leave out -t", exit_code=2)
    async with session.connect(socket) as client:
        try:
            run = Run(client, launch)
        except InvalidArgument as error:
            raise CliError(str(error), exit_code=2) from error
        await _provide(client, launch.image, pull)
        await run.start()
        if detach:
            print(run.container_id)
            return 0
        return await _to_the_end(run, launch, remove=remove)


async def _to_the_end(run: Run, launch: RunOptions, *, remove: bool) -> int:
    loop = asyncio.get_running_loop()
    showing = asyncio.ensure_future(_foreground(run, launch))
    caught: list[int] = []

    def interrupt(number: int) -> None:
        caught.append(number)
        showing.cancel()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupt, number)
    try:
        return await showing
    except asyncio.CancelledError:
        if not caught:
            raise
        await run.stop()
        return 128 + caught[0]
    finally:
        if remove:
            await run.discard()
        else:
            # The container stays to be looked at; its VM has nothing left to do.
            with contextlib.suppress(OrlopError):
                await run.stop_pod()
