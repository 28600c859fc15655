"""A server's SPDY/3.1 connection: accepts streams that the client opens."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

from orlop.cri.streaming.channels import CONNECTION_BYTES, ByteBudget, Pipe, Transport
from orlop.cri.streaming.spdy import (
    Data,
    Frame,
    FrameParser,
    FrameWriter,
    GoAway,
    Headers,
    PingFrame,
    Reset,
    ResetStatus,
    SpdyError,
    SynStream,
)

MAX_STREAMS = 512
WRITE_CHUNK = 32 << 10


class SpdyStream:
    """One stream of a connection: a Reader and a Writer (see ``channels``)."""

    def __init__(self, connection: SpdyConnection, identifier: int, headers: dict[str, str]) -> None:
        self.id = identifier
        self.headers = headers
        self.incoming = Pipe(budget=connection.budget)
        self.gone = asyncio.Event()
        """Set when the client has given the stream, or the connection, up."""
        self._connection = connection
        self._closed = False
        self.peer_done = False

    @property
    def closed(self) -> bool:
        """Whether our side has ended."""
        return self._closed

    async def read(self) -> bytes:
        """Some bytes from the client, or none at the end of its side."""
        return await self.incoming.read()

    async def write(self, data: bytes) -> None:
        """Send bytes; dropped after the stream ended."""
        for start in range(0, len(data), WRITE_CHUNK):
            if self._closed:
                return
            await self._connection.send(
                self._connection.frames.data(self.id, data[start : start + WRITE_CHUNK])
            )

    async def close(self) -> None:
        """End our side; idempotent."""
        if not self._closed:
            self._closed = True
            await self._connection.send(self._connection.frames.data(self.id, b"", fin=True))
            self._connection.forget(self)

    def abort(self) -> None:
        """The client gave this stream, or the connection, up."""
        self._closed = True
        self.peer_done = True
        self.incoming.end()
        self.gone.set()


class SpdyConnection:
    """Reads frames until the client is gone; hands each new stream to ``on_stream``, which may refuse it."""

    def __init__(
        self, transport: Transport, on_stream: Callable[[SpdyStream], bool], memory: ByteBudget | None = None
    ) -> None:
        self.frames = FrameWriter()
        self.budget = ByteBudget(CONNECTION_BYTES, memory)
        self._transport = transport
        self._on_stream = on_stream
        self._parser = FrameParser()
        self._streams: dict[int, SpdyStream] = {}
        self._last_stream = 0
        self._lock = asyncio.Lock()

    async def serve(self) -> None:
        """Read until the end of the connection. Raises SpdyError for bytes that are not SPDY."""
        try:
            while data := await self._transport.read():
                for frame in self._parser.feed(data):
                    await self._take(frame)
        finally:
            for stream in self._streams.values():
                stream.abort()
            self._streams.clear()
            self.budget.close()

    async def send(self, data: bytes) -> None:
        """Send the bytes of whole frames, in order."""
        async with self._lock:
            await self._transport.write(data)

    async def go_away(self) -> None:
        """Tell the client that no more streams are taken; errors of a lost client are ignored."""
        with contextlib.suppress(ConnectionError):
            await self.send(self.frames.go_away(self._last_stream))

    def forget(self, stream: SpdyStream) -> None:
        """Drop a stream that both sides have ended."""
        if stream.closed and stream.peer_done:
            self._streams.pop(stream.id, None)

    async def _take(self, frame: Frame) -> None:
        match frame:
            case SynStream():
                await self._open(frame)
            case Data():
                await self._data(frame)
            case Reset():
                if stream := self._streams.pop(frame.stream, None):
                    stream.abort()
            case PingFrame(id=identifier):
                if identifier % 2:
                    await self.send(self.frames.ping(identifier))
            case Headers() | GoAway():
                pass

    async def _open(self, frame: SynStream) -> None:
        if frame.stream % 2 == 0 or frame.stream <= self._last_stream:
            raise SpdyError(f"SPDY stream {frame.stream} is even, or not newer than {self._last_stream}")
        self._last_stream = frame.stream
        if len(self._streams) >= MAX_STREAMS:
            await self.send(self.frames.reset(frame.stream, ResetStatus.REFUSED_STREAM))
            return
        stream = SpdyStream(self, frame.stream, frame.headers)
        self._streams[frame.stream] = stream
        await self.send(self.frames.syn_reply(frame.stream))
        if frame.fin:
            self._end(stream)
        if not self._on_stream(stream):
            self._streams.pop(stream.id, None)
            stream.abort()
            await self.send(self.frames.reset(stream.id, ResetStatus.REFUSED_STREAM))

    async def _data(self, frame: Data) -> None:
        stream = self._streams.get(frame.stream)
        if stream is None:
            return
        await stream.incoming.put(frame.data)
        if frame.fin:
            self._end(stream)

    def _end(self, stream: SpdyStream) -> None:
        stream.peer_done = True
        stream.incoming.end()
        self.forget(stream)
