"""Sockets as links: one that was connected, and those that a listener accepts."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from orlop.host import sockets
from orlop.host.tasks import Tasks
from orlop.ttrpc.frames import LinkLost

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 64
_CLOSE_TIME = 1.0


class SocketLink:
    """A connected socket."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @property
    def writer(self) -> asyncio.StreamWriter:
        """The side that knows the socket."""
        return self._writer

    async def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises LinkLost."""
        try:
            return await self._reader.readexactly(size)
        except asyncio.IncompleteReadError as error:
            where = ", in the middle of a message" if error.partial else ""
            raise LinkLost(f"the other side has closed the connection{where}") from error
        except OSError as error:
            raise LinkLost(f"the connection has ended: {error.strerror or error}") from error

    async def write(self, data: bytes) -> None:
        """Send all of ``data`` at once. Raises LinkLost."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise LinkLost(f"the connection has ended: {error}") from error

    async def close(self) -> None:
        """Close the socket; what the other side did not take by now is lost. Idempotent."""
        self._writer.close()
        try:
            async with asyncio.timeout(_CLOSE_TIME):
                await self._writer.wait_closed()
        except (OSError, TimeoutError):
            self._writer.transport.abort()


async def connect(path: Path) -> SocketLink:
    """A link to the socket at ``path``. Raises LinkLost when nobody listens there."""
    try:
        return SocketLink(*await asyncio.open_unix_connection(os.fspath(path)))
    except OSError as error:
        raise LinkLost(f"{path}: {error.strerror}") from error


class Listener:
    """Accepts connections at a path, of which at most ``limit`` at once; a further one is closed.

    ``serve`` gets each link, which is closed when it returns.
    """

    def __init__(
        self, path: Path, serve: Callable[[SocketLink], Awaitable[None]], *, limit: int = MAX_CONNECTIONS
    ) -> None:
        self._path = path
        self._serve = serve
        self._limit = limit
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None

    async def start(self, mode: int = 0o600) -> None:
        """Listen; a socket that nobody serves is replaced. Raises FailedPrecondition."""
        self._server = await sockets.listen(self._path, self._accept, mode=mode, directory_mode=0o700)

    async def stop(self) -> None:
        """Listen no more and end what is served. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self._tasks.close()
        if server is not None:
            await server.wait_closed()
            with suppress(OSError):
                self._path.unlink()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._tasks) >= self._limit or self._tasks.closed:
            log.warning("%s: more than %d connections; the newest is closed", self._path, self._limit)
            writer.close()
            return
        self._tasks.spawn(self._run(SocketLink(reader, writer)), f"a connection to {self._path}")

    async def _run(self, link: SocketLink) -> None:
        try:
            await self._serve(link)
        finally:
            await link.close()
