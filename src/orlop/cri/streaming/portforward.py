"""Port-forward: joins a client's stream to a TCP port inside the pod."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from orlop.cri.streaming.channels import Reader, Writer, first_failure
from orlop.errors import OrlopError
from orlop.sandbox.base import Connection

log = logging.getLogger(__name__)

READ_SIZE = 64 << 10

Dial = Callable[[int], Awaitable[Connection]]


async def forward(port: int, source: Reader, sink: Writer, error: Writer, dial: Dial) -> None:
    """Carry bytes both ways until both have ended; a failure is told on ``error`` as text.

    It raises nothing of its own: other ports of the same client go on.
    """
    try:
        connection = await dial(port)
        try:
            reason = await _carry(source, sink, connection)
        finally:
            await connection.close()
    except (OrlopError, OSError) as problem:
        reason = str(problem)
    except Exception:
        log.exception("port-forward to port %d failed", port)
        reason = "an internal error; the daemon's log says more"
    with contextlib.suppress(OSError):
        if reason:
            await error.write(f"port {port}: {reason}".encode())
        await sink.close()
        await error.close()


async def _carry(source: Reader, sink: Writer, connection: Connection) -> str:
    """Both directions, until the pod has ended its side or one side is lost.

    Returns why it ended before its time, or "". A server in the pod, or a client, that resets its
    connection is ordinary life and no failure: clients give the whole session up for one.
    """
    try:
        async with asyncio.TaskGroup() as group:
            inward = group.create_task(_inward(source, connection))
            await _outward(connection, sink)
            inward.cancel()
    except BaseExceptionGroup as failures:
        lost = first_failure(failures)
        if isinstance(lost, OrlopError):
            return str(lost)
        if not isinstance(lost, OSError):
            raise lost from failures
        log.debug("port-forward ended: %s", lost)
    return ""


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
