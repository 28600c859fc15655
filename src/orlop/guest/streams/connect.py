"""Connections to a port inside the pod: a TCP socket on one side, a stream both ways on the other."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable

from orlop.guest.loop import OUT, Loop
from orlop.guest.streams.pipes import InputPipe, OutputPipe, Send
from orlop.wire.framing import Frame, Kind
from orlop.wire.messages import Refused
from orlop.wire.values import StreamOffsets

_ADDRESSES = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))


class SocketStream:
    """A stream to and from a socket. Each direction ends by itself; a reset ends both."""

    def __init__(
        self, loop: Loop, send: Send, stream: int, link: socket.socket, on_done: Callable[[], None]
    ) -> None:
        self.stream = stream
        self._on_done = on_done
        self._reader = OutputPipe(loop, send, stream, os.dup(link.fileno()), paused=False)
        self._writer = InputPipe(loop, send, stream, link.detach())
        self._writer.on_end = _half_close
        self._reader.on_done = self._check
        self._writer.on_done = self._check

    def offsets(self) -> StreamOffsets:
        """For a daemon that was restarted."""
        out, into = self._reader.offsets(), self._writer.offsets()
        return StreamOffsets(
            stream=self.stream, received=into.received, acked=out.acked, written=out.written, ended=out.ended
        )

    def on_frame(self, received: Frame) -> None:
        """Take any stream frame."""
        if received.kind is Kind.RESET:
            self.reset()
        elif received.kind is Kind.ACK:
            self._reader.on_frame(received)
        else:
            self._writer.on_frame(received)

    def reset(self) -> None:
        """Drop the connection."""
        self._writer.close()
        self._reader.drain()
        self._reader.close()

    def drain(self) -> None:
        """Nobody wants it any more."""
        self.reset()

    def pause(self) -> None:
        """No daemon: keep all, send nothing."""
        self._reader.pause()

    def resume(self, offset: int) -> None:
        """Send again, from ``offset``."""
        self._reader.resume(offset)

    def _check(self) -> None:
        if self._reader.finished and self._writer.finished:
            self._on_done()


def _half_close(fd: int) -> None:
    with socket.socket(fileno=os.dup(fd)) as link:
        try:
            link.shutdown(socket.SHUT_WR)
        except OSError:
            return


def dial(
    loop: Loop, port: int, on_connected: Callable[[socket.socket], None], on_failed: Callable[[Refused], None]
) -> None:
    """Connect to ``port`` on the IPv4 loopback, or the IPv6 one if that refuses."""
    _dial(loop, port, list(_ADDRESSES), on_connected, on_failed)


def _dial(
    loop: Loop,
    port: int,
    left: list[tuple[socket.AddressFamily, str]],
    on_connected: Callable[[socket.socket], None],
    on_failed: Callable[[Refused], None],
) -> None:
    family, address = left.pop(0)

    def on_ready(events: int) -> None:
        loop.unwatch(link.fileno())
        finish(link.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def finish(code: int) -> None:
        if code == 0:
            on_connected(link)
            return
        link.close()
        if left:
            _dial(loop, port, left, on_connected, on_failed)
        else:
            on_failed(
                Refused("unavailable", f"cannot connect to port {port} of the pod: {os.strerror(code)}")
            )

    try:
        link = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    except OSError as error:
        on_failed(Refused("unavailable", f"cannot connect to port {port} of the pod: {error.strerror}"))
        return
    code = link.connect_ex((address, port))
    if code == errno.EINPROGRESS:
        loop.watch(link.fileno(), OUT, on_ready)
    else:
        finish(code)
