"""The streaming server: turns prepared CRI requests into URLs, and their connections into sessions.

Exec, Attach and PortForward of CRI only return a URL; the kubelet (or crictl) connects to it
and upgrades to SPDY/3.1 or WebSocket. The server listens on loopback unless configured
otherwise, each URL is good for one connection within ``token_ttl`` seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from dataclasses import dataclass
from typing import Protocol

import h11

from orlop.config import StreamingConfig
from orlop.cri.streaming import sessions
from orlop.cri.streaming.channels import ALL_BYTES, ByteBudget
from orlop.cri.streaming.http import HttpConnection, HttpRequest, Upgraded
from orlop.cri.streaming.portforward import Dial
from orlop.cri.streaming.tokens import TokenCache
from orlop.cri.streaming.websocket import WebSocket
from orlop.errors import FailedPrecondition, InvalidArgument, OrlopError
from orlop.host.tasks import Tasks
from orlop.sandbox.base import Connection, ProcessIO
from orlop.sandbox.spec import ExecSpec

log = logging.getLogger(__name__)

MAX_SESSIONS = 1024
MAX_STRANGERS = 256
REQUEST_TIMEOUT = 30.0


class StreamingBackend(Protocol):
    """What the sessions do their work with."""

    async def exec(self, container_id: str, spec: ExecSpec) -> ProcessIO:
        """Start a process in a running container."""
        ...

    async def attach(self, container_id: str, *, stdin: bool) -> ProcessIO:
        """Join a running container's first process."""
        ...

    async def connect(self, pod_id: str, port: int) -> Connection:
        """Connect to a TCP port inside the pod."""
        ...


@dataclass(frozen=True)
class ExecRequest:
    """A prepared exec."""

    container_id: str
    args: tuple[str, ...]
    streams: sessions.WantedStreams


@dataclass(frozen=True)
class AttachRequest:
    """A prepared attach."""

    container_id: str
    streams: sessions.WantedStreams


@dataclass(frozen=True)
class PortForwardRequest:
    """A prepared port-forward; ``ports`` may be empty, then the client names them."""

    pod_id: str
    ports: tuple[int, ...]


Prepared = ExecRequest | AttachRequest | PortForwardRequest


class StreamingServer:
    """Listens, and owns every streaming connection."""

    def __init__(self, config: StreamingConfig, backend: StreamingBackend) -> None:
        self._config = config
        self._backend = backend
        self._tokens: TokenCache[tuple[str, Prepared]] = TokenCache(config.token_ttl)
        self._server: asyncio.Server | None = None
        self._sessions = Tasks()
        self._strangers: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """Connections that have shown no token yet, the oldest first."""
        self._memory = ByteBudget(ALL_BYTES)
        self._base = ""

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition when the address or the certificate cannot be used."""
        config = self._config
        context: ssl.SSLContext | None = None
        try:
            if config.tls_cert:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                await asyncio.to_thread(context.load_cert_chain, config.tls_cert, config.tls_key or None)
            self._server = await asyncio.start_server(
                self._accept, config.address, config.port, ssl=context, limit=128 << 10
            )
        except OSError as error:
            raise FailedPrecondition(
                f"streaming server cannot listen on {config.address}:{config.port}: {error}"
            ) from error
        host, port = self._server.sockets[0].getsockname()[:2]
        self._base = f"{'https' if context else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"

    async def stop(self) -> None:
        """End all sessions and stop listening."""
        if self._server is not None:
            self._server.close()
        await self._sessions.close()
        if self._server is not None:
            await self._server.wait_closed()
            self._server = None

    def exec_url(
        self, container_id: str, args: tuple[str, ...], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        """A URL for one exec. Raises InvalidArgument for streams that make no sense together."""
        streams = _streams(tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)
        return self._url("exec", ExecRequest(container_id, args, streams))

    def attach_url(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """A URL for one attach. Raises InvalidArgument for streams that make no sense together."""
        streams = _streams(tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)
        return self._url("attach", AttachRequest(container_id, streams))

    def port_forward_url(self, pod_id: str, ports: tuple[int, ...]) -> str:
        """A URL for one port-forward connection."""
        return self._url("portforward", PortForwardRequest(pod_id, ports))

    def _url(self, kind: str, request: Prepared) -> str:
        if self._server is None:
            raise FailedPrecondition("the streaming server does not run")
        return f"{self._base}/{kind}/{self._tokens.insert((kind, request))}"

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._sessions.closed or len(self._sessions) - len(self._strangers) >= MAX_SESSIONS:
            writer.transport.abort()
            return
        if len(self._strangers) >= MAX_STRANGERS:
            # Whoever means it sends its request at once: those that say nothing keep nobody out.
            oldest = next(iter(self._strangers))
            self._strangers.pop(oldest).transport.abort()
        task = self._sessions.spawn(self._session(reader, writer), "a streaming session")
        self._strangers[task] = writer
        task.add_done_callback(lambda task: self._strangers.pop(task, None))

    async def _session(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._serve(HttpConnection(reader, writer))
        except (ConnectionError, TimeoutError) as error:
            log.debug("streaming connection ended: %s", error)
        except h11.RemoteProtocolError as error:
            log.info("streaming connection refused: %s", error)
        except OrlopError as error:
            log.info("streaming connection ended: %s", error)
        except Exception:
            log.exception("streaming session failed")
        finally:
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(2):
                    await writer.wait_closed()

    async def _serve(self, connection: HttpConnection) -> None:
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT):
                request = await connection.request()
        except h11.RemoteProtocolError as error:
            await connection.answer(error.error_status_hint, "the request is not valid HTTP/1.1")
            return
        if request is None:
            return
        kind, _, token = request.path.strip("/").partition("/")
        upgrade = request.header("upgrade").lower()
        if request.method not in ("GET", "POST") or kind not in ("exec", "attach", "portforward"):
            await connection.answer(404, "no such path")
            return
        if upgrade not in ("spdy/3.1", "websocket"):
            await connection.answer(400, "this URL wants an upgrade to SPDY/3.1 or to WebSocket")
            return
        found = self._tokens.consume(token)
        if found is None or found[0] != kind:
            await connection.answer(404, "the token is unknown, used already or has expired")
            return
        if (task := asyncio.current_task()) is not None:
            self._strangers.pop(task, None)
        if upgrade == "websocket":
            await self._websocket(connection, request, found[1])
        else:
            await self._spdy(connection, request, found[1])

    async def _spdy(self, connection: HttpConnection, request: HttpRequest, prepared: Prepared) -> None:
        offered = request.values("x-stream-protocol-version")
        forward = isinstance(prepared, PortForwardRequest)
        protocol = sessions.choose(offered, sessions.SPDY_FORWARD if forward else sessions.SPDY_COMMAND)
        if protocol is None:
            await connection.answer(403, "none of the offered stream protocols is supported")
            return
        headers = [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1")]
        if protocol:
            headers.append(("X-Stream-Protocol-Version", protocol))
        transport = await connection.switch(headers, self._config.idle_timeout)
        if isinstance(prepared, PortForwardRequest):
            await sessions.spdy_forward(transport, self._dial(prepared), self._memory)
        else:
            await sessions.spdy_command(
                transport, protocol, prepared.streams, self._starter(prepared), self._memory
            )

    async def _websocket(self, connection: HttpConnection, request: HttpRequest, prepared: Prepared) -> None:
        offered = request.values("sec-websocket-protocol")
        forward = isinstance(prepared, PortForwardRequest)
        protocol = sessions.choose(offered, sessions.WS_FORWARD if forward else sessions.WS_COMMAND)
        if protocol is None:
            await connection.answer(403, "none of the offered WebSocket protocols is supported")
            return
        transport: Upgraded = connection.raw(self._config.idle_timeout)
        websocket = WebSocket(transport, (request.path, request.headers))
        await websocket.accept(protocol or None)
        if isinstance(prepared, PortForwardRequest):
            await sessions.websocket_forward(
                websocket, protocol, prepared.ports, self._dial(prepared), self._memory
            )
        else:
            await sessions.websocket_command(
                websocket, protocol, prepared.streams, self._starter(prepared), self._memory
            )

    def _starter(self, prepared: ExecRequest | AttachRequest) -> sessions.CommandStart:
        streams = prepared.streams

        async def start(size: tuple[int, int]) -> ProcessIO:
            if isinstance(prepared, ExecRequest):
                width, height = size
                spec = ExecSpec(
                    args=prepared.args, tty=streams.tty, stdin=streams.stdin, width=width, height=height
                )
                return await self._backend.exec(prepared.container_id, spec)
            return await self._backend.attach(prepared.container_id, stdin=streams.stdin)

        return sessions.CommandStart(start, report_exit=isinstance(prepared, ExecRequest))

    def _dial(self, prepared: PortForwardRequest) -> Dial:
        async def dial(port: int) -> Connection:
            return await self._backend.connect(prepared.pod_id, port)

        return dial


def _streams(*, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> sessions.WantedStreams:
    if tty and stderr:
        raise InvalidArgument("a terminal has no separate stderr: tty and stderr cannot both be true")
    if not (stdin or stdout or stderr):
        raise InvalidArgument("one of stdin, stdout and stderr must be asked for")
    return sessions.WantedStreams(tty=tty, stdin=stdin, stdout=stdout, stderr=stderr)
