"""Byte streams with credit: what one direction of a stream remembers at either end.

A :class:`Sender` may have :data:`WINDOW` bytes on the way. It keeps them until the receiver
acknowledges by *absolute offset* what was consumed (written to a log, handed to a client), so
after a reconnect it goes on from any offset that was not yet acknowledged. When the window is
full the sender stops reading its source and the pipe behind it pushes back on the process.
The end of a stream counts as one more byte: acknowledging ``length + 1`` releases the stream.
"""

from __future__ import annotations

from collections.abc import Iterator

from orlop.wire.codec import ProtocolError
from orlop.wire.framing import Kind, data_frames, frame

WINDOW = 256 << 10


class Sender:
    """The sending end. ``room`` says how much :meth:`write` still takes."""

    def __init__(self, stream: int, window: int = WINDOW, *, paused: bool = False, offset: int = 0) -> None:
        self.stream = stream
        self.window = window
        self._kept = bytearray()
        self._acked = offset
        self._sent = offset
        self._ended = False
        self._end_sent = False
        self._end_acked = False
        self._paused = paused

    @property
    def written(self) -> int:
        """Total bytes written so far."""
        return self._acked + len(self._kept)

    @property
    def acked(self) -> int:
        """The offset from which bytes are still kept."""
        return self._acked

    @property
    def room(self) -> int:
        """Bytes that fit the window now; 0 after the end."""
        return 0 if self._ended else self.window - len(self._kept)

    @property
    def ended(self) -> bool:
        """Whether :meth:`end` was called."""
        return self._ended

    @property
    def done(self) -> bool:
        """Whether the receiver has all bytes and knows of the end."""
        return self._end_acked

    def write(self, data: bytes) -> None:
        """Queue bytes; ValueError if there is no room."""
        if len(data) > self.room:
            raise ValueError(f"stream {self.stream}: {len(data)} bytes do not fit {self.room}")
        self._kept += data

    def end(self) -> None:
        """No more bytes will come. Idempotent."""
        self._ended = True

    def frames(self) -> Iterator[bytes]:
        """Encoded frames of all that is due and not sent yet."""
        if self._paused:
            return
        if self._sent < self.written:
            chunk = bytes(memoryview(self._kept)[self._sent - self._acked :])
            offset, self._sent = self._sent, self.written
            yield from data_frames(self.stream, offset, chunk)
        if self._ended and not self._end_sent:
            self._end_sent = True
            yield frame(Kind.EOF, self.stream, offset=self.written)

    def ack(self, offset: int) -> int:
        """The receiver has consumed all before ``offset``; returns how many bytes more than before."""
        if offset == self._sent + 1 and self._end_sent:
            self._end_acked = True
            offset -= 1
        if offset > self._sent:
            raise ProtocolError(f"stream {self.stream}: {offset} acknowledged, only {self._sent} sent")
        fresh = max(0, offset - self._acked)
        del self._kept[:fresh]
        self._acked += fresh
        return fresh

    def pause(self) -> None:
        """The connection is gone: keep all and send nothing until :meth:`resume`."""
        self._paused = True

    def resume(self, offset: int) -> None:
        """Send again from ``offset``. ProtocolError if it lies outside what is kept."""
        if offset == self.written + 1 and self._ended:
            self._kept.clear()
            self._acked = self._sent = offset - 1
            self._end_sent = self._end_acked = True
        elif self._acked <= offset <= self.written:
            del self._kept[: offset - self._acked]
            self._acked = self._sent = offset
            self._end_sent = False
        else:
            raise ProtocolError(
                f"stream {self.stream}: cannot resume at {offset}, kept are {self._acked}..{self.written}"
            )
        self._paused = False

    def discard(self) -> None:
        """Nobody wants this stream any more: forget what is kept and call it done."""
        self._acked = self._sent = self.written
        self._kept.clear()
        self._ended = self._end_sent = self._end_acked = True


class Receiver:
    """The receiving end. The owner says with :meth:`consumed` what it has put away."""

    def __init__(self, stream: int, window: int = WINDOW, *, offset: int = 0) -> None:
        self.stream = stream
        self.window = window
        self._received = offset
        self._consumed = offset
        self._acked = offset
        self._ended = False
        self._end_consumed = False

    @property
    def received(self) -> int:
        """The offset up to which bytes have come in."""
        return self._received

    @property
    def offset(self) -> int:
        """Where to resume: all before it is consumed (the end counts as one byte)."""
        return self._consumed + self._end_consumed

    @property
    def ended(self) -> bool:
        """Whether the peer's end of stream has come in."""
        return self._ended

    def data(self, offset: int, payload: bytes) -> bytes:
        """Take a DATA frame; returns the bytes in it that are new.

        ProtocolError for a gap, bytes after the end, or more than the window allows.
        """
        if offset > self._received:
            raise ProtocolError(f"stream {self.stream}: gap from {self._received} to {offset}")
        fresh = payload[self._received - offset :]
        if not fresh:
            return b""
        if self._ended:
            raise ProtocolError(f"stream {self.stream}: bytes after the end")
        if self._received + len(fresh) > self._consumed + self.window:
            raise ProtocolError(f"stream {self.stream}: window of {self.window} bytes overrun")
        self._received += len(fresh)
        return fresh

    def end(self, offset: int) -> bool:
        """Take an EOF frame; True the first time. ProtocolError if bytes are missing."""
        if offset != self._received:
            raise ProtocolError(f"stream {self.stream}: ends at {offset} but {self._received} came in")
        first, self._ended = not self._ended, True
        return first

    def consumed(self, count: int) -> bytes:
        """``count`` more bytes are put away; returns an ACK frame to send, or b"" if none is due yet.

        An ACK is due each quarter of a window.
        """
        if count < 0 or self._consumed + count > self._received:
            raise ValueError(f"stream {self.stream}: consumed more than was received")
        self._consumed += count
        if self._consumed - self._acked < self.window // 4:
            return b""
        return self.flush()

    def end_consumed(self) -> bytes:
        """The end is put away as well (call after all bytes are); returns the ACK frame to send."""
        if not self._ended or self._consumed != self._received:
            raise ValueError(f"stream {self.stream}: has not ended")
        self._end_consumed = True
        return self.flush()

    def flush(self) -> bytes:
        """The ACK frame for all that is consumed, also when it is less than a quarter window."""
        self._acked = self._consumed
        return frame(Kind.ACK, self.stream, offset=self.offset)
