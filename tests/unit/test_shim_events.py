"""What containerd is told, over a socket on which somebody answers as told to."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from orlop.shim import events
from orlop.shim.api import events_pb2 as pb
from orlop.shim.api import forward_pb2
from orlop.shim.events import Announcer
from orlop.ttrpc import frames, link
from orlop.ttrpc.client import Client
from orlop.ttrpc.frames import FrameType, LinkLost, TtrpcFrame
from orlop.ttrpc.messages_pb2 import Request, Response, Status
from tests.patience import PATIENCE

REFUSED = 3


class Listening:
    """A containerd; ``refused`` are events that it does not take."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.refused: set[str] = set()
        self.connections = 0

    async def serve(self, connection: link.SocketLink) -> None:
        self.connections += 1
        with contextlib.suppress(LinkLost):
            while True:
                frame = await frames.read(connection)
                request = Request.FromString(frame.data)
                envelope = forward_pb2.ForwardRequest.FromString(request.payload).envelope
                name = pb.TaskPaused.FromString(envelope.event.value).container_id
                code = REFUSED if name in self.refused else 0
                if not code:
                    self.heard.append(name)
                answer = Response(status=Status(code=code, message="no")).SerializeToString()
                await connection.write(TtrpcFrame(frame.stream, FrameType.RESPONSE, answer).encode())

    async def until(self, names: list[str]) -> None:
        async with asyncio.timeout(20 * PATIENCE):
            while self.heard != names:  # noqa: ASYNC110 - nothing would set an event
                await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def containerd(path: Path) -> AsyncIterator[tuple[Listening, Callable[[str], None]]]:
    there, announcer = Listening(), Announcer()
    listener = link.Listener(path, there.serve)
    await listener.start()
    try:
        yield there, lambda name: announcer.tell(str(path), "test", pb.TaskPaused(container_id=name))
    finally:
        await announcer.close()
        await listener.stop()


async def test_an_event_that_is_not_taken_holds_up_no_other(tmp_path: Path) -> None:
    async with containerd(tmp_path / "c.sock") as (there, tell):
        there.refused.add("a")
        for name in "abc":
            tell(name)
        await there.until(["b", "c"])


async def test_events_that_follow_one_another_take_one_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_KEEP", 3600.0)
    async with containerd(tmp_path / "c.sock") as (there, tell):
        for count, name in enumerate("abc", 1):
            tell(name)
            await there.until(list("abc"[:count]))
        assert there.connections == 1


async def test_a_containerd_that_starts_anew_is_told_by_a_new_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "_KEEP", 3600.0)
    path, announcer = tmp_path / "c.sock", Announcer()
    for name in "ab":
        there = Listening()
        listener = link.Listener(path, there.serve)
        await listener.start()
        announcer.tell(str(path), "test", pb.TaskPaused(container_id=name))
        await there.until([name])
        await listener.stop()
    await announcer.close()


async def test_what_comes_while_the_connection_is_closed_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = iter("bc")

    class Closing(Client):
        async def close(self) -> None:
            if name := next(late, ""):
                tell(name)
            await super().close()

    monkeypatch.setattr(events, "Client", Closing)
    monkeypatch.setattr(events, "_KEEP", 0.0)
    async with containerd(tmp_path / "c.sock") as (there, tell):
        tell("a")
        await there.until(["a", "b", "c"])
