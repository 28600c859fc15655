"""The client's end of exec and attach: a WebSocket with the channels of ``v5.channel.k8s.io``.

Channel 0 is stdin, 1 stdout, 2 stderr, 3 the final status as JSON, 4 the size of the terminal.
Each message begins with its channel's number; ``255, n`` says that channel n has ended (KEP-4006).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import Awaitable, Callable
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

from orlop.errors import OrlopError, Unavailable

PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
CHUNK = 1 << 15

Take = Callable[[int, bytes], None]
Read = Callable[[], Awaitable[bytes]]


class Channels:
    """One connection to a streaming URL."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._ws = WSConnection(ConnectionType.CLIENT)
        self._status = b""
        self._partial = bytearray()

    @classmethod
    async def open(cls, url: str) -> Channels:
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
        channels = cls(reader, writer)
        try:
            await channels._shake_hands(parts.netloc, parts.path + (f"?{parts.query}" if parts.query else ""))
        except BaseException:
            writer.close()
            raise
        return channels

    async def _shake_hands(self, host: str, target: str) -> None:
        self._writer.write(self._ws.send(Request(host=host, target=target, subprotocols=[PROTOCOL])))
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
        """Send bytes on a channel."""
        self._writer.write(self._ws.send(BytesMessage(data=bytes([channel]) + data)))
        await self._writer.drain()

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the other side how large our terminal is."""
        await self.send(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    async def feed(self, read: Read) -> None:
        """What ``read`` gives until it gives nothing, and then that end."""
        with contextlib.suppress(ConnectionError, LocalProtocolError):
            while data := await read():
                for start in range(0, len(data), CHUNK):
                    await self.send(STDIN, data[start : start + CHUNK])
            await self.send(CLOSE, bytes([STDIN]))

    async def receive(self, take: Take) -> int | None:
        """Hand output to ``take`` until the other side is done; the exit code, None when none came.

        Raises an OrlopError when the command could not be run.
        """
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(CHUNK * 4):
                self._ws.receive_data(data)
                if await self._events(take):
                    break
        return self._exit_code()

    async def _events(self, take: Take) -> bool:
        try:
            for event in self._ws.events():
                if isinstance(event, CloseConnection):
                    with contextlib.suppress(LocalProtocolError, ConnectionError):
                        self._writer.write(self._ws.send(event.response()))
                    return True
                if isinstance(event, Ping):
                    self._writer.write(self._ws.send(event.response()))
                elif isinstance(event, BytesMessage | TextMessage):
                    self._message(event, take)
        except RemoteProtocolError as error:
            raise Unavailable(f"the streaming server broke the WebSocket protocol: {error}") from error
        return False

    def _message(self, event: BytesMessage | TextMessage, take: Take) -> None:
        self._partial += event.data.encode() if isinstance(event.data, str) else event.data
        if not event.message_finished:
            return
        message, self._partial = bytes(self._partial), bytearray()
        if not message:
            return
        channel, data = message[0], message[1:]
        if channel in (STDOUT, STDERR) and data:
            take(channel, data)
        elif channel == ERROR:
            self._status += data

    def _exit_code(self) -> int | None:
        if not self._status:
            return None
        try:
            status = json.loads(self._status)
        except ValueError:
            raise OrlopError(f"the command failed: {self._status.decode(errors='replace').strip()}") from None
        if status.get("status") == "Success":
            return 0
        for cause in (status.get("details") or {}).get("causes") or ():
            if cause.get("reason") == "ExitCode":
                return int(cause.get("message", "1"))
        raise OrlopError(str(status.get("message") or "the command failed for an unknown reason"))

    async def close(self) -> None:
        """Release the connection; idempotent."""
        self._writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError, TimeoutError):
            async with asyncio.timeout(2):
                await self._writer.wait_closed()
