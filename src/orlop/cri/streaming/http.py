"""The HTTP/1.1 side of a streaming connection: one request, then an upgrade.

h11 parses and bounds the request. What comes after the upgrade belongs to :class:`Upgraded`,
which keeps the bytes that arrived behind the request and watches for idleness.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import h11

READ_SIZE = 64 << 10
MAX_REQUEST = 16 << 10


@dataclass(frozen=True)
class HttpRequest:
    """A parsed request. Header names are lower case; ``headers`` keeps their order and repeats."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...] = field(default=())

    def header(self, name: str) -> str:
        """The first header of that name, or ""."""
        return next((value for key, value in self.headers if key == name), "")

    def values(self, name: str) -> list[str]:
        """All comma-separated values of all headers of that name."""
        found = [value for key, value in self.headers if key == name]
        return [part.strip() for value in found for part in value.split(",") if part.strip()]


class HttpConnection:
    """Reads one request and answers it, or hands the connection over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._h11 = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_REQUEST)

    async def request(self) -> HttpRequest | None:
        """The request, or None when the client left. Raises h11.RemoteProtocolError for a bad one."""
        request: h11.Request | None = None
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self._reader.read(READ_SIZE))
            elif isinstance(event, h11.Request):
                request = event
            elif isinstance(event, h11.EndOfMessage) or event is h11.PAUSED:
                return _parsed(request) if request else None
            elif isinstance(event, h11.ConnectionClosed):
                return None
            # A body is of no use here; it is read and dropped, bounded by the caller's timeout.

    async def answer(self, status: int, text: str) -> None:
        """A plain-text answer that ends the connection."""
        body = text.encode() + b"\n"
        head = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
        ]
        if self._h11.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            return
        data = self._h11.send(h11.Response(status_code=status, headers=head))
        data = (data or b"") + (self._h11.send(h11.Data(data=body)) or b"")
        self._h11.send(h11.EndOfMessage())
        self._writer.write(data)
        await self._writer.drain()

    async def switch(self, headers: list[tuple[str, str]], idle_timeout: float) -> Upgraded:
        """Answer 101 with these headers and hand the connection over."""
        response = h11.InformationalResponse(status_code=101, headers=headers, reason=b"Switching Protocols")
        self._writer.write(self._h11.send(response) or b"")
        await self._writer.drain()
        return self.raw(idle_timeout)

    def raw(self, idle_timeout: float) -> Upgraded:
        """Hand the connection over; the answer is the business of whoever gets it."""
        trailing, _ = self._h11.trailing_data
        return Upgraded(self._reader, self._writer, trailing, idle_timeout)


class Upgraded:
    """The bytes of a connection after its upgrade (a Transport of ``channels``)."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, trailing: bytes, idle_timeout: float
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._trailing = trailing
        self._idle_timeout = idle_timeout
        self._active = asyncio.get_running_loop().time()

    async def read(self) -> bytes:
        """Some bytes, or none when the client is gone or nothing moved for the idle time."""
        if self._trailing:
            data, self._trailing = self._trailing, b""
            return data
        loop = asyncio.get_running_loop()
        while True:
            try:
                async with asyncio.timeout_at(self._active + self._idle_timeout):
                    data = await self._reader.read(READ_SIZE)
            except TimeoutError:
                if loop.time() - self._active >= self._idle_timeout:
                    return b""
                continue
            except ConnectionError:
                return b""
            self._active = loop.time()
            return data

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; waits for the client to take it."""
        self._active = asyncio.get_running_loop().time()
        self._writer.write(data)
        await self._writer.drain()


def _parsed(request: h11.Request) -> HttpRequest:
    path, _, query = request.target.decode("ascii", "replace").partition("?")
    headers = tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in request.headers)
    return HttpRequest(request.method.decode("ascii"), path, query, headers)
