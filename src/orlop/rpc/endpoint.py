"""A gRPC server on a Unix socket of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path

import grpc
from grpc import aio

from orlop.errors import FailedPrecondition
from orlop.host import sockets, threads
from orlop.host.tasks import beside
from orlop.rpc.router import Router

log = logging.getLogger(__name__)

MAX_REQUEST = 16 << 20
"""Bytes of one request, as the kubelet's own clients and servers have it."""

MAX_CALLS = 1024
"""Calls in progress at one time; more are refused as RESOURCE_EXHAUSTED."""

SOCKET_MODE = 0o660
MAX_SOCKET_PATH = 100
"""sun_path has 108 bytes, and the socket is bound under a longer name first."""

_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_REQUEST),
    # What we send is ours; clients have limits of their own, and the Stream* calls for long lists.
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
)


class Endpoint:
    """Owns a server and its socket. :meth:`start` before use, :meth:`stop` after it."""

    def __init__(
        self,
        path: Path,
        router: Router,
        handlers: Sequence[grpc.GenericRpcHandler[bytes, bytes]],
        *,
        mode: int = SOCKET_MODE,
    ) -> None:
        self._path = path
        self._router = router
        self._handlers = handlers
        self._mode = mode
        self._server: aio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition when the socket cannot be used or another daemon has it."""
        path = self._path
        if len(str(path).encode()) > MAX_SOCKET_PATH:
            raise FailedPrecondition(f"socket {path}: the path is longer than {MAX_SOCKET_PATH} bytes")
        try:
            aside = await threads.call(sockets.prepare, path)
            server = aio.server(options=_OPTIONS, maximum_concurrent_rpcs=MAX_CALLS)
            server.add_generic_rpc_handlers(self._handlers)
            server.add_insecure_port(f"unix:{aside}")
            await server.start()
            self._server = server
            sockets.publish(aside, path, self._mode)
        except (OSError, RuntimeError) as error:
            await self.stop(0)
            raise FailedPrecondition(f"socket {path} cannot be served: {error}") from error

    async def stop(self, grace: float = 5.0) -> None:
        """Take no more calls, let those in progress end within ``grace`` seconds, then cancel them."""
        if self._server is None:
            return
        server, self._server = self._server, None
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
        async with beside(server.stop(grace)) as stopping:
            await asyncio.sleep(0)  # it takes no more calls before those that wait for ever are told to end
            self._router.close()
            await stopping
