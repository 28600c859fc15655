"""A WebSocket to one of the daemon's streaming URLs: whole messages out, whole messages in."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Ping,
    RejectConnection,
    RejectData,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from orlop.errors import Unavailable

CHUNK = 1 << 15
GOODBYE = 2.0
"""Seconds to wait for a connection that is closed."""


class StreamingSocket:
    """One connection. A message begins with the number of the channel it belongs to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._partial = bytearray()

    @classmethod
    async def open(cls, url: str, protocol: str) -> StreamingSocket:
        """Connect and shake hands. Raises Unavailable when the server refuses."""
        parts = urlsplit(url)
        secure = parts.scheme in ("https", "wss")
        port = parts.port or (443 if secure else 80)
        try:
            reader, writer = await asyncio.open_connection(
                parts.hostname, port, ssl=ssl.create_default_context() if secure else None
            )
        except OSError as error:
            raise Unavailable(
                f"the daemon's streaming server {parts.netloc} cannot be reached: {error}"
            ) from error
        socket = cls(reader, writer)
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            await socket._shake_hands(Request(host=parts.netloc, target=target, subprotocols=[protocol]))
        except BaseException:
            writer.close()
            raise
        return socket

    async def _shake_hands(self, request: Request) -> None:
        self._writer.write(self._ws.send(request))
        refused = ""
        while data := await self._reader.read(CHUNK):
            self._ws.receive_data(data)
            for event in self._ws.events():
                if isinstance(event, AcceptConnection):
                    return
                if isinstance(event, RejectConnection):
                    refused = f"status {event.status_code}"
                    if not event.has_body:
                        raise Unavailable(f"the streaming server refused the connection: {refused}")
                elif isinstance(event, RejectData):
                    refused += f" {bytes(event.data).decode(errors='replace').strip()}"
                    if event.body_finished:
                        raise Unavailable(f"the streaming server refused the connection: {refused}")
        raise Unavailable(f"the streaming server refused the connection{': ' if refused else ''}{refused}")

    async def send(self, channel: int, data: bytes) -> None:
        """Send bytes on a channel. Raises ConnectionError when the other side has gone."""
        try:
            framed = self._ws.send(BytesMessage(data=bytes([channel]) + data))
        except LocalProtocolError as error:
            raise ConnectionResetError("the streaming server has closed the connection") from error
        self._writer.write(framed)
        await self._writer.drain()

    async def messages(self) -> AsyncIterator[tuple[int, bytes]]:
        """Channels and what came on them, until the other side is done or gone."""
        with contextlib.suppress(ConnectionError):
            # What came together with the answer to the handshake has been received already.
            while True:
                found, closed = self._take()
                for message in found:
                    yield message[0], message[1:]
                if closed or not (data := await self._reader.read(CHUNK * 4)):
                    return
                self._ws.receive_data(data)

    def _take(self) -> tuple[list[bytes], bool]:
        found: list[bytes] = []
        try:
            for event in self._ws.events():
                if isinstance(event, CloseConnection):
                    with contextlib.suppress(LocalProtocolError, ConnectionError):
                        self._writer.write(self._ws.send(event.response()))
                    return found, True
                if isinstance(event, Ping):
                    self._writer.write(self._ws.send(event.response()))
                elif isinstance(event, BytesMessage | TextMessage):
                    self._partial += event.data.encode() if isinstance(event.data, str) else event.data
                    if event.message_finished:
                        if self._partial:
                            found.append(bytes(self._partial))
                        self._partial.clear()
        except RemoteProtocolError as error:
            raise Unavailable(f"the streaming server broke the WebSocket protocol: {error}") from error
        return found, False

    async def close(self) -> None:
        """Release the connection; idempotent."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(GOODBYE):
                await self._writer.wait_closed()
