"""The keeper of containerd's connections: a daemon that goes and comes back, and queues that end."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.errors import OrlopError, Unavailable
from orlop.shim import places
from orlop.shim.api import task_v2_pb2 as pb
from orlop.shim.command import keeper, start
from orlop.ttrpc import link
from orlop.ttrpc.client import Client
from orlop.ttrpc.messages_pb2 import Request
from orlop.ttrpc.server import METADATA, Services, serve

TASK = pb.DESCRIPTOR.services_by_name["Task"]
NAMESPACE = "tests"
LONG = AnyMessage(type_url="x", value=bytes(range(128, 256)) * 4)
"""Something in a request that is no text, and longer than one byte says."""


class Daemon:
    """The daemon's side: counts what it is asked, and answers as each test has it."""

    def __init__(self, state: Path) -> None:
        self.asked: list[str] = []
        self.metadata: list[dict[str, str]] = []
        self.heard = asyncio.Event()
        self.answers = True
        self._state = state
        self._listener: link.Listener | None = None

    def _method(self, name: str) -> Callable[[Any], Awaitable[Message]]:
        async def method(_request: object) -> Message:
            self.asked.append(name)
            self.metadata.append(METADATA.get())
            self.heard.set()
            if not self.answers:
                await asyncio.Event().wait()
            return {"Wait": pb.WaitResponse(exit_status=7), "Create": pb.CreateTaskResponse(pid=4)}.get(
                name, Empty()
            )

        return method

    async def start(self) -> None:
        services = Services()
        services.add(TASK, {method.name: self._method(method.name) for method in TASK.methods})

        async def answer(connection: link.SocketLink) -> None:
            await serve(connection, services)

        self._listener = link.Listener(self._state / places.DAEMON_SOCKET, answer)
        await self._listener.start()

    async def stop(self) -> None:
        if self._listener is not None:
            await self._listener.stop()


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The state directory of a keeper that runs until the test ends, however slow that is."""
    monkeypatch.setattr(keeper, "LINGER", 3600.0)
    address = os.fspath(tmp_path / places.HOLD_SOCKET)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as holding:
        holding.bind(address)
        holding.listen()
        thread = threading.Thread(target=keeper.Keeper(os.fspath(tmp_path), holding).run)
        thread.start()
        yield tmp_path
        monkeypatch.setattr(keeper, "LINGER", 0.0)
        while thread.is_alive():
            # It looks at the time when something happens.
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as poke, suppress(OSError):
                poke.connect(address)
            thread.join(0.05)


@pytest.fixture
async def daemon(state: Path) -> Any:
    one = Daemon(state)
    await one.start()
    yield one
    await one.stop()


async def connected(state: Path) -> Client:
    def ask() -> None:
        with start.connected(state, NAMESPACE):
            pass

    await asyncio.to_thread(ask)
    return Client(await link.connect(start.address(state, NAMESPACE)), "the keeper")


async def call(client: Client, method: str, request: Message, reply: type[Message]) -> Any:
    return await client.call(TASK.full_name, method, request, reply)


def test_what_is_asked_for_is_known_whatever_else_the_request_holds() -> None:
    request = Request(service=TASK.full_name, method="Create", payload=LONG.value)
    assert keeper.OpenCall(1, request.SerializeToString(), NAMESPACE).method == "Create"
    assert keeper.OpenCall(1, b"\x0a\xff", NAMESPACE).method == ""


async def test_the_namespace_comes_with_every_call(state: Path, daemon: Daemon) -> None:
    client = await connected(state)
    try:
        assert (await call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse)).exit_status == 7
        assert daemon.metadata == [{places.NAMESPACE: NAMESPACE}]
    finally:
        await client.close()


async def test_a_question_is_asked_again_and_what_is_done_once_fails(state: Path, daemon: Daemon) -> None:
    daemon.answers = False
    client = await connected(state)
    try:
        waiting = asyncio.ensure_future(call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse))
        await daemon.heard.wait()
        daemon.heard.clear()
        made = asyncio.ensure_future(
            call(client, "Create", pb.CreateTaskRequest(id="a", options=LONG), pb.CreateTaskResponse)
        )
        await daemon.heard.wait()
        await daemon.stop()
        with pytest.raises(Unavailable, match="orlopd went away during Create"):
            await made
        daemon.answers = True
        await daemon.start()
        assert (await waiting).exit_status == 7
        assert daemon.asked == ["Wait", "Create", "Wait"]
        assert [places.AGAIN in one for one in daemon.metadata] == [False, False, True]
        assert (await call(client, "Create", pb.CreateTaskRequest(id="a"), pb.CreateTaskResponse)).pid == 4
    finally:
        await client.close()


async def test_without_a_daemon_only_the_wait_for_an_end_goes_on(
    state: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "PATIENCE", 0.1)
    client = await connected(state)
    try:
        # A listener that ends while somebody connects may keep that one waiting.
        assert (await call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse)).exit_status == 7
        await daemon.stop()
        waiting = asyncio.ensure_future(call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse))
        with pytest.raises(Unavailable, match=r"no orlopd listens at .*systemctl start orlopd"):
            await call(client, "Kill", pb.KillRequest(id="a", signal=9), Empty)
        assert not waiting.done()
        await daemon.start()
        assert (await waiting).exit_status == 7
        assert daemon.asked == ["Wait", "Wait"], "what was refused is not done later"
    finally:
        await client.close()


async def test_so_many_questions_wait_and_no_more(
    state: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MOST_PENDING", 3)
    daemon.answers = False
    client = await connected(state)
    try:
        calls = [
            asyncio.ensure_future(call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse))
            for _ in range(5)
        ]
        refused, left = await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        while len(refused) < 2:
            more, left = await asyncio.wait(left, return_when=asyncio.FIRST_EXCEPTION)
            refused |= more
        assert all("3 calls wait on this connection already" in str(one.exception()) for one in refused)
        assert len(left) == 3
    finally:
        await client.close()
        with suppress(OrlopError):
            await asyncio.gather(*calls)


async def test_who_takes_no_answers_is_not_heard_any_more(
    state: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "MOST_PENDING", 0)
    monkeypatch.setattr(keeper, "MOST_WAITING", 1 << 16)
    data = Request(service=TASK.full_name, method="Wait").SerializeToString()
    frame = keeper.HEADER.pack(len(data), 1, keeper.REQUEST, 0) + data

    def flood() -> int:
        sent = 0
        with start.connected(state, NAMESPACE) as client:
            client.settimeout(2.0)
            with suppress(TimeoutError):
                while sent < MOST_TAKEN:
                    client.sendall(frame * 256)
                    sent += 256 * len(frame)
        return sent

    assert await asyncio.to_thread(flood) < MOST_TAKEN


MOST_TAKEN = 16 << 20
"""Far more than what the buffers of sockets hold beside those of the keeper."""


async def test_a_client_that_talks_nonsense_loses_its_connection_alone(state: Path, daemon: Daemon) -> None:
    client = await connected(state)

    def nonsense() -> bytes:
        with start.connected(state, NAMESPACE) as one:
            one.sendall(keeper.HEADER.pack(keeper.MAX_MESSAGE + 1, 1, keeper.REQUEST, 0))
            return one.recv(1)

    try:
        assert await asyncio.to_thread(nonsense) == b""
        assert (await call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse)).exit_status == 7
    finally:
        await client.close()


def test_what_is_held_is_let_go_when_the_next_daemon_does_not_know_it() -> None:
    def open_ends() -> tuple[int, int]:
        reader, writer = os.pipe()
        return reader, writer

    holds, (reader, writer), (other, held) = keeper.Holds(), open_ends(), open_ends()
    holds.take("hold", "a", [writer])
    holds.take("hold", "b", [held])
    holds.take("begin", "", [])
    holds.take("hold", "a", [os.dup(writer)])
    holds.take("end", "", [])
    assert len(holds) == 1
    assert os.read(other, 1) == b"", "nobody holds b"
    os.set_blocking(reader, False)
    with pytest.raises(BlockingIOError):
        os.read(reader, 1)
    holds.take("drop", "a", [])
    assert os.read(reader, 1) == b""
    os.close(reader)
    os.close(other)
