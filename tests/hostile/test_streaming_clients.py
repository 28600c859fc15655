"""Clients of exec, attach and port-forward that would fill the daemon, or keep the others out.

Each attack is run twice: as the daemon is, and with the guard taken away, to show that it would work.
"""

from __future__ import annotations

import asyncio
import gc
import resource
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from orlop.config import StreamingConfig
from orlop.cri.streaming import server as servers
from orlop.cri.streaming import sessions, spdy, spdyconn
from orlop.cri.streaming.server import StreamingServer
from orlop.cri.streaming.spdy import ResetStatus
from orlop.cri.streaming.spdyconn import SpdyStream
from orlop.sandbox.base import Connection
from tests.patience import PATIENCE
from tests.unit.test_streaming_server import Backend, SpdyClient, TcpConnection, exec_url

STREAMS = 1500
HUGE = 60_000
FORWARD = "portforward.k8s.io"


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20 * PATIENCE):
        while not condition():  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(0.02)


class Stuck(TcpConnection):
    """A connection into a pod that takes nothing and says nothing."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def read(self, limit: int) -> bytes:
        await self.closed.wait()
        return b""

    async def write(self, data: bytes) -> None:
        await self.closed.wait()

    async def write_eof(self) -> None:
        pass

    async def close(self) -> None:
        self.closed.set()


class StuckBackend(Backend):
    def __init__(self) -> None:
        super().__init__()
        self.opened: list[Stuck] = []

    async def connect(self, pod_id: str, port: int) -> Connection:
        self.opened.append(Stuck())
        return self.opened[-1]


@asynccontextmanager
async def serving(backend: Backend) -> AsyncIterator[StreamingServer]:
    server = StreamingServer(StreamingConfig(), backend)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


def held() -> list[SpdyStream]:
    """The streams that something in this process, which is the daemon's, still holds."""
    gc.collect()
    return [found for found in gc.get_objects() if isinstance(found, SpdyStream)]


def held_header_bytes() -> int:
    return sum(len(value) for stream in held() for value in stream.headers.values())


async def bomb(server: StreamingServer, header: int, streams: int) -> SpdyClient:
    """Begin requests with large headers that cost little to send, and give each up at once."""
    client = await SpdyClient.open(server.port_forward_url("p", ()), FORWARD)
    for number in range(streams):
        headers = {"streamType": "error", "requestID": str(number), "port": "1", "x": "a" * header}
        client.send(client.frames.syn_stream(2 * number + 1, headers))
        client.send(client.frames.reset(2 * number + 1, ResetStatus.CANCEL))
        try:
            await client.writer.drain()
        except ConnectionError:
            break  # it was thrown out
    return client


async def settled(client: SpdyClient) -> None:
    """All that the client sent was read: the answer to a ping, or the end, has come."""
    client.send(client.frames.ping(1))
    with_ping = b"\x80\x03\x00\x06"
    seen = b""
    async with asyncio.timeout(60 * PATIENCE):
        while with_ping not in seen:
            try:
                data = await client.reader.read(1 << 16)
            except ConnectionError:
                return
            if not data:
                return
            seen = seen[-8:] + data


async def test_streams_that_were_given_up_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(Backend()) as server:
        client = await bomb(server, HUGE, 10)
        await settled(client)
        assert held_header_bytes() < HUGE, "headers of that size end the session"
        client.close()
        client = await bomb(server, 3_000, STREAMS)
        await settled(client)
        assert len(held()) <= sessions.MAX_BEGUN + 1
        client.close()
    monkeypatch.setattr(spdy, "MAX_HEADER_BLOCK", 64 << 10)
    monkeypatch.setattr(sessions, "MAX_BEGUN", 10**9)
    async with serving(Backend()) as server:
        client = await bomb(server, HUGE, STREAMS)
        await settled(client)
        assert held_header_bytes() > HUGE * STREAMS * 0.9, "without the guards the attack works"
        client.close()


async def test_requests_that_were_given_up_let_go_of_the_pod() -> None:
    backend = StuckBackend()
    async with serving(backend) as server:
        client = await SpdyClient.open(server.port_forward_url("p", ()), FORWARD)
        for number in range(20):
            more = {"port": "80", "requestID": str(number)}
            client.send(client.frames.syn_stream(4 * number + 1, {"streamType": "error", **more}))
            client.send(client.frames.syn_stream(4 * number + 3, {"streamType": "data", **more}))
        await until(lambda: len(backend.opened) == 20)
        for number in range(20):
            client.send(client.frames.reset(4 * number + 3, ResetStatus.CANCEL))
        await until(lambda: all(one.closed.is_set() for one in backend.opened))
        await client.drain_until(*(4 * number + 1 for number in range(20)))
        client.close()


async def stuff(server: StreamingServer, streams: int, seconds: float) -> int:
    """Send to many ports of which none reads, for so long; the bytes that wait in the daemon in the end."""
    client = await SpdyClient.open(server.port_forward_url("p", ()), FORWARD)
    piece = bytes(60_000)

    async def send() -> None:
        for number in range(streams):
            more = {"port": "80", "requestID": str(number)}
            client.send(client.frames.syn_stream(4 * number + 1, {"streamType": "error", **more}))
            client.send(client.frames.syn_stream(4 * number + 3, {"streamType": "data", **more}))
            for _ in range(4):
                client.send(client.frames.data(4 * number + 3, piece))
                await client.writer.drain()

    try:
        async with asyncio.timeout(seconds):
            await send()
    except TimeoutError:
        pass  # nobody reads it any more: the guard
    await asyncio.sleep(1)
    size = sum(stream.incoming.size for stream in held())
    client.close()
    return size


async def test_bytes_that_no_pod_takes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    streams = 60
    limit = 2 << 20
    monkeypatch.setattr(spdyconn, "CONNECTION_BYTES", limit)
    backend = StuckBackend()
    async with serving(backend) as server:
        assert limit <= await stuff(server, streams, 10) <= limit + spdy.MAX_FRAME
    monkeypatch.setattr(spdyconn, "CONNECTION_BYTES", 1 << 40)
    async with serving(backend) as server:
        found = await stuff(server, streams, 60 * PATIENCE)
        assert found > 2 * limit, "without the guard the attack works"


@pytest.fixture
def many_files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], min(4096, before[1])), before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def idle(server: StreamingServer, count: int) -> list[asyncio.StreamWriter]:
    """Connections that never say anything."""
    host, _, port = exec_url(server).removeprefix("http://").partition("/")[0].rpartition(":")
    return [(await asyncio.open_connection(host, int(port)))[1] for _ in range(count)]


async def test_connections_that_say_nothing_keep_nobody_out(
    many_files: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(Backend()) as server:
        writers = await idle(server, 1100)
        client = await SpdyClient.open(exec_url(server))
        assert b"101" in client.status.splitlines()[0]
        await until(lambda: len(server._sessions) <= servers.MAX_STRANGERS + 10)
        client.close()
        for writer in writers:
            writer.close()
    monkeypatch.setattr(servers, "MAX_STRANGERS", 10**9)
    async with serving(Backend()) as server:
        writers = await idle(server, 1100)
        await until(lambda: len(server._sessions) >= 1100)
        for writer in writers:
            writer.close()
