"""The keeper of containerd's connections: a daemon that goes and comes back, and queues that end."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.errors import OrlopError, Unavailable
from orlop.shim import places
from orlop.shim.api import task_v2_pb2 as pb
from orlop.shim.command import keeper, launch, start
from orlop.shim.holding import KeeperLine
from orlop.ttrpc import link
from orlop.ttrpc.client import Client
from orlop.ttrpc.messages_pb2 import Request
from orlop.ttrpc.server import METADATA, Services, serve
from tests.patience import PATIENCE

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
        self.released = asyncio.Event()
        self._state = state
        self._listener: link.Listener | None = None

    def _method(self, name: str) -> Callable[[Any], Awaitable[Message]]:
        async def method(_request: object) -> Message:
            self.asked.append(name)
            self.metadata.append(METADATA.get())
            self.heard.set()
            if not self.answers:
                await self.released.wait()
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
    monkeypatch.setattr(keeper, "DESERTED", 3600.0)
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
        with start.KeeperConnection(state, NAMESPACE):
            pass

    await asyncio.to_thread(ask)
    return Client(await link.connect(Path(start.address(state, NAMESPACE))), "the keeper")


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
        with start.KeeperConnection(state, NAMESPACE) as one:
            client = one.link
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
        with start.KeeperConnection(state, NAMESPACE) as one:
            one.link.sendall(keeper.HEADER.pack(keeper.MAX_MESSAGE + 1, 1, keeper.REQUEST, 0))
            return one.link.recv(1)

    try:
        assert await asyncio.to_thread(nonsense) == b""
        assert (await call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse)).exit_status == 7
    finally:
        await client.close()


async def test_who_has_asked_the_last_question_is_let_go_when_nothing_is_open(
    state: Path, daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "PARTING", 0.0)
    other, client = await connected(state), await connected(state)
    daemon.answers = False
    try:
        waiting = asyncio.ensure_future(call(client, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse))
        await daemon.heard.wait()
        daemon.answers = True
        for _ in range(2):
            # An end that is waited for keeps the connection.
            await call(client, "Shutdown", pb.ShutdownRequest(id="a"), Empty)
        daemon.released.set()
        assert (await waiting).exit_status == 7
        async with asyncio.timeout(60 * PATIENCE):
            await client.wait_closed()
        assert (await call(other, "Wait", pb.WaitRequest(id="a"), pb.WaitResponse)).exit_status == 7
    finally:
        await client.close()
        await other.close()


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


class Kept:
    """A keeper with short patience, and one client that it has, if any."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.link: socket.socket | None = None
        self.holding = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.holding.bind(os.fspath(place / places.HOLD_SOCKET))
        self.holding.listen()
        self.keeper = keeper.Keeper(os.fspath(place), self.holding)
        self.thread = threading.Thread(target=self.keeper.run)

    def start(self, *notes: tuple[str, str, int], connected: bool = False) -> None:
        """Run it with what a daemon has left there, and with a connection of containerd's."""
        # By hand, and before it runs: one with nothing to keep ends at once.
        for verb, key, descriptor in notes:
            self.keeper._holds.take(verb, key, [os.dup(descriptor)] if descriptor >= 0 else [])
        if connected:
            address = Path(start.address(self.place, NAMESPACE))
            with launch._listening(address, socket.SOCK_STREAM) as serving:
                self.keeper._serve(NAMESPACE, os.dup(serving.fileno()))
            self.link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self.link.connect(os.fspath(address))
            assert self.keeper._accept(NAMESPACE, self.keeper._serving[NAMESPACE])
        self.thread.start()

    def ends(self) -> bool:
        self.thread.join(30 * PATIENCE)
        return not self.thread.is_alive()


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kept]:
    monkeypatch.setattr(keeper, "LINGER", 0.05)
    monkeypatch.setattr(keeper, "_CARE", 0.05)
    monkeypatch.setattr(keeper, "_LOOK", 0.01)
    (tmp_path / "state").mkdir()
    one = Kept(tmp_path / "state")
    yield one
    if one.link is not None:
        one.link.close()
    # Whatever it still holds: it is to end with the test.
    monkeypatch.setattr(keeper.Keeper, "_wanted", lambda _self, _now: False)
    if one.thread.ident is not None:
        one.thread.join(30 * PATIENCE)
    one.holding.close()


@contextmanager
def process() -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """A process that runs until the block ends, and a descriptor of it."""
    with subprocess.Popen(["sleep", "3600"]) as running:
        descriptor = os.pidfd_open(running.pid)
        try:
            yield running, descriptor
        finally:
            os.close(descriptor)
            running.kill()


TASK_KEY, FIFO_KEY = f"{NAMESPACE}/one/", f"{NAMESPACE}/one//out"


def test_a_keeper_whose_directory_is_gone_ends(kept: Kept) -> None:
    reader, writer = os.pipe()
    kept.start(("hold", TASK_KEY, -1), ("hold", FIFO_KEY, writer))
    os.close(writer)
    shutil.rmtree(kept.place)
    assert kept.ends()
    assert os.read(reader, 1) == b"", "nobody holds it any more"
    os.close(reader)


def test_a_keeper_whose_place_another_one_has_taken_ends_and_leaves_that_alone(kept: Kept) -> None:
    kept.start(("hold", TASK_KEY, -1))
    with launch._listening(kept.place / places.HOLD_SOCKET, socket.SOCK_SEQPACKET):
        assert kept.ends()
        assert launch._answers(kept.place / places.HOLD_SOCKET, socket.SOCK_SEQPACKET)


def test_a_keeper_without_its_directory_stays_as_long_as_a_task_of_containerds_lives(kept: Kept) -> None:
    with process() as (running, descriptor):
        kept.start(("hold", TASK_KEY, descriptor), connected=True)
        assert kept.link is not None
        shutil.rmtree(kept.place)
        assert kept.keeper._wanted_alone(time.monotonic()) and kept.thread.is_alive()
        running.kill()
        assert kept.ends()
        assert kept.link.recv(1) == b"", "containerd is told"


def test_a_keeper_whose_daemon_was_removed_ends_when_nothing_lives(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    with process() as (running, descriptor):
        kept.start(("hold", TASK_KEY, descriptor), ("expect", f"{NAMESPACE}/two/", -1), connected=True)
        now = time.monotonic()
        assert kept.keeper._wanted_alone(now), "the daemon may come back"
        assert kept.keeper._wanted_alone(now + 2 * keeper.ABANDONED), "a task lives"
        running.kill()
        running.wait()
        assert kept.keeper._wanted_alone(now), "the daemon may come back"
        monkeypatch.setattr(keeper, "ABANDONED", 0.0)
        assert kept.ends()
        assert list(kept.place.glob("*.sock")) == []


def test_a_keeper_with_nothing_to_keep_lingers_for_a_daemon_alone(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "LINGER", 3600.0)
    monkeypatch.setattr(keeper, "DESERTED", 0.0)
    with launch._listening(kept.place / places.DAEMON_SOCKET, socket.SOCK_STREAM) as daemon:
        kept.start()
        daemon.settimeout(30 * PATIENCE)
        for _ in range(3):
            daemon.accept()[0].close()
            assert kept.thread.is_alive()
    assert kept.ends()


def test_a_keeper_asks_a_daemon_that_is_back_what_to_hold(
    kept: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper, "ABANDONED", 3600.0)
    with launch._listening(kept.place / places.DAEMON_SOCKET, socket.SOCK_STREAM) as daemon:
        kept.start(("expect", TASK_KEY, -1))
        daemon.settimeout(30 * PATIENCE)
        daemon.accept()[0].close()
        line = KeeperLine(kept.place)
        line._send({"verb": "begin", "key": ""}, [])
        line._send({"verb": "end", "key": ""}, [])
        asyncio.run(line.close())
        assert kept.ends()
