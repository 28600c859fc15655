"""From frames to requests and streams, and back."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from typing import Any

from orlop.guest import warm
from orlop.guest.agent import Agent
from orlop.guest.answer import Answer
from orlop.guest.channel import Channel
from orlop.guest.loop import Loop
from orlop.guest.streams.table import Streaming
from orlop.wire import hello, messages
from orlop.wire.codec import ProtocolError
from orlop.wire.framing import Frame, Kind, frame
from orlop.wire.messages import Refused


class Dispatcher:
    """Ties a channel to an agent."""

    def __init__(self, loop: Loop, fd: int) -> None:
        self._channel = Channel(loop, fd, self._greet)
        self._channel.on_frame = self._on_frame
        self._channel.on_lost = self._on_lost
        self._streaming = Streaming(loop, self._channel.send)
        self.agent = Agent(loop, self._streaming, self._emit)
        self._handlers: dict[str, Callable[[Any, Answer], None]] = {
            op: getattr(self.agent, op) for op in messages.REQUESTS if op != messages.Quiesce.op
        }
        # It walks through all the others.
        self._handlers[messages.Quiesce.op] = lambda request, answer: warm.quiesce(self.agent, answer)

    def log(self, text: str, level: str = "error") -> None:
        """Say something on the console, and to the daemon if it listens."""
        sys.stderr.write(f"agent: {level}: {text}\n")
        sys.stderr.flush()
        self._emit(messages.Log(level=level, text=text[-8192:]))  # type: ignore[arg-type]

    def _greet(self, received: Frame) -> bytes:
        hello.unpack_hello(received.payload)
        self._on_lost()
        return hello.pack_hello(
            hello.Hello(
                version=hello.VERSION,
                next_stream=self._streaming.next_stream,
                features=hello.FEATURES,
            )
        )

    def _on_lost(self) -> None:
        self._streaming.pause()
        self.agent.sockets.pause()
        self.agent.volumes.forget_parts()

    def _emit(self, event: messages.Event) -> bool:
        if not self._channel.greeted:
            return False
        self._channel.send(frame(Kind.EVENT, 0, messages.pack_event(event)))
        return True

    def _on_frame(self, received: Frame) -> None:
        if received.kind is Kind.REQUEST:
            self._on_request(received)
            return
        opened = self._streaming.table.get(received.stream)
        if opened is None:
            return
        try:
            opened.on_frame(received)
        except ProtocolError as error:
            self.log(f"stream {received.stream}: {error}", "warning")
            opened.drain()

    def _on_request(self, received: Frame) -> None:
        answer = Answer(self._replier(received.stream))
        try:
            request = messages.unpack_request(received.payload)
            self._handlers[request.op](request, answer)
        except Refused as refused:
            answer.refuse(refused)
        except ProtocolError as error:
            answer.refuse(Refused("invalid", str(error)))
        except Exception as error:
            self.log(traceback.format_exc())
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{os.path.basename(where.filename)}:{where.lineno}"
            answer.refuse(Refused("internal", f"{type(error).__name__}: {error} ({place})"))

    def _replier(self, number: int) -> Callable[[bytes], None]:
        talk = self._channel.talk

        def send(payload: bytes) -> None:
            if talk == self._channel.talk:
                self._channel.send(frame(Kind.REPLY, number, payload))

        return send
