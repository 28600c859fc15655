"""Connections to ports of a pod: a WebSocket with two channels, its bytes and its errors."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from types import TracebackType
from typing import Self

from orlop.client.calls import CriClient
from orlop.client.websocket import CHUNK, StreamingSocket
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import OrlopError, Unavailable
from orlop.host import tasks

PROTOCOL = "v5.channel.k8s.io"
DATA, ERROR, CLOSE = 0, 1, 255
PORT_HEADER = 2
"""Bytes with which each channel begins: its port."""


class PortStream:
    """A TCP connection into a pod; leave it as a context manager."""

    def __init__(self, socket: StreamingSocket) -> None:
        self._socket = socket
        self._messages = socket.messages()
        self._greeted: set[int] = set()

    async def read(self) -> bytes:
        """The next bytes, none at the end. Raises Unavailable when nothing listens there."""
        async for channel, message in self._messages:
            data = message if channel in self._greeted else message[PORT_HEADER:]
            self._greeted.add(channel)
            if channel == ERROR and data:
                raise Unavailable(data.decode(errors="replace"))
            if channel == DATA and data:
                return data
        return b""

    async def write(self, data: bytes) -> None:
        """Send bytes. Raises ConnectionError when the other side has gone."""
        for start in range(0, len(data), CHUNK):
            await self._socket.send(DATA, data[start : start + CHUNK])

    async def write_eof(self) -> None:
        """Say that nothing more is sent."""
        with contextlib.suppress(ConnectionError):
            await self._socket.send(CLOSE, bytes([DATA]))

    async def close(self) -> None:
        """Release the connection."""
        await self._socket.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def dial(client: CriClient, pod_id: str, port: int) -> PortStream:
    """Connect to a port of a pod."""
    answer = await client.runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod_id, port=[port]))
    return PortStream(await StreamingSocket.open(answer.url, PROTOCOL))


@contextlib.asynccontextmanager
async def listen(client: CriClient, pod_id: str, port: int, local: int = 0) -> AsyncIterator[int]:
    """A port of this machine's loopback that leads to one of a pod; any free one for ``local`` 0.

    Its connections end with it.
    """

    connections = tasks.Tasks()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            # A connection that breaks is the visitor's to notice: the port stays.
            with contextlib.suppress(OrlopError, ConnectionError):
                async with await dial(client, pod_id, port) as stream:
                    await _carry(reader, writer, stream)
        finally:
            writer.close()

    def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if connections.closed:
            writer.close()
            return
        connections.spawn(serve(reader, writer), f"a connection to port {port} of pod {pod_id[:12]}")

    server = await asyncio.start_server(accepted, "127.0.0.1", local)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        server.close()
        await connections.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, stream: PortStream) -> None:
    async def inward() -> None:
        while data := await reader.read(CHUNK):
            await stream.write(data)
        await stream.write_eof()

    async with tasks.beside(inward()):
        while data := await stream.read():
            writer.write(data)
            await writer.drain()
