"""One session for each kind of connection: gathers its streams, runs it, ends it.

A session ends when its work is done or when its client is gone, whichever comes first; both
are tasks of one group, so that neither outlives the other.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass

from orlop.cri.streaming import portforward, remotecommand
from orlop.cri.streaming.channels import ByteBudget, CommandChannels, Transport
from orlop.cri.streaming.portforward import Dial
from orlop.cri.streaming.spdyconn import SpdyConnection, SpdyStream
from orlop.cri.streaming.websocket import (
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    ChannelConnection,
    ChannelWriter,
    Tunnel,
    WebSocket,
)
from orlop.errors import DeadlineExceeded
from orlop.host import tasks

TUNNEL_PREFIX = "SPDY/3.1+"
FORWARD = "portforward.k8s.io"
SPDY_COMMAND = ("v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io", "channel.k8s.io", "")
SPDY_FORWARD = (FORWARD,)
WS_COMMAND = (
    "v5.channel.k8s.io",
    "v4.channel.k8s.io",
    "v4.base64.channel.k8s.io",
    "channel.k8s.io",
    "base64.channel.k8s.io",
    "",
)
WS_FORWARD = (TUNNEL_PREFIX + FORWARD, "v5.channel.k8s.io", "v4.channel.k8s.io", "v4.base64.channel.k8s.io")
STREAM_TIMEOUT = 30.0
GOODBYE_TIMEOUT = 5.0
MAX_BEGUN = 64
"""Port-forward requests of a connection of which only the first stream is there."""
MAX_FORWARDS = 256


@dataclass(frozen=True)
class WantedStreams:
    """Which streams an exec or attach was asked for."""

    tty: bool
    stdin: bool
    stdout: bool
    stderr: bool


@dataclass(frozen=True)
class CommandStart:
    """How to begin a remote command."""

    begin: remotecommand.Start
    report_exit: bool


def choose(offered: Sequence[str], supported: Sequence[str]) -> str | None:
    """The first protocol that the client offers and we support.

    A client that offers none gets "" where the oldest protocol has no name, else None.
    """
    if not offered:
        return "" if "" in supported else None
    return next((protocol for protocol in offered if protocol in supported), None)


async def spdy_command(
    transport: Transport,
    protocol: str,
    streams: WantedStreams,
    start: CommandStart,
    memory: ByteBudget | None = None,
) -> None:
    """Exec or attach over SPDY: waits for the client's streams, then runs."""
    wanted = _wanted(streams, protocol)
    found: dict[str, SpdyStream] = {}
    complete = asyncio.Event()

    def on_stream(stream: SpdyStream) -> bool:
        kind = stream.headers.get("streamtype", "")
        if kind not in wanted or kind in found:
            return False
        found[kind] = stream
        if wanted <= found.keys():
            complete.set()
        return True

    connection = SpdyConnection(transport, on_stream, memory)
    async with _while_connected(connection.serve()):
        try:
            async with asyncio.timeout(STREAM_TIMEOUT):
                await complete.wait()
        except TimeoutError:
            missing = ", ".join(sorted(wanted - found.keys()))
            raise DeadlineExceeded(f"the client did not open the streams {missing} in time") from None
        channels = CommandChannels(
            error=found["error"],
            stdin=found.get("stdin"),
            stdout=found.get("stdout"),
            stderr=found.get("stderr"),
            resize=found.get("resize"),
        )
        await remotecommand.serve(channels, start.begin, protocol=protocol, report_exit=start.report_exit)
        await connection.go_away()


async def spdy_forward(transport: Transport, dial: Dial, memory: ByteBudget | None = None) -> None:
    """Port-forward over SPDY: each request is a pair of streams, ``error`` and ``data``.

    A request lives no longer than its data stream, and there are few at a time: what a client has
    given up, or has only begun, must not grow the daemon.
    """
    waiting: dict[str, SpdyStream] = {}
    running: set[asyncio.Task[None]] = set()
    async with asyncio.TaskGroup() as group:

        def on_stream(stream: SpdyStream) -> bool:
            kind = stream.headers.get("streamtype", "")
            request = stream.headers.get("requestid") or stream.headers.get("port", "")
            if kind == "error":
                if len(waiting) >= MAX_BEGUN:
                    for key in [key for key, begun in waiting.items() if begun.gone.is_set()]:
                        del waiting[key]
                if len(waiting) >= MAX_BEGUN:
                    return False
                stream.incoming.discard()
                waiting[request] = stream
                return True
            error = waiting.pop(request, None)
            if kind != "data" or error is None or len(running) >= MAX_FORWARDS:
                return False
            port = portforward.parse_port(stream.headers.get("port", ""))
            task = group.create_task(_forward(port, stream, error, dial))
            running.add(task)
            task.add_done_callback(running.discard)
            return True

        await SpdyConnection(transport, on_stream, memory).serve()


async def _forward(port: int, data: SpdyStream, error: SpdyStream, dial: Dial) -> None:
    """One request, until it is done or its client has given it up."""
    forward = portforward.forward(port, data, data, error, dial)
    async with tasks.beside(forward) as work, tasks.beside(data.gone.wait()) as gone:
        await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
    with contextlib.suppress(OSError):
        # The client waits for the last word on its errors before it forgets the request.
        await error.close()


async def websocket_command(
    websocket: WebSocket,
    protocol: str,
    streams: WantedStreams,
    start: CommandStart,
    memory: ByteBudget | None = None,
) -> None:
    """Exec or attach over numbered WebSocket channels."""
    readable = {STDIN} if streams.stdin else set()
    if streams.tty:
        readable.add(RESIZE)
    connection = ChannelConnection(websocket, protocol, frozenset(readable), memory)
    channels = CommandChannels(
        error=ChannelWriter(connection, ERROR),
        stdin=connection.incoming.get(STDIN),
        stdout=ChannelWriter(connection, STDOUT) if streams.stdout else None,
        stderr=ChannelWriter(connection, STDERR) if streams.stderr else None,
        resize=connection.incoming.get(RESIZE),
    )
    async with _while_connected(connection.serve()):
        version = protocol.replace("base64.", "")
        await remotecommand.serve(channels, start.begin, protocol=version, report_exit=start.report_exit)
        await websocket.close()


async def websocket_forward(
    websocket: WebSocket, protocol: str, ports: tuple[int, ...], dial: Dial, memory: ByteBudget | None = None
) -> None:
    """Port-forward over WebSocket: tunnelled SPDY, or two channels for each prepared port."""
    if protocol.startswith(TUNNEL_PREFIX):
        await spdy_forward(Tunnel(websocket), dial, memory)
        return
    data_channels = range(0, 2 * len(ports), 2)
    connection = ChannelConnection(websocket, protocol, frozenset(data_channels), memory)
    async with _while_connected(connection.serve()):
        async with asyncio.TaskGroup() as group:
            for channel, port in zip(data_channels, ports, strict=True):
                data, error = ChannelWriter(connection, channel), ChannelWriter(connection, channel + 1)
                for writer in (data, error):
                    await writer.write(port.to_bytes(2, "little"))
                group.create_task(portforward.forward(port, connection.incoming[channel], data, error, dial))
        # The pods' ends of all connections have ended, which no other message could say.
        await websocket.close()


def _wanted(streams: WantedStreams, protocol: str) -> set[str]:
    wanted = {"error"}
    wanted |= {name for name in ("stdin", "stdout", "stderr") if getattr(streams, name)}
    if streams.tty and protocol in ("v3.channel.k8s.io", "v4.channel.k8s.io"):
        wanted.add("resize")
    return wanted


@contextlib.asynccontextmanager
async def _while_connected(serve: Coroutine[object, object, None]) -> AsyncIterator[None]:
    """Run the body while ``serve`` reads the connection; a client that leaves cancels the body.

    After the body the client has a moment to read the last bytes and to close.
    """
    body = asyncio.current_task()
    gone = False

    async def watch() -> None:
        nonlocal gone
        try:
            await serve
        finally:
            if body is not None and not finished:
                gone = True
                body.cancel("the client is gone")

    finished = False
    reading = asyncio.create_task(watch())
    try:
        yield
        finished = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(GOODBYE_TIMEOUT):
                await asyncio.shield(reading)
    except asyncio.CancelledError:
        if not gone or body is None or body.uncancel() > 0:
            raise
    finally:
        finished = True
        reading.cancel()
        failure = (await asyncio.gather(reading, return_exceptions=True))[0]
        if isinstance(failure, Exception) and not isinstance(failure, ConnectionError):
            raise failure
