"""Port-forward: joins a client's stream to a TCP port inside the pod."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from orlop.cri.streaming.channels import Reader, Writer
from orlop.errors import OrlopError
from orlop.sandbox.base import Connection

log = logging.getLogger(__name__)

READ_SIZE = 64 << 10

Dial = Callable[[int], Awaitable[Connection]]


async def forward(port: int, source: Reader, sink: Writer, error: Writer, dial: Dial) -> None:
    """Carry bytes both ways until both have ended; a failure is told on ``error`` as text."""
    try:
        connection = await dial(port)
    except OrlopError as problem:
        with contextlib.suppress(OSError):
            await error.write(f"port {port}: {problem}".encode())
    else:
        try:
            await _carry(source, sink, connection)
        finally:
            await connection.close()
    with contextlib.suppress(OSError):
        await sink.close()
        await error.close()


async def _carry(source: Reader, sink: Writer, connection: Connection) -> None:
    """Both directions, until the pod has ended its side or one side is lost."""
    try:
        async with asyncio.TaskGroup() as group:
            inward = group.create_task(_inward(source, connection))
            await _outward(connection, sink)
            inward.cancel()
    except* (OSError, OrlopError) as lost:
        log.debug("port-forward ended: %s", lost.exceptions[0])


async def _inward(source: Reader, connection: Connection) -> None:
    while data := await source.read():
        await connection.write(data)
    await connection.write_eof()


async def _outward(connection: Connection, sink: Writer) -> None:
    while data := await connection.read(READ_SIZE):
        await sink.write(data)


def parse_port(text: str) -> int:
    """A port number from a header or query; 0 when it is not one."""
    port = int(text) if text.isascii() and text.isdecimal() and len(text) <= 5 else 0
    return port if port < 65536 else 0
