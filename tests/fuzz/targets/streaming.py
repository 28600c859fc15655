"""What clients of exec, attach and port-forward may send."""

from __future__ import annotations

import asyncio
from typing import Any

from orlop.config import StreamingConfig
from orlop.cri.streaming import portforward, remotecommand
from orlop.cri.streaming.channels import Pipe
from orlop.cri.streaming.server import StreamingServer
from orlop.cri.streaming.spdy import FrameParser, FrameWriter, ResetStatus, SpdyError
from orlop.errors import NotFound
from tests.fuzz.kit import logged, run, target

WEBSOCKET = (
    b"GET /exec/TOKEN HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
    b"Sec-WebSocket-Protocol: v5.channel.k8s.io, v4.base64.channel.k8s.io\r\n\r\n"
)
UPGRADE = (
    b"POST /portforward/TOKEN HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n"
    b"X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n"
)


def forwarding() -> bytes:
    """A client that opens one port, says something and leaves."""
    writer = FrameWriter()
    port = {"port": "80", "requestid": "0"}
    return (
        writer.syn_stream(1, {"streamtype": "error", **port}, fin=True)
        + writer.syn_stream(3, {"streamtype": "data", **port})
        + writer.data(3, b"GET /\r\n\r\n")
        + writer.ping(5)
        + writer.data(3, b"", fin=True)
        + writer.reset(3, ResetStatus.CANCEL)
        + writer.go_away(0)
    )


def message(opcode: int, payload: bytes, *, whole: bool = True) -> bytes:
    """A client's WebSocket frame; its mask changes nothing."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    return bytes([opcode | (0x80 if whole else 0)]) + length + bytes(4) + payload


COMMAND = (
    message(2, b"\0input")
    + message(2, b'\4{"Width":80,"Height":24}', whole=False)
    + message(0, b" ")
    + message(9, b"ping")
    + message(1, b"0aGVsbG8=")
    + message(2, b"\xff\0")
    + message(8, b"\x03\xe8")
)


@target(SpdyError, seeds=[forwarding()])
def spdy(data: bytes) -> None:
    FrameParser().feed(data)


@target(
    seeds=[b'{"Width":80,"Height":24}\n{"Width":81,"Height":24}', b"1 2 3 [[[]]]", b"[" * 5000, b"1 " * 30000]
)
def resize(data: bytes) -> None:
    """The sizes of a terminal, to the end of the channel."""

    async def read() -> None:
        pipe = Pipe(1 << 30)
        for start in range(0, len(data), 1 << 16):
            await pipe.put(data[start : start + (1 << 16)])
        pipe.end()
        sizes = remotecommand._Sizes(pipe)
        while (size := await sizes.next()) is not None:
            assert all(0 < one < 65536 for one in size)

    run(read())


@target(seeds=[b"80", "²".encode(), b"99999", b"1" * 5000])
def port(data: bytes) -> None:
    assert 0 <= portforward.parse_port(data.decode("latin-1")) < 65536


class _Echo:
    """A process, and a connection, that send back what they get."""

    def __init__(self) -> None:
        self._pipe = Pipe()

    async def output(self) -> Any:
        while data := await self._pipe.read():
            yield 1, data

    async def write(self, data: bytes) -> None:
        await self._pipe.put(data)

    async def read(self, size: int) -> bytes:
        return await self._pipe.read()

    async def close_stdin(self) -> None:
        self._pipe.end()

    write_eof = close_stdin

    async def resize(self, width: int, height: int) -> None:
        assert 0 < width < 65536 and 0 < height < 65536

    async def wait(self) -> Any:
        raise NotFound("it has no exit")

    async def close(self) -> None:
        self._pipe.discard()


class _Backend:
    async def exec(self, container_id: str, spec: object) -> Any:
        return _Echo()

    async def attach(self, container_id: str, *, stdin: bool) -> Any:
        return _Echo()

    async def connect(self, pod_id: str, port: int) -> Any:
        if not port:
            raise NotFound("there is no such port")
        return _Echo()


class _Transport(asyncio.Transport):
    """A client that reads everything."""

    def __init__(self) -> None:
        super().__init__()
        self._closing = False

    def write(self, data: Any) -> None:
        pass

    def close(self) -> None:
        self._closing = True

    abort = close

    def is_closing(self) -> bool:
        return self._closing


def _session(data: bytes, kind: str) -> None:
    """One connection to the streaming server, whose client sends ``data`` and leaves."""

    async def serve() -> None:
        server = StreamingServer(StreamingConfig(), _Backend())
        # No socket: bytes come from a reader, and prepared requests are asked for below.
        server._server = object()  # type: ignore[assignment]
        if kind == "exec":
            url = server.exec_url("c", ("sh",), tty=True, stdin=True, stdout=True, stderr=False)
        elif kind == "port-forward over websocket":
            url = server.port_forward_url("p", (80, 81))
        else:
            url = server.port_forward_url("p", ())
        reader = asyncio.StreamReader()
        reader.feed_data(data.replace(b"TOKEN", url.rpartition("/")[2].encode()))
        reader.feed_eof()
        loop = asyncio.get_running_loop()
        protocol = asyncio.StreamReaderProtocol(reader)
        protocol.connection_lost(None)
        writer = asyncio.StreamWriter(_Transport(), protocol, reader, loop)
        async with asyncio.timeout(20):
            await server._session(reader, writer)

    with logged("orlop.cri.streaming"):
        run(serve())


@target(seeds=[UPGRADE + forwarding(), UPGRADE + forwarding()[:90]])
def forward(data: bytes) -> None:
    _session(data, "port-forward")


@target(seeds=[WEBSOCKET + COMMAND, WEBSOCKET.replace(b"v5.channel.k8s.io, ", b"") + COMMAND])
def websocket(data: bytes) -> None:
    _session(data, "exec")
