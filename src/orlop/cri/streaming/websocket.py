"""WebSocket connections: exec, attach and port-forward channels, and SPDY carried inside.

wsproto does the framing. Channel protocols put the channel's number before each message:
a byte, or an ASCII digit before base64 text. v5 adds a signal by which a client, and only a
client, ends one of its channels (KEP-4006); ``SPDY/3.1+portforward.k8s.io`` carries a whole
SPDY connection in binary messages.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib

from wsproto import ConnectionType, WSConnection
from wsproto.events import (
    AcceptConnection,
    BytesMessage,
    CloseConnection,
    Event,
    Ping,
    Request,
    TextMessage,
)
from wsproto.utilities import LocalProtocolError, RemoteProtocolError

from orlop.cri.streaming.channels import CONNECTION_BYTES, ByteBudget, Pipe
from orlop.cri.streaming.http import Upgraded
from orlop.errors import InvalidArgument

MAX_MESSAGE = 1 << 20
CLOSE_CHANNEL = 255
BASE64_PREFIXES = ("base64.", "v4.base64.")

STDIN, STDOUT, STDERR, ERROR, RESIZE = range(5)


class WebSocketError(InvalidArgument):
    """The peer broke the WebSocket protocol, or a channel protocol on top of it."""


class WebSocket:
    """A server's WebSocket: whole messages in, whole messages out."""

    def __init__(self, transport: Upgraded, request: tuple[str, tuple[tuple[str, str], ...]]) -> None:
        self._transport = transport
        self._ws = WSConnection(ConnectionType.SERVER)
        self._lock = asyncio.Lock()
        target, headers = request
        raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
        try:
            self._ws.initiate_upgrade_connection(raw, target)
            opened = next(self._ws.events(), None)
        except (RemoteProtocolError, LocalProtocolError, UnicodeDecodeError) as error:
            raise WebSocketError(f"the WebSocket handshake is not valid: {error}") from error
        if not isinstance(opened, Request):
            raise WebSocketError("the WebSocket handshake is not valid")
        self._partial = bytearray()

    async def accept(self, subprotocol: str | None) -> None:
        """Answer the handshake."""
        await self._send(AcceptConnection(subprotocol=subprotocol))

    async def messages(self) -> list[bytes]:
        """The next messages; an empty list when the client has gone. Raises WebSocketError."""
        while data := await self._transport.read():
            found: list[bytes] = []
            try:
                self._ws.receive_data(data)
                for event in self._ws.events():
                    if isinstance(event, CloseConnection):
                        with contextlib.suppress(LocalProtocolError, ConnectionError):
                            await self._send(event.response())
                        return found
                    if isinstance(event, Ping):
                        await self._send(event.response())
                    elif isinstance(event, BytesMessage | TextMessage):
                        found += self._message(event)
            except RemoteProtocolError as error:
                raise WebSocketError(f"the WebSocket peer broke the protocol: {error}") from error
            if found:
                return found
        return []

    async def send(self, data: bytes) -> None:
        """Send a binary message."""
        await self._send(BytesMessage(data=data))

    async def send_text(self, data: str) -> None:
        """Send a text message."""
        await self._send(TextMessage(data=data))

    async def close(self) -> None:
        """Say good-bye; a client that has gone already is no error."""
        with contextlib.suppress(LocalProtocolError, ConnectionError):
            await self._send(CloseConnection(code=1000))

    async def _send(self, event: Event) -> None:
        async with self._lock:
            try:
                data = self._ws.send(event)
            except LocalProtocolError as error:
                if isinstance(event, CloseConnection):
                    raise
                raise ConnectionResetError("the WebSocket is closed") from error
            await self._transport.write(data)

    def _message(self, event: BytesMessage | TextMessage) -> list[bytes]:
        data = event.data.encode() if isinstance(event.data, str) else bytes(event.data)
        if len(self._partial) + len(data) > MAX_MESSAGE:
            raise WebSocketError(f"a WebSocket message is larger than {MAX_MESSAGE} bytes")
        self._partial += data
        if not event.message_finished:
            return []
        whole, self._partial = bytes(self._partial), bytearray()
        return [whole]


class Tunnel:
    """A WebSocket as a Transport: its binary messages are one byte stream."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket

    async def read(self) -> bytes:
        """The bytes of the next messages, or none at the end."""
        while messages := await self._websocket.messages():
            if data := b"".join(messages):
                return data
        return b""

    async def write(self, data: bytes) -> None:
        """Send bytes as one message."""
        await self._websocket.send(data)


class ChannelWriter:
    """One outgoing channel (a Writer of ``channels``)."""

    def __init__(self, connection: ChannelConnection, channel: int) -> None:
        self._connection = connection
        self._channel = channel
        self._closed = False

    async def write(self, data: bytes) -> None:
        """Send bytes on the channel."""
        if data and not self._closed:
            await self._connection.send(self._channel, data)

    async def close(self) -> None:
        """End the channel. No protocol lets a server say so before it ends the connection."""
        self._closed = True


class ChannelConnection:
    """Numbered channels on one WebSocket."""

    def __init__(
        self, websocket: WebSocket, protocol: str, readable: frozenset[int], memory: ByteBudget | None = None
    ) -> None:
        self._websocket = websocket
        self._text = protocol.startswith(BASE64_PREFIXES)
        self._can_close = protocol == "v5.channel.k8s.io"
        self._budget = ByteBudget(CONNECTION_BYTES, memory)
        self.incoming = {channel: Pipe(budget=self._budget) for channel in readable}

    async def serve(self) -> None:
        """Hand incoming messages to their channels until the client is gone."""
        try:
            while messages := await self._websocket.messages():
                for message in messages:
                    await self._take(message)
        finally:
            for pipe in self.incoming.values():
                pipe.end()
            self._budget.close()

    async def send(self, channel: int, data: bytes) -> None:
        """Send bytes on a channel."""
        if self._text:
            await self._websocket.send_text(f"{channel}{base64.b64encode(data).decode()}")
        else:
            await self._websocket.send(bytes([channel]) + data)

    async def _take(self, message: bytes) -> None:
        if not message:
            return
        channel, data = message[0], message[1:]
        if self._text:
            channel -= ord("0")
            try:
                data = base64.b64decode(data, validate=True)
            except binascii.Error as error:
                raise WebSocketError(f"a WebSocket message is not base64: {error}") from error
        elif channel == CLOSE_CHANNEL and self._can_close:
            pipe = self.incoming.get(data[0]) if data else None
            if pipe is not None:
                pipe.end()
            return
        pipe = self.incoming.get(channel)
        if pipe is not None:
            await pipe.put(data)
