"""A guest's agent for tests: it speaks the real protocol on a Unix socket and does as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from orlop.wire.framing import Frame, Kind, Parser, frame, preamble
from orlop.wire.hello import VERSION, Hello, pack_hello
from orlop.wire.messages import (
    Event,
    Refused,
    Request,
    pack_event,
    pack_failure,
    pack_reply,
    unpack_request,
)

Handler = Callable[[Request[Any]], Any]


class Peer:
    """Serves one connection after the other; ``handler`` returns the reply, or raises Refused."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.path = path
        self.handler = handler
        self.hello = Hello(version=VERSION)
        self.frames: list[Frame] = []
        self.requests: list[Request[Any]] = []
        self.news = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Peer:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self.hang_up()
        self._server.close()
        await self._server.wait_closed()

    def hang_up(self) -> None:
        """Close the connection there is."""
        if self._writer is not None:
            self._writer.close()

    def send(self, encoded: bytes) -> None:
        """Send bytes as they are."""
        assert self._writer is not None
        self._writer.write(encoded)

    def event(self, event: Event) -> None:
        """Send an event."""
        self.send(frame(Kind.EVENT, payload=pack_event(event)))

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until frames that came in make ``condition`` true."""
        async with asyncio.timeout(20):
            while not condition():
                self.news.clear()
                await self.news.wait()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        parser = Parser()
        with suppress(asyncio.CancelledError):
            while data := await reader.read(65536):
                for received in parser.feed(data):
                    self._take(received)
        writer.close()

    def _take(self, received: Frame) -> None:
        if received.kind is Kind.SYNC:
            self.send(preamble(received.payload) + frame(Kind.HELLO, payload=pack_hello(self.hello)))
        elif received.kind is Kind.REQUEST:
            request = unpack_request(received.payload)
            self.requests.append(request)
            try:
                reply = self.handler(request)
            except Refused as refused:
                self.send(frame(Kind.REPLY, received.stream, pack_failure(refused.code, str(refused))))
            else:
                if reply is not None:
                    self.send(frame(Kind.REPLY, received.stream, pack_reply(reply)))
        else:
            self.frames.append(received)
        self.news.set()
