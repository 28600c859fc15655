"""All open streams, by their numbers, and the way to the host that they share."""

from __future__ import annotations

from collections.abc import Callable

from orlop.guest.loop import Loop
from orlop.guest.streams.connect import SocketStream
from orlop.guest.streams.pipes import InputPipe, OutputPipe
from orlop.wire.messages import Refused


class Streaming:
    """What streams need of the agent: the loop, the way to the host, and the table of open streams."""

    def __init__(self, loop: Loop, send: Callable[[bytes], None]) -> None:
        self.loop = loop
        self.send = send
        self.flowing = False
        self.next_stream = 1
        self.table: dict[int, InputPipe | OutputPipe | SocketStream] = {}

    def claim(self, *streams: int) -> None:
        """Note stream ids as used; ``invalid`` when one is in use."""
        wanted = [stream for stream in streams if stream]
        if len(set(wanted)) != len(wanted) or any(stream in self.table for stream in wanted):
            raise Refused("invalid", f"stream ids {wanted} are in use")
        self.next_stream = max([self.next_stream, *(stream + 1 for stream in wanted)])

    def output(self, stream: int, fd: int, on_done: Callable[[], None]) -> OutputPipe:
        """Open a stream from ``fd``."""
        opened = OutputPipe(self.loop, self.send, stream, fd, paused=not self.flowing)
        opened.on_done = lambda: self.forget(stream, on_done)
        self.table[stream] = opened
        return opened

    def input(
        self, stream: int, fd: int, on_done: Callable[[], None] | None = None, *, terminal: bool = False
    ) -> InputPipe:
        """Open a stream to ``fd``."""
        opened = InputPipe(self.loop, self.send, stream, fd, terminal=terminal)
        opened.on_done = lambda: self.forget(stream, on_done)
        self.table[stream] = opened
        return opened

    def pause(self) -> None:
        """No daemon: streams keep what they have."""
        self.flowing = False
        for opened in self.table.values():
            opened.pause()

    def forget(self, stream: int, then: Callable[[], None] | None = None) -> None:
        """A stream is done."""
        self.table.pop(stream, None)
        if then is not None:
            then()
