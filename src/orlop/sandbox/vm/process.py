"""Processes of a guest as callers see them: an exec, an attached terminal, a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from orlop.errors import OrlopError
from orlop.sandbox.spec import ExitStatus
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.output import Output
from orlop.sandbox.vm.streams import Incoming, Outgoing
from orlop.wire.messages import Connect, Resize, Signal

log = logging.getLogger(__name__)

SIGKILL = 9
_KILL_TIMEOUT = 5.0


class GuestExec:
    """A process started by Exec (a ``ProcessIO``). ``forget`` is called once when it is closed."""

    def __init__(
        self,
        agent: AgentClient,
        container_id: str,
        exec_id: str,
        *,
        stdin: Outgoing | None,
        output: dict[int, Incoming],
        wake: asyncio.Event,
        exited: asyncio.Future[ExitStatus],
        tty: bool,
        forget: Callable[[], None],
    ) -> None:
        self._agent = agent
        self._container_id = container_id
        self._id = exec_id
        self._stdin = stdin
        self._output = output
        self._wake = wake
        self._exited = exited
        self._tty = tty
        self._forget = forget
        self._closed = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """See ``ProcessIO``. Raises Unavailable when the VM dies first."""
        live = dict(self._output)
        while live:
            self._wake.clear()
            moved = False
            for number, stream in list(live.items()):
                if chunk := stream.take():
                    moved = True
                    yield number, chunk
                    stream.consumed(len(chunk))
                if stream.ended:
                    del live[number]
                    stream.end_consumed()
            if live and not moved:
                await self._wake.wait()

    async def write(self, data: bytes) -> None:
        """See ``ProcessIO``."""
        if self._stdin is not None:
            await self._stdin.write(data)

    async def close_stdin(self) -> None:
        """See ``ProcessIO``."""
        if self._stdin is not None:
            self._stdin.end()

    async def resize(self, width: int, height: int) -> None:
        """See ``ProcessIO``."""
        if self._tty and not self._exited.done():
            with suppress(OrlopError):
                await self._agent.call(
                    Resize(id=self._container_id, exec_id=self._id, width=width, height=height)
                )

    async def signal(self, number: int) -> None:
        """See ``StartedProcess``."""
        if not self._exited.done():
            await self._agent.call(Signal(id=self._container_id, exec_id=self._id, signal=number))

    async def wait(self) -> ExitStatus:
        """See ``ProcessIO``."""
        return await asyncio.shield(self._exited)

    async def close(self) -> None:
        """See ``ProcessIO``. Idempotent."""
        if self._closed:
            return
        self._closed = True
        try:
            if not self._exited.done() and not self._agent.closed:
                with suppress(OrlopError):
                    await self._agent.call(
                        Signal(id=self._container_id, exec_id=self._id, signal=SIGKILL), _KILL_TIMEOUT
                    )
        finally:
            if self._stdin is not None:
                self._stdin.close()
            for stream in self._output.values():
                stream.close()
            self._forget()


class GuestAttachment:
    """The streams of a container's first process (a ``ProcessIO``)."""

    def __init__(
        self,
        output: Output,
        *,
        stdin: Outgoing | None,
        stdin_once: bool,
        resize: Callable[[int, int], Awaitable[None]],
        wait: Callable[[], Awaitable[ExitStatus]],
    ) -> None:
        self._source = output
        self._tap = output.tap()
        self._stdin = stdin
        self._stdin_once = stdin_once
        self._resize = resize
        self._wait = wait

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """See ``ProcessIO``."""
        return self._tap.chunks()

    async def write(self, data: bytes) -> None:
        """See ``ProcessIO``."""
        if self._stdin is not None:
            await self._stdin.write(data)

    async def close_stdin(self) -> None:
        """The container reads end of file if it was made with ``stdin_once``; else others may attach."""
        if self._stdin is not None and self._stdin_once:
            self._stdin.end()

    async def resize(self, width: int, height: int) -> None:
        """See ``ProcessIO``."""
        with suppress(OrlopError):
            await self._resize(width, height)

    async def wait(self) -> ExitStatus:
        """See ``ProcessIO``."""
        return await self._wait()

    async def close(self) -> None:
        """See ``ProcessIO``. Idempotent."""
        if self._stdin is not None and self._stdin_once:
            self._stdin.end()
        await self._source.untap(self._tap)


class PortConnection:
    """A TCP connection inside the guest (a ``Connection``)."""

    def __init__(self, incoming: Incoming, outgoing: Outgoing) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._rest = b""

    @classmethod
    async def open(cls, agent: AgentClient, port: int) -> PortConnection:
        """Connect to a TCP port on the pod's loopback."""
        stream = agent.new_stream()
        connection = cls(agent.incoming(stream), agent.outgoing(stream))
        try:
            await agent.call(Connect(stream=stream, port=port))
        except BaseException:
            await connection.close()
            raise
        return connection

    async def read(self, limit: int) -> bytes:
        """See ``Connection``. Raises Unavailable when the VM dies."""
        if not self._rest:
            self._rest = await self._incoming.read()
            if not self._rest:
                self._incoming.end_consumed()
                return b""
        data, self._rest = self._rest[:limit], self._rest[limit:]
        self._incoming.consumed(len(data))
        return data

    async def write(self, data: bytes) -> None:
        """See ``Connection``."""
        await self._outgoing.write(data)

    async def write_eof(self) -> None:
        """See ``Connection``."""
        self._outgoing.end()

    async def close(self) -> None:
        """See ``Connection``. Idempotent."""
        self._incoming.close()
        self._outgoing.close()
