"""The host's ends of the byte streams that run between it and a guest.

An :class:`Incoming` holds at most one window of bytes; the guest gets new credit only for bytes that
were reported as :meth:`~Incoming.consumed`, so a slow reader here slows the process there, and a guest
that sends more than it may is caught by the receiver. An :class:`Outgoing` is the reverse.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from orlop.errors import OrlopError
from orlop.wire.flow import Receiver, Sender
from orlop.wire.framing import MAX_REASON, Frame, Kind, frame

Send = Callable[[bytes], None]

ACK_DELAY = 0.05
"""Seconds after which a little consumed output is acknowledged, too: what a crash may repeat."""


class Incoming:
    """A stream from the guest. ``wake`` is set whenever something came in."""

    def __init__(
        self,
        stream: int,
        send: Send,
        forget: Callable[[int], None],
        *,
        offset: int = 0,
        wake: asyncio.Event | None = None,
    ) -> None:
        self.stream = stream
        self.wake = wake or asyncio.Event()
        self._send = send
        self._forget = forget
        self._receiver = Receiver(stream, offset=offset)
        self._chunks: deque[bytes] = deque()
        self._error: OrlopError | None = None
        self._reset = False
        self._closed = False
        self._flush: asyncio.TimerHandle | None = None

    @property
    def offset(self) -> int:
        """Bytes consumed since the stream began."""
        return self._receiver.offset

    @property
    def ended(self) -> bool:
        """Whether nothing is left to take and nothing will come."""
        return not self._chunks and (self._receiver.ended or self._reset or self._closed)

    @property
    def waiting(self) -> bool:
        """Whether a chunk is here already."""
        return bool(self._chunks)

    def take(self) -> bytes:
        """A chunk that is here already, or b"". Raises the error that ended the connection."""
        if self._chunks:
            return self._chunks.popleft()
        if self._error is not None and not self.ended:
            raise self._error
        return b""

    async def read(self) -> bytes:
        """The next chunk; b"" at the end of the stream. Raises the error that ended the connection."""
        while True:
            self.wake.clear()
            chunk = self.take()
            if chunk or self.ended:
                return chunk
            await self.wake.wait()

    def consumed(self, count: int) -> None:
        """``count`` more bytes are put away: the guest may send as many more."""
        if self._closed or self._error is not None:
            return
        ack = self._receiver.consumed(count)
        if ack:
            self._cancel_flush()
            self._send(ack)
        elif count and self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(ACK_DELAY, self.flush)

    def end_consumed(self) -> None:
        """All bytes were taken and put away, and the end was seen: the guest may forget the stream."""
        if self._closed or self._error is not None:
            return
        self._cancel_flush()
        if self._receiver.ended:
            self._send(self._receiver.end_consumed())
        self._close()

    def flush(self) -> None:
        """Acknowledge at once what was consumed."""
        self._cancel_flush()
        if not self._closed and self._error is None:
            self._send(self._receiver.flush())

    def close(self) -> None:
        """Nobody wants this stream any more. Idempotent."""
        if self._closed:
            return
        self._cancel_flush()
        if self._error is None and not self._reset:
            self._send(frame(Kind.RESET, self.stream))
        self._chunks.clear()
        self._close()

    def on_frame(self, incoming: Frame) -> int:
        """Take a frame of this stream; returns the bytes in it that are new. Raises ProtocolError."""
        if incoming.kind is Kind.DATA:
            fresh = self._receiver.data(incoming.offset, incoming.payload)
            if fresh:
                self._chunks.append(fresh)
                self.wake.set()
            return len(fresh)
        if incoming.kind is Kind.EOF:
            first = self._receiver.end(incoming.offset)
        else:
            first, self._reset = not self._reset, True
        if first:
            self.wake.set()
        return 0

    def fail(self, error: OrlopError) -> None:
        """The connection is gone; what came in can still be taken."""
        self._cancel_flush()
        self._error = error
        self.wake.set()

    def _close(self) -> None:
        self._closed = True
        self._forget(self.stream)
        self.wake.set()

    def _cancel_flush(self) -> None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None


class Outgoing:
    """A stream to the guest."""

    def __init__(self, stream: int, send: Send, forget: Callable[[int], None], *, offset: int = 0) -> None:
        self.stream = stream
        self._send = send
        self._forget = forget
        self._sender = Sender(stream, offset=offset)
        self._room = asyncio.Event()
        self._gone = False
        self._lock = asyncio.Lock()

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; returns when it fits the window. Ignored once the reader is gone."""
        async with self._lock:
            view = memoryview(data)
            while view and not self._gone and not self._sender.ended:
                count = min(self._sender.room, len(view))
                if count == 0:
                    self._room.clear()
                    await self._room.wait()
                    continue
                self._sender.write(bytes(view[:count]))
                view = view[count:]
                self._push()

    def end(self) -> None:
        """No more bytes will come. Idempotent."""
        if self._gone or self._sender.ended:
            return
        self._sender.end()
        self._push()
        self._room.set()

    @property
    def gone(self) -> bool:
        """Whether nobody reads any more: all was read, or the reader has gone."""
        return self._gone

    async def delivered(self) -> None:
        """Return when the reader has all, and the end, or has gone."""
        while not self._gone:
            self._room.clear()
            await self._room.wait()

    def close(self, reason: str = "") -> None:
        """Drop the stream without an end. Idempotent."""
        if not self._gone:
            if not self._sender.done:
                self._send(frame(Kind.RESET, self.stream, reason.encode()[:MAX_REASON]))
            self.fail()

    def on_frame(self, incoming: Frame) -> int:
        """Take a frame of this stream; returns the bytes that it acknowledges. Raises ProtocolError."""
        if incoming.kind is not Kind.ACK:
            self.fail()
            return 0
        fresh = self._sender.ack(incoming.offset)
        self._room.set()
        if self._sender.done:
            self.fail()
        return fresh

    def fail(self) -> None:
        """The reader is gone: writes are ignored from now on."""
        self._gone = True
        self._room.set()
        self._forget(self.stream)

    def _push(self) -> None:
        for encoded in self._sender.frames():
            self._send(encoded)
