"""Pipes and terminals on one side, byte streams with credit on the other.

An :class:`Output` reads its descriptor only while the host leaves it room, so a process whose output
nobody takes is held up by its own pipe, also while no daemon runs. An :class:`Input` acknowledges
bytes when the process has them in its pipe.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from orlop.guest.loop import IN, OUT, Loop
from orlop.wire.flow import Receiver, Sender
from orlop.wire.framing import Frame, Kind, frame
from orlop.wire.values import StreamOffsets

_CHUNK = 64 << 10

Send = Callable[[bytes], None]


class OutputPipe:
    """A stream to the host, fed from ``fd``, which it owns.

    ``on_done`` is called once, when the host has all or wants no more. Without a host side
    (``stream`` 0, or after :meth:`drain`) the bytes are read and forgotten.
    """

    def __init__(self, loop: Loop, send: Send, stream: int, fd: int, *, paused: bool) -> None:
        self.stream = stream
        self.on_done: Callable[[], None] = lambda: None
        self._loop = loop
        self._send = send
        self._fd = fd
        self._sender = Sender(stream, paused=paused)
        self._drained = False
        self._finished = False
        self._watched = False
        os.set_blocking(fd, False)
        self._update()

    @property
    def ended(self) -> bool:
        """Whether the process side has ended."""
        return self._fd < 0

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._finished

    def offsets(self) -> StreamOffsets:
        """For a daemon that was restarted."""
        sender = self._sender
        return StreamOffsets(
            stream=self.stream, acked=sender.acked, written=sender.written, ended=sender.ended
        )

    def on_frame(self, received: Frame) -> None:
        """Take an ACK or a RESET."""
        if received.kind is Kind.ACK:
            self._sender.ack(received.offset)
            self._update()
        elif received.kind is Kind.RESET:
            self.drain()

    def drain(self) -> None:
        """Read on and forget, so that the process is not held up."""
        self._drained = True
        self._sender.discard()
        self._update()

    def pause(self) -> None:
        """No daemon: keep all, send nothing."""
        self._sender.pause()

    def resume(self, offset: int) -> None:
        """Send again, from ``offset``. Raises ProtocolError."""
        self._sender.resume(offset)
        self._push()
        self._update()

    def close(self) -> None:
        """Let go of the descriptor: end of stream, whatever the process still has to say."""
        if self._fd >= 0:
            self._end()
            self._update()

    def _on_ready(self, events: int) -> None:
        size = _CHUNK if self._drained else min(_CHUNK, self._sender.room)
        try:
            data = os.read(self._fd, size)
        except BlockingIOError:
            return
        except OSError:  # a terminal that nobody holds open any more, or a connection that was broken off
            data = b""
        if not data:
            self._end()
        elif not self._drained:
            self._sender.write(data)
            self._push()
        self._update()

    def _end(self) -> None:
        self._loop.unwatch(self._fd)
        self._watched = False
        os.close(self._fd)
        self._fd = -1
        self._sender.end()
        self._push()

    def _push(self) -> None:
        if not self._drained:
            for encoded in self._sender.frames():
                self._send(encoded)

    def _update(self) -> None:
        if self._fd >= 0:
            wanted = self._drained or self._sender.room > 0
            if wanted and not self._watched:
                self._loop.watch(self._fd, IN, self._on_ready)
            elif self._watched and not wanted:
                self._loop.unwatch(self._fd)
            self._watched = wanted
        elif not self._finished and (self._drained or self._sender.done):
            self._finished = True
            self.on_done()


class InputPipe:
    """A stream from the host, written to ``fd``, which it owns. For a terminal, the end is a ^D."""

    def __init__(self, loop: Loop, send: Send, stream: int, fd: int, *, terminal: bool = False) -> None:
        self.stream = stream
        self.on_done: Callable[[], None] = lambda: None
        self.on_end: Callable[[int], None] | None = None
        self._loop = loop
        self._send = send
        self._fd = fd
        self._terminal = terminal
        self._receiver = Receiver(stream)
        self._chunks: deque[bytes] = deque()
        self._finished = False
        os.set_blocking(fd, False)

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        return self._finished

    def offsets(self) -> StreamOffsets:
        """For a daemon that was restarted."""
        return StreamOffsets(stream=self.stream, received=self._receiver.received, ended=self._receiver.ended)

    def on_frame(self, received: Frame) -> None:
        """Take DATA, EOF or RESET. Raises ProtocolError."""
        if self._finished:
            return
        if received.kind is Kind.DATA:
            fresh = self._receiver.data(received.offset, received.payload)
            if fresh:
                self._chunks.append(fresh)
        elif received.kind is Kind.EOF:
            self._receiver.end(received.offset)
        elif received.kind is Kind.RESET:
            self.drain()
            return
        self._write()

    def close(self) -> None:
        """The process is gone: drop what is left."""
        if not self._finished:
            self._send(frame(Kind.RESET, self.stream))
            self._chunks.clear()
            self._finish()

    def pause(self) -> None:
        """No daemon: what came in is still written."""

    def resume(self, offset: int) -> None:
        """The host goes on at ``received``, by itself."""

    def drain(self) -> None:
        """The host sends no more: end of input."""
        if not self._finished:
            self._chunks.clear()
            self._finish()

    def _on_ready(self, events: int) -> None:
        self._write()

    def _write(self) -> None:
        while self._chunks:
            chunk = self._chunks[0]
            try:
                count = os.write(self._fd, chunk)
            except BlockingIOError:
                self._loop.watch(self._fd, OUT, self._on_ready)
                return
            except OSError:
                self.close()
                return
            if count == len(chunk):
                self._chunks.popleft()
            else:
                self._chunks[0] = chunk[count:]
            ack = self._receiver.consumed(count)
            if ack:
                self._send(ack)
        self._loop.unwatch(self._fd)
        if self._receiver.ended:
            self._end()

    def _end(self) -> None:
        if self._terminal:
            with suppress(OSError):
                os.write(self._fd, b"\x04")
        if self.on_end is not None:
            self.on_end(self._fd)
        self._send(self._receiver.end_consumed())
        self._finish()

    def _finish(self) -> None:
        self._finished = True
        self._loop.unwatch(self._fd)
        os.close(self._fd)
        self._fd = -1
        self.on_done()
