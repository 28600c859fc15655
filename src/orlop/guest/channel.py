"""The agent's end of the pipe to the daemon: a device, or a socket in tests.

A device whose host side nobody holds open reads as end of file and is "ready" for ever,
so it is watched edge-triggered: the kernel says once that something changed, and only then it is read.
"""

from __future__ import annotations

import errno
import os
from collections import deque
from collections.abc import Callable

from orlop.guest.loop import EDGE, IN, OUT, Loop
from orlop.wire.codec import ProtocolError
from orlop.wire.framing import Frame, Kind, Parser, frame, preamble

_CHUNK = 128 << 10


class Channel:
    """Frames in, frames out. Each preamble of the host begins a new *talk*.

    ``on_greeting`` is called for each HELLO, after all output of the talk before is dropped;
    ``on_frame`` for everything after it. ``talk`` counts greetings: an answer to an older one is stale.
    """

    def __init__(self, loop: Loop, fd: int, on_greeting: Callable[[Frame], bytes]) -> None:
        self.talk = 0
        self.on_frame: Callable[[Frame], None] = lambda received: None
        self.on_lost: Callable[[], None] = lambda: None
        self._loop = loop
        self._fd = fd
        self._on_greeting = on_greeting
        self._parser = Parser()
        self._queue: deque[bytes] = deque()
        self._nonce = b""
        self._greeted = False
        os.set_blocking(fd, False)
        loop.watch(fd, IN | OUT | EDGE, self._on_ready)

    @property
    def greeted(self) -> bool:
        """Whether a daemon is listening."""
        return self._greeted

    @property
    def idle(self) -> bool:
        """Whether all output has left."""
        return not self._queue

    def send(self, encoded: bytes) -> None:
        """Queue a frame; dropped when nobody listens."""
        if not self._greeted:
            return
        was_empty = not self._queue
        self._queue.append(encoded)
        if was_empty:
            self._loop.call_soon(self._flush)

    def _on_ready(self, events: int) -> None:
        heard = False
        while True:
            try:
                data = os.read(self._fd, _CHUNK)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno == errno.EINTR:
                    continue
                self._lost()
                return
            if not data:
                # The greeting can overtake the word that somebody is connected; that word wakes us again.
                if not heard:
                    self._lost()
                break
            heard = True
            self._take(data)
        self._flush()

    def _take(self, data: bytes) -> None:
        try:
            frames = self._parser.feed(data)
        except ProtocolError:
            # Out of step until the host greets again, which it does when it hears nothing more.
            self._lost()
            return
        for received in frames:
            if received.kind is Kind.SYNC:
                self._lost()
                self._nonce = received.payload
            elif received.kind is Kind.HELLO:
                self._greet(received)
            elif self._greeted:
                self.on_frame(received)

    def _greet(self, received: Frame) -> None:
        self.talk += 1
        try:
            hello = self._on_greeting(received)
        except ProtocolError:
            return
        self._greeted = True
        self._queue.append(preamble(self._nonce) + frame(Kind.HELLO, payload=hello))

    def _lost(self) -> None:
        self._queue.clear()
        if self._greeted:
            self._greeted = False
            self.on_lost()

    def _flush(self) -> None:
        while self._queue:
            encoded = self._queue[0]
            try:
                count = os.write(self._fd, encoded)
            except BlockingIOError:
                return
            except OSError:
                self._lost()
                return
            if count == len(encoded):
                self._queue.popleft()
            else:
                self._queue[0] = encoded[count:]
