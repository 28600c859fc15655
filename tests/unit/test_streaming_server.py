from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import pytest
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection
from wsproto.events import Request as WsRequest

from orlop.config import StreamingConfig
from orlop.cri.streaming.server import StreamingServer
from orlop.cri.streaming.spdy import Data, Frame, FrameParser, FrameWriter
from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from orlop.sandbox.base import Connection, ProcessIO
from orlop.sandbox.spec import ExecSpec, ExitStatus


@dataclass
class EchoIO:
    """A process that echoes stdin to stdout and exits with ``code`` at its end."""

    code: int = 0
    stderr: bytes = b""
    sizes: list[tuple[int, int]] = field(default_factory=list)
    closed: bool = False
    failure: Exception | None = None
    message: str = ""

    def __post_init__(self) -> None:
        self._queue: asyncio.Queue[bytes] = asyncio.Queue()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        if self.stderr:
            yield 2, self.stderr
        while data := await self._queue.get():
            yield 1, data

    async def write(self, data: bytes) -> None:
        await self._queue.put(data)

    async def close_stdin(self) -> None:
        await self._queue.put(b"")

    async def resize(self, width: int, height: int) -> None:
        self.sizes.append((width, height))

    async def wait(self) -> ExitStatus:
        if self.failure is not None:
            raise self.failure
        return ExitStatus(code=self.code, finished_at=1, message=self.message)

    async def close(self) -> None:
        self.closed = True


class TcpConnection:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def read(self, limit: int) -> bytes:
        return await self.reader.read(limit)

    async def write(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def write_eof(self) -> None:
        self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()


class LostConnection(TcpConnection):
    """A connection into a VM that dies."""

    def __init__(self) -> None:
        pass

    async def read(self, limit: int) -> bytes:
        raise Unavailable("the VM is gone")

    async def close(self) -> None:
        pass


class Backend:
    def __init__(self) -> None:
        self.io = EchoIO()
        self.specs: list[ExecSpec] = []

    async def exec(self, container_id: str, spec: ExecSpec) -> ProcessIO:
        if container_id != "c":
            raise NotFound(f"container {container_id} does not exist")
        self.specs.append(spec)
        return self.io

    async def attach(self, container_id: str, *, stdin: bool) -> ProcessIO:
        return self.io

    async def connect(self, pod_id: str, port: int) -> Connection:
        if port == 0:
            raise NotFound("nothing listens there")
        if port == 1:
            raise FileNotFoundError(2, "No such file or directory", "/run/netns/gone")
        if port == 2:
            return LostConnection()
        return TcpConnection(*await asyncio.open_connection("127.0.0.1", port))


@pytest.fixture
async def backend() -> Backend:
    return Backend()


@pytest.fixture
async def server(backend: Backend) -> AsyncIterator[StreamingServer]:
    server = StreamingServer(StreamingConfig(), backend)
    await server.start()
    yield server
    await server.stop()


class SpdyClient:
    """Speaks just enough of the client's side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.frames, self.parser = FrameWriter(), FrameParser()
        self.data: dict[int, bytes] = {}
        self.ended: set[int] = set()
        self.status = b""

    @classmethod
    async def open(cls, url: str, protocol: str = "v4.channel.k8s.io") -> SpdyClient:
        host, _, path = url.removeprefix("http://").partition("/")
        name, _, port = host.rpartition(":")
        client = cls(*await asyncio.open_connection(name, int(port)))
        client.writer.write(
            f"POST /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
            f"X-Stream-Protocol-Version: {protocol}\r\nContent-Length: 0\r\n\r\n".encode()
        )
        client.status = await client.reader.readuntil(b"\r\n\r\n")
        return client

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    def streams(self, *kinds: str, **more: str) -> dict[str, int]:
        ids = {}
        for number, kind in enumerate(kinds):
            ids[kind] = 2 * number + 1
            self.send(self.frames.syn_stream(ids[kind], {"streamType": kind, **more}))
        return ids

    async def drain_until(self, *streams: int) -> None:
        async with asyncio.timeout(20):
            while not set(streams) <= self.ended:
                data = await self.reader.read(65536)
                assert data, "the server left early"
                for frame in self.parser.feed(data):
                    self._take(frame)

    def _take(self, frame: Frame) -> None:
        if isinstance(frame, Data):
            self.data[frame.stream] = self.data.get(frame.stream, b"") + frame.data
            if frame.fin:
                self.ended.add(frame.stream)

    def close(self) -> None:
        self.writer.close()


def exec_url(server: StreamingServer, container: str = "c", *, tty: bool = False) -> str:
    return server.exec_url(container, ("cat",), tty=tty, stdin=True, stdout=True, stderr=not tty)


async def test_exec_over_spdy_carries_streams_and_exit_code(
    server: StreamingServer, backend: Backend
) -> None:
    backend.io.code, backend.io.stderr = 3, b"oh\n"
    client = await SpdyClient.open(exec_url(server))
    assert b"101" in client.status.splitlines()[0]
    ids = client.streams("error", "stdin", "stdout", "stderr")
    client.send(client.frames.data(ids["stdin"], b"x" * 300_000))
    client.send(client.frames.data(ids["stdin"], b"", fin=True))
    await client.drain_until(*(set(ids.values()) - {ids["stdin"]}))
    assert client.data[ids["stdout"]] == b"x" * 300_000
    assert client.data[ids["stderr"]] == b"oh\n"
    status = json.loads(client.data[ids["error"]])
    assert status["reason"] == "NonZeroExitCode"
    assert status["details"]["causes"] == [{"reason": "ExitCode", "message": "3"}]
    client.close()


async def test_a_terminal_is_resized(server: StreamingServer, backend: Backend) -> None:
    client = await SpdyClient.open(exec_url(server, tty=True))
    ids = client.streams("error", "stdin", "stdout", "resize")
    client.send(client.frames.data(ids["resize"], b'{"Width":80,"Height":24}{"Width":100,'))
    client.send(client.frames.data(ids["resize"], b'"Height":30}\n["no"]'))
    async with asyncio.timeout(20):
        while len(backend.io.sizes) < 2:  # noqa: ASYNC110 - the fake has no event to wait for
            await asyncio.sleep(0.01)
    client.send(client.frames.data(ids["stdin"], b"", fin=True))
    await client.drain_until(ids["error"])
    assert backend.io.sizes == [(80, 24), (100, 30)]
    assert (backend.specs[0].width, backend.specs[0].height) == (80, 24), "known before it starts"
    client.close()


@pytest.mark.parametrize("nonsense", [b"[" * 5000, b"9" * 5000, b"1 " * 30_000, b'{"Width": ' * 900])
async def test_sizes_that_are_none_end_no_session(
    server: StreamingServer, backend: Backend, nonsense: bytes
) -> None:
    client = await SpdyClient.open(exec_url(server, tty=True))
    ids = client.streams("error", "stdin", "stdout", "resize")
    client.send(client.frames.data(ids["resize"], nonsense))
    await asyncio.sleep(0.05)
    client.send(client.frames.data(ids["resize"], b'{"Width":80,"Height":24}'))
    client.send(client.frames.data(ids["stdin"], b"", fin=True))
    await client.drain_until(ids["error"])
    assert json.loads(client.data[ids["error"]])["status"] == "Success"
    client.close()


async def test_an_unknown_container_is_told_on_the_error_stream(server: StreamingServer) -> None:
    client = await SpdyClient.open(exec_url(server, "nobody"))
    ids = client.streams("error", "stdin", "stdout", "stderr")
    await client.drain_until(ids["error"])
    assert "nobody" in json.loads(client.data[ids["error"]])["message"]
    client.close()


async def test_a_client_that_vanishes_closes_the_process(server: StreamingServer, backend: Backend) -> None:
    client = await SpdyClient.open(exec_url(server))
    client.streams("error", "stdin", "stdout", "stderr")
    await asyncio.sleep(0.1)
    assert not backend.io.closed
    client.close()
    async with asyncio.timeout(20):
        while not backend.io.closed:  # noqa: ASYNC110 - the fake has no event to wait for
            await asyncio.sleep(0.01)


async def test_a_token_works_once_and_only_for_its_kind(server: StreamingServer) -> None:
    url = exec_url(server)
    client = await SpdyClient.open(url)
    again = await SpdyClient.open(url)
    assert b"404" in again.status.splitlines()[0]
    other = await SpdyClient.open(exec_url(server).replace("/exec/", "/attach/"))
    assert b"404" in other.status.splitlines()[0]
    for each in (client, again, other):
        each.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00\x01garbage\r\n\r\n",
        b"GET /exec/x HTTP/1.1\r\nHost: x\r\nA: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /exec/x HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
    ],
)
async def test_bad_requests_are_answered_with_4xx(server: StreamingServer, request_bytes: bytes) -> None:
    host = exec_url(server).removeprefix("http://").partition("/")[0]
    reader, writer = await asyncio.open_connection(*host.rsplit(":", 1))
    writer.write(request_bytes)
    async with asyncio.timeout(20):
        answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 4")
    writer.close()


async def test_spdy_garbage_after_the_upgrade_ends_only_that_session(server: StreamingServer) -> None:
    client = await SpdyClient.open(exec_url(server))
    client.send(b"\x80\x09" + b"\xff" * 500)
    async with asyncio.timeout(20):
        assert await client.reader.read() == b""
    client.close()
    assert exec_url(server)


async def echo_server() -> tuple[asyncio.Server, int]:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1000):
            writer.write(data)
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_port_forward_over_spdy(server: StreamingServer) -> None:
    echo, port = await echo_server()
    client = await SpdyClient.open(server.port_forward_url("p", ()), "portforward.k8s.io")
    for number, target in enumerate((port, 0)):
        more = {"port": str(target), "requestID": str(number)}
        client.send(client.frames.syn_stream(4 * number + 1, {"streamType": "error", **more}))
        client.send(client.frames.syn_stream(4 * number + 3, {"streamType": "data", **more}))
    client.send(client.frames.data(3, b"hello" * 1000))
    client.send(client.frames.data(3, b"", fin=True))
    await client.drain_until(3, 1, 5, 7)
    assert client.data[3] == b"hello" * 1000
    assert b"nothing listens" in client.data[5]
    client.close()
    echo.close()


async def test_a_port_forward_that_breaks_is_told_and_leaves_the_others_alone(
    server: StreamingServer,
) -> None:
    echo, port = await echo_server()
    client = await SpdyClient.open(server.port_forward_url("p", ()), "portforward.k8s.io")
    for number, target in enumerate((1, 2, port)):
        more = {"port": str(target), "requestID": str(number)}
        client.send(client.frames.syn_stream(4 * number + 1, {"streamType": "error", **more}))
        client.send(client.frames.syn_stream(4 * number + 3, {"streamType": "data", **more}))
    await client.drain_until(1, 3, 5, 7)
    assert b"/run/netns/gone" in client.data[1]
    assert b"the VM is gone" in client.data[5]
    client.send(client.frames.data(11, b"hello", fin=True))
    await client.drain_until(11)
    assert client.data[11] == b"hello"
    client.close()
    echo.close()


class WsClient:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.ws = WSConnection(ConnectionType.CLIENT)
        self.chosen: str | None = None

    @classmethod
    async def open(cls, url: str, protocol: str) -> WsClient:
        host, _, path = url.removeprefix("http://").partition("/")
        name, _, port = host.rpartition(":")
        client = cls(*await asyncio.open_connection(name, int(port)))
        client.writer.write(client.ws.send(WsRequest(host=host, target="/" + path, subprotocols=[protocol])))
        client.ws.receive_data(await client.reader.readuntil(b"\r\n\r\n"))
        for event in client.ws.events():
            if isinstance(event, AcceptConnection):
                client.chosen = event.subprotocol
                break
        return client

    def send(self, data: bytes) -> None:
        self.writer.write(self.ws.send(BytesMessage(data=data)))

    async def all(self) -> dict[int, bytes]:
        """What came on each channel, until the server closes."""
        channels: dict[int, bytes] = {}
        while True:
            async with asyncio.timeout(20):
                data = await self.reader.read(65536)
            self.ws.receive_data(data or None)
            for event in self.ws.events():
                if isinstance(event, BytesMessage):
                    payload = bytes(event.data)
                    channels[payload[0]] = channels.get(payload[0], b"") + payload[1:]
                elif isinstance(event, CloseConnection):
                    self.writer.close()
                    return channels


@pytest.mark.parametrize("code", [0, 7])
async def test_a_websocket_v5_client_ends_a_channel_and_the_server_never_does(
    server: StreamingServer, backend: Backend, code: int
) -> None:
    backend.io.code = code
    client = await WsClient.open(exec_url(server), "v5.channel.k8s.io")
    await asyncio.sleep(0.05)
    client.send(b"\x00hello")
    client.send(b"\xff\x00")
    channels = await client.all()
    assert client.chosen == "v5.channel.k8s.io"
    assert channels[1] == b"hello"
    status = json.loads(channels[3])
    assert status["status"] == ("Failure" if code else "Success")
    assert set(channels) <= {1, 2, 3}, "a client would say 'Unknown stream'"


FAILURES = [
    (FailedPrecondition("there is no such command"), "no such command"),
    (OSError(5, "Input/output error"), "Input/output error"),
    (RuntimeError("a defect"), "internal error"),
]


@pytest.mark.parametrize(("failure", "words"), FAILURES)
async def test_a_command_that_fails_behind_its_start_is_no_success_over_spdy(
    server: StreamingServer, backend: Backend, failure: Exception, words: str
) -> None:
    backend.io.failure = failure
    client = await SpdyClient.open(exec_url(server))
    ids = client.streams("error", "stdin", "stdout", "stderr")
    client.send(client.frames.data(ids["stdin"], b"", fin=True))
    await client.drain_until(ids["error"], ids["stdout"], ids["stderr"])
    status = json.loads(client.data[ids["error"]])
    assert (status["status"], status["reason"]) == ("Failure", "InternalError")
    assert words in status["message"]
    client.close()


@pytest.mark.parametrize(("failure", "words"), FAILURES)
async def test_a_command_that_fails_behind_its_start_is_no_success_over_websocket(
    server: StreamingServer, backend: Backend, failure: Exception, words: str
) -> None:
    backend.io.failure = failure
    client = await WsClient.open(exec_url(server), "v5.channel.k8s.io")
    client.send(b"\xff\x00")
    status = json.loads((await client.all())[3])
    assert status["status"] == "Failure"
    assert words in status["message"]


@pytest.mark.parametrize("kind", ["exec", "attach"])
async def test_a_lost_process_is_no_success(server: StreamingServer, backend: Backend, kind: str) -> None:
    backend.io.code, backend.io.message = 137, "the VM is gone"
    url = exec_url(server)
    if kind == "attach":
        url = server.attach_url("c", tty=False, stdin=True, stdout=True, stderr=True)
    client = await SpdyClient.open(url)
    ids = client.streams("error", "stdin", "stdout", "stderr")
    client.send(client.frames.data(ids["stdin"], b"", fin=True))
    await client.drain_until(ids["error"])
    status = json.loads(client.data[ids["error"]])
    assert (status["status"], status["message"]) == ("Failure", "the VM is gone")
    client.close()


async def test_a_websocket_with_an_unknown_protocol_is_refused(server: StreamingServer) -> None:
    client = await WsClient.open(exec_url(server), "v9.example")
    assert client.chosen is None
    client.writer.close()


async def test_port_forward_over_websocket_channels(server: StreamingServer) -> None:
    echo, port = await echo_server()
    client = await WsClient.open(server.port_forward_url("p", (port,)), "v4.channel.k8s.io")
    client.send(b"\x00hello")
    received = b""
    async with asyncio.timeout(20):
        while b"hello" not in received:
            client.ws.receive_data(await client.reader.read(65536))
            for event in client.ws.events():
                if isinstance(event, BytesMessage) and event.data[0] == 0:
                    received += bytes(event.data[1:])
    assert received == port.to_bytes(2, "little") + b"hello"
    client.writer.close()
    echo.close()


async def test_senseless_streams_are_refused(server: StreamingServer) -> None:
    with pytest.raises(InvalidArgument):
        server.exec_url("c", ("sh",), tty=True, stdin=True, stdout=True, stderr=True)
    with pytest.raises(InvalidArgument):
        server.attach_url("c", tty=False, stdin=False, stdout=False, stderr=False)


async def test_tokens_expire(backend: Backend) -> None:
    server = StreamingServer(StreamingConfig(token_ttl=0.05), backend)
    await server.start()
    url = exec_url(server)
    await asyncio.sleep(0.1)
    client = await SpdyClient.open(url)
    assert b"404" in client.status.splitlines()[0]
    client.close()
    await server.stop()


async def test_an_address_in_use_is_a_clear_error(server: StreamingServer, backend: Backend) -> None:
    port = int(exec_url(server).split(":")[2].partition("/")[0])
    with pytest.raises(FailedPrecondition, match=str(port)):
        await StreamingServer(StreamingConfig(port=port), backend).start()
