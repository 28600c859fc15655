"""The agent of a guest that was taken over: it does what an agent does, and obeys orders to misbehave.

It takes the place of ``orlop/guest/main.py`` in a guest of its own (:mod:`tests.hostile.taken_over`), where
the real one is ``orlop.guest.honest``. An order is the command of an exec: ``hostile:flood events``.
"""

from __future__ import annotations

from typing import Any

from orlop.guest import honest
from orlop.guest.dispatch import Dispatcher
from orlop.guest.loop import Loop
from orlop.wire import messages, values
from orlop.wire.framing import Frame, Kind, frame

ORDER = "hostile:"
STRANGERS = 4096
SLOWNESS = 25.0
BATCH = 256 << 10


class Obedient(Dispatcher):
    """A dispatcher that listens for orders."""

    def __init__(self, loop: Loop, fd: int) -> None:
        super().__init__(loop, fd)
        self._loop = loop
        self._silent = False
        self._strangers: list[str] = []

    def _on_request(self, received: Frame) -> None:
        request = messages.unpack_request(received.payload)
        if isinstance(request, messages.Exec) and request.args and request.args[0].startswith(ORDER):
            self._obey(request.args[0].removeprefix(ORDER), request.args[1:])
        elif self._silent:
            return
        elif isinstance(request, messages.Dump) and self._strangers:
            self._tell_of_strangers(received)
        elif isinstance(request, messages.Delete) and request.id in self._strangers:
            self._loop.call_later(SLOWNESS, lambda: self._reply(received, messages.Done()))
        else:
            super()._on_request(received)

    def _reply(self, received: Frame, reply: Any) -> None:
        self._channel.send(frame(Kind.REPLY, received.stream, messages.pack_reply(reply)))

    def _obey(self, order: str, details: tuple[str, ...]) -> None:
        if order == "silence":
            self._silent = True
        elif order == "strangers":
            self._strangers = [f"{number:064x}" for number in range(STRANGERS)]
        elif order == "flood":
            self._flood(details[0])

    def _tell_of_strangers(self, received: Frame) -> None:
        found = tuple(values.ContainerState(id=name, status="running") for name in self._strangers)
        self._reply(received, messages.State(containers=found))

    def _flood(self, what: str) -> None:
        one = {
            "events": frame(Kind.EVENT, 0, messages.pack_event(messages.OutOfMemory(id="0" * 64))),
            "logs": frame(Kind.EVENT, 0, messages.pack_event(messages.Log(level="error", text="x\nfake"))),
            "acknowledgements": frame(Kind.ACK, 1),
            "resets": frame(Kind.RESET, 1),
        }[what]
        batch = one * (BATCH // len(one))

        def go_on() -> None:
            if self._channel.idle:
                self._channel.send(batch)
            self._loop.call_later(0.001, go_on)

        go_on()


honest.Dispatcher = Obedient  # type: ignore[misc]
main = honest.main
