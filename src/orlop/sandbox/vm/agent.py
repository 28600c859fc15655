"""The host's end of the talk with a guest's agent, over the machine's socket.

The guest is not trusted: everything it says is checked by :mod:`orlop.wire`, every answer is waited
for with a time limit, and whatever breaks the protocol ends this connection and nothing else.
:meth:`AgentClient.wait_closed` then says why.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from orlop.errors import (
    AlreadyExists,
    CannotRun,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OrlopError,
    Unavailable,
    Unimplemented,
)
from orlop.host.tasks import Tasks
from orlop.sandbox.vm import former
from orlop.sandbox.vm.budget import Budget
from orlop.sandbox.vm.streams import Incoming, Outgoing
from orlop.wire.framing import MAX_STREAM, NONCE_SIZE, Frame, Kind, Parser, ProtocolError, frame, preamble
from orlop.wire.hello import (
    VERSION,
    Hello,
    pack_hello,
    unpack_hello,
)
from orlop.wire.messages import (
    Event,
    Refused,
    Request,
    pack_request,
    unpack_event,
    unpack_reply,
)

log = logging.getLogger(__name__)

R = TypeVar("R")

_CHUNK = 256 << 10
_BATCH = 64
"""Frames that are dealt with in one go, which takes less than a millisecond."""

_BACKLOG = 8 << 20
"""Bytes that may wait for a guest that does not read."""

_UNANSWERED = 4096
"""Requests that a guest may owe an answer to."""

_GREETING = 2.0
_FLUSH_TIME = 2.0
_ERRORS: dict[str, type[OrlopError]] = {
    "invalid": InvalidArgument,
    "not_found": NotFound,
    "exists": AlreadyExists,
    "failed_precondition": FailedPrecondition,
    "exec_failed": CannotRun,
    "unavailable": Unavailable,
    "internal": Internal,
    "unknown_op": Unimplemented,
}


class AgentClient:
    """A connection to one agent. Make it with :meth:`connect`; :meth:`close` releases it.

    ``on_event`` is called for each event, in order, and must not block.
    """

    def __init__(
        self, name: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, nonce: bytes
    ) -> None:
        self.name = name
        self.hello = Hello(version=VERSION)
        self.on_event: Callable[[Event], None] = lambda event: None
        self.heard = asyncio.get_running_loop().time()
        """When it said something last, by the loop's clock."""
        self._reader = reader
        self._writer = writer
        self._parser = Parser(nonce)
        self._budget = Budget()
        self._early: list[Frame] = []
        self._requests: dict[int, tuple[Request[Any], asyncio.Future[Any]]] = {}
        self._last_request = 0
        self._next_stream = 1
        self._incoming: dict[int, Incoming] = {}
        self._outgoing: dict[int, Outgoing] = {}
        self._error: OrlopError | None = None
        self._closed = asyncio.Event()
        self._tasks = Tasks()

    @classmethod
    async def connect(cls, path: Path, *, name: str, timeout: float) -> AgentClient:
        """Connect to the chardev socket at ``path`` and greet; returns once the agent has answered.

        ``name`` says in messages whose agent it is. Raises DeadlineExceeded, or Unavailable when
        there is no such socket or the peer does not speak the protocol.
        """
        end = asyncio.get_running_loop().time() + timeout
        patience = _GREETING
        while True:
            left = end - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(min(left, patience)):
                    client = await cls._connect(path, name)
                break
            except TimeoutError as error:
                # A greeting that the guest lost is not repeated by itself: greet it anew.
                if left <= patience:
                    raise DeadlineExceeded(
                        f"the agent of {name} did not answer within {timeout:g} seconds"
                    ) from error
                patience *= 2
            except (OSError, ProtocolError) as error:
                raise Unavailable(f"the agent of {name} cannot be reached: {error}") from error
        client._tasks.spawn(client._run(), f"agent of {name}")
        return client

    @classmethod
    async def _connect(cls, path: Path, name: str) -> AgentClient:
        reader, writer = await asyncio.open_unix_connection(path, limit=_CHUNK)
        nonce = secrets.token_hex(NONCE_SIZE // 2).encode()
        client = cls(name, reader, writer, nonce)
        try:
            # No version: an agent of version 1 does not answer a host that names another.
            writer.write(preamble(nonce) + frame(Kind.HELLO, payload=pack_hello(Hello())))
            await client._greet()
        except BaseException:
            writer.close()
            raise
        return client

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._error is not None

    async def wait_closed(self) -> str:
        """Return when the connection is gone, with the reason."""
        await self._closed.wait()
        return str(self._error)

    async def call(self, request: Request[R], timeout: float = 30.0) -> R:
        """Send ``request`` and return its reply.

        Raises the OrlopError that fits what the agent answered, DeadlineExceeded without an answer
        in ``timeout`` seconds, Unavailable when the connection is gone.
        """
        if self._error is not None:
            raise self._error
        if len(self._requests) >= _UNANSWERED or self._writer.transport.get_write_buffer_size() > _BACKLOG:
            raise Unavailable(f"the agent of {self.name} neither reads nor answers; the pod must be removed")
        number = self._request_number()
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        payload = pack_request(request)
        if self.hello.version == former.VERSION:
            payload = former.to_agent(payload)
        try:
            encoded = frame(Kind.REQUEST, number, payload)
        except ValueError as error:
            raise InvalidArgument(f"the request {request.op} for {self.name} is too big: {error}") from error
        self._requests[number] = (request, future)
        self._send(encoded)
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(future)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the agent of {self.name} did not answer {request.op} within {timeout:g} seconds"
            ) from error
        except Refused as error:
            raise _ERRORS.get(error.code, Internal)(str(error)) from error
        finally:
            if not future.done():
                future.cancel()  # the late reply finds it so, and is dropped

    def new_stream(self) -> int:
        """A stream id that was never used in this guest."""
        stream = self._next_stream
        if stream > MAX_STREAM:
            raise Internal(f"{self.name} has used up its {MAX_STREAM} stream ids")
        self._next_stream += 1
        return stream

    def incoming(self, stream: int, *, offset: int = 0, wake: asyncio.Event | None = None) -> Incoming:
        """Listen to ``stream``, from ``offset`` on."""
        end = Incoming(stream, self._send, self._forget_incoming, offset=offset, wake=wake)
        self._incoming[stream] = end
        self._reserve(stream)
        if self._error is not None:
            end.fail(self._error)
        return end

    def outgoing(self, stream: int, *, offset: int = 0) -> Outgoing:
        """Be ready to write to ``stream``, from ``offset`` on."""
        end = Outgoing(stream, self._send, self._forget_outgoing, offset=offset)
        self._outgoing[stream] = end
        self._reserve(stream)
        if self._error is not None:
            end.fail()
        return end

    async def flush(self) -> None:
        """Acknowledge all that was consumed, so that a later daemon is not sent it again."""
        for end in list(self._incoming.values()):
            end.flush()
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_FLUSH_TIME):
                await self._writer.drain()  # a guest that does not read must not hold up the daemon's end

    async def close(self, reason: str = "closed") -> None:
        """Let go of the connection. Idempotent."""
        self._fail(Unavailable(f"the agent of {self.name} is gone: {reason}"))
        await self._tasks.close()

    async def _greet(self) -> None:
        while True:
            data = await self._reader.read(_CHUNK)
            if not data:
                raise ProtocolError("the connection ended before the agent's greeting")
            frames = self._parser.feed(data, _BATCH)
            for index, received in enumerate(frames):
                if received.kind is Kind.HELLO:
                    self.hello = unpack_hello(received.payload)
                    if self.hello.version not in (VERSION, former.VERSION):
                        spoken = f"version {self.hello.version} of the protocol"
                        raise ProtocolError(
                            f"it speaks {spoken}, and this daemon {VERSION} and {former.VERSION}"
                        )
                    self._next_stream = max(1, self.hello.next_stream)
                    self._early = frames[index + 1 :]
                    return
                if received.kind is not Kind.SYNC:
                    raise ProtocolError(f"{received.kind.name} before the agent's greeting")

    async def _run(self) -> None:
        try:
            await self._take(self._early)
            await self._take(self._parser.feed(b"", _BATCH))
            while data := await self._reader.read(_CHUNK):
                self.heard = asyncio.get_running_loop().time()
                await self._take(self._parser.feed(data, _BATCH))
            error: OrlopError = Unavailable(f"the agent of {self.name} is gone: its connection ended")
        except ProtocolError as problem:
            log.warning("%s: its agent broke the protocol: %s", self.name, problem)
            error = Unavailable(f"the agent of {self.name} broke the protocol: {problem}")
        except OSError as problem:
            error = Unavailable(f"the agent of {self.name} is gone: {problem}")
        except Exception as problem:
            log.exception("%s: what its agent sent could not be dealt with", self.name)
            error = Internal(f"what the agent of {self.name} sent could not be dealt with: {problem!r}")
        self._fail(error)

    async def _take(self, frames: list[Frame]) -> None:
        """Deal with frames and those that were parsed with them; others get their turn, and the guest waits.

        Raises ProtocolError.
        """
        while frames:
            for received in frames:
                self._budget.charge(len(received.payload), self._dispatch(received))
            if (seconds := self._budget.owed()) or len(frames) == _BATCH:
                await asyncio.sleep(seconds)
            frames = self._parser.feed(b"", _BATCH) if len(frames) == _BATCH else []

    def _dispatch(self, received: Frame) -> int:
        """Deal with a frame; returns how many bytes of a stream got further by it. Raises ProtocolError."""
        kind = received.kind
        if kind is Kind.REPLY:
            self._on_reply(received)
        elif kind is Kind.EVENT:
            event = unpack_event(received.payload)
            if event is not None:
                self.on_event(event)
        elif kind in (Kind.DATA, Kind.EOF):
            self._check_stream(received.stream)
            if end := self._incoming.get(received.stream):
                return end.on_frame(received)
        elif kind is Kind.ACK:
            self._check_stream(received.stream)
            if writer := self._outgoing.get(received.stream):
                return writer.on_frame(received)
        elif kind is Kind.RESET:
            self._check_stream(received.stream)
            if end := self._incoming.get(received.stream):
                end.on_frame(received)
            if writer := self._outgoing.get(received.stream):
                writer.on_frame(received)
        else:
            raise ProtocolError(f"{kind.name} in the middle of the talk")
        return 0

    def _on_reply(self, received: Frame) -> None:
        entry = self._requests.get(received.stream)
        if entry is None:
            raise ProtocolError(f"reply to request {received.stream}, which was not made")
        request, future = entry
        if not future.done():
            # Decoded while it still counts as open: a reply that is none fails its own caller, too.
            try:
                payload = received.payload
                if self.hello.version == former.VERSION:
                    payload = former.from_agent(request.op, payload)
                future.set_result(unpack_reply(request, payload))
            except Refused as refused:
                future.set_exception(refused)
        del self._requests[received.stream]

    def _check_stream(self, stream: int) -> None:
        # Frames for a stream that was let go of are on the way still; others were never opened.
        if stream >= self._next_stream:
            raise ProtocolError(f"frame of stream {stream}, which was not opened")

    def _request_number(self) -> int:
        while True:
            self._last_request = self._last_request % MAX_STREAM + 1
            if self._last_request not in self._requests:
                return self._last_request

    def _reserve(self, stream: int) -> None:
        self._next_stream = max(self._next_stream, stream + 1)

    def _forget_incoming(self, stream: int) -> None:
        self._incoming.pop(stream, None)

    def _forget_outgoing(self, stream: int) -> None:
        self._outgoing.pop(stream, None)

    def _send(self, encoded: bytes) -> None:
        if self._error is None:
            self._writer.write(encoded)

    def _fail(self, error: OrlopError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._writer.close()
        for _, future in self._requests.values():
            if not future.done():
                future.set_exception(error)
                future.exception()
        self._requests.clear()
        for end in list(self._incoming.values()):
            end.fail(error)
        for writer in list(self._outgoing.values()):
            writer.fail()
        self._closed.set()
