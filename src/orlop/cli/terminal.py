"""The terminal that ``exec -t`` and ``run -t`` hand through to a container."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import tty
from collections.abc import Callable, Iterator


def is_terminal() -> bool:
    """Whether our stdin is one."""
    return sys.stdin.isatty()


def size() -> tuple[int, int]:
    """Columns and rows."""
    try:
        found = os.get_terminal_size(sys.stdout.fileno() if sys.stdout.isatty() else sys.stdin.fileno())
    except OSError:
        return 80, 24
    return found.columns, found.lines


@contextlib.contextmanager
def raw_mode() -> Iterator[None]:
    """Every key goes to the other side, until the block ends."""
    if not is_terminal():
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setraw(descriptor, termios.TCSADRAIN)  # keys typed ahead are kept
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


@contextlib.contextmanager
def on_resize(tell: Callable[[], None]) -> Iterator[None]:
    """Call ``tell`` whenever the window changes its size."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGWINCH, tell)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGWINCH)


class StdinReader:
    """Our stdin as chunks, without blocking the event loop, and without a thread that stays behind."""

    def __init__(self) -> None:
        self._descriptor = sys.stdin.fileno()
        self._loop = asyncio.get_running_loop()
        self._pollable = True

    async def read(self) -> bytes:
        """Some bytes, or none at the end."""
        if self._pollable:
            try:
                await self._readable()
            except PermissionError:  # a regular file: epoll refuses it, but it never blocks
                self._pollable = False
        try:
            return os.read(self._descriptor, 1 << 16)
        except (BlockingIOError, OSError):
            return b""

    async def _readable(self) -> None:
        ready = self._loop.create_future()

        def mark() -> None:
            if not ready.done():
                ready.set_result(None)

        self._loop.add_reader(self._descriptor, mark)
        try:
            await ready
        finally:
            self._loop.remove_reader(self._descriptor)
