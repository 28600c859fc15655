"""A client: calls and streams over one link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Generic, TypeVar

from google.protobuf.message import DecodeError, Message

from orlop.errors import DataLoss, DeadlineExceeded, Internal, OrlopError, ResourceExhausted
from orlop.host.tasks import Tasks
from orlop.ttrpc import frames
from orlop.ttrpc.frames import (
    NO_DATA,
    REMOTE_CLOSED,
    REMOTE_OPEN,
    FrameStream,
    FrameType,
    LinkLost,
    Oversized,
    TtrpcFrame,
)
from orlop.ttrpc.inbox import Inbox
from orlop.ttrpc.messages_pb2 import KeyValue, Request, Response
from orlop.ttrpc.status import error_of

M = TypeVar("M", bound=Message)

MAX_STREAMS = 1024
_LAST_STREAM = (1 << 32) - 1


class TimedOut(DeadlineExceeded):
    """The other side did not answer in time."""


class Client:
    """Calls services over ``link``, which it owns. ``name`` says in errors who does not answer.

    A call that is cancelled or takes too long is forgotten here; ttrpc cannot tell the other side, which
    knows the time limit and gets it with the call.
    """

    def __init__(self, link: FrameStream, name: str, *, max_streams: int = MAX_STREAMS) -> None:
        self._link = link
        self._name = name
        self._max_streams = max_streams
        self._inboxes: dict[int, Inbox] = {}
        self._next = 1
        self._lost: LinkLost | None = None
        self._ended = asyncio.Event()
        self._tasks = Tasks()
        self._tasks.spawn(self._receive(), f"what {name} answers")

    async def wait_closed(self) -> str:
        """Return when the link has ended, with the reason."""
        await self._ended.wait()
        return str(self._lost)

    async def close(self) -> None:
        """End the link and all calls. Idempotent."""
        await self._lose(LinkLost(f"{self._name}: the connection was closed"))
        await self._tasks.close()
        await self._link.close()

    async def call(
        self,
        service: str,
        method: str,
        request: Message,
        reply: type[M],
        *,
        timeout: float | None = None,
        metadata: Iterable[tuple[str, str]] = (),
    ) -> M:
        """One request, one reply; ``timeout`` in seconds.

        Raises the error that the other side answers, TimedOut, LinkLost, Oversized, DataLoss for nonsense.
        """
        message = _request(service, method, request, timeout, metadata)
        try:
            async with asyncio.timeout(timeout), self._opened(message, 0) as (_, inbox):
                frame = await inbox.get()
        except TimeoutError:
            raise TimedOut(f"{self._name} did not answer {method} within {timeout:g} s") from None
        if frame is None or frame.kind != FrameType.RESPONSE:
            raise DataLoss(f"{self._name} answered {method} with something that is no response")
        return _payload(frame, reply, f"{self._name}: {method}")

    @asynccontextmanager
    async def stream(
        self, service: str, method: str, reply: type[M], *, request: Message | None = None
    ) -> AsyncIterator[ClientStream[M]]:
        """A stream; with ``request`` the client sends only that."""
        message = _request(service, method, request, None, ())
        flags = REMOTE_OPEN if request is None else REMOTE_CLOSED
        async with self._opened(message, flags) as (number, inbox):
            yield ClientStream(self._link, number, inbox, reply, f"{self._name}: {method}")

    @asynccontextmanager
    async def _opened(self, request: Request, flags: int) -> AsyncIterator[tuple[int, Inbox]]:
        if self._lost is not None:
            raise self._lost
        if len(self._inboxes) >= self._max_streams:
            raise ResourceExhausted(f"{self._name}: {len(self._inboxes)} calls are under way already")
        if self._next > _LAST_STREAM:
            raise LinkLost(f"{self._name}: the connection has no stream numbers left")
        number, self._next = self._next, self._next + 2
        inbox = self._inboxes[number] = Inbox()
        try:
            # No await before the write begins: the other side wants the numbers in order.
            await self._link.write(
                TtrpcFrame(number, FrameType.REQUEST, request.SerializeToString(), flags).encode()
            )
            yield number, inbox
        finally:
            del self._inboxes[number]

    async def _receive(self) -> None:
        try:
            while True:
                try:
                    frame = await frames.read(self._link)
                except Oversized as error:
                    if (inbox := self._inboxes.get(error.stream)) is not None:
                        await inbox.end(error)
                    continue
                if (inbox := self._inboxes.get(frame.stream)) is not None:
                    await self._deliver(inbox, frame)
        except LinkLost as error:
            await self._lose(LinkLost(f"{self._name}: {error}"))

    async def _deliver(self, inbox: Inbox, frame: TtrpcFrame) -> None:
        try:
            await inbox.put(frame)
        except ResourceExhausted:
            return  # its reader hears of it
        if frame.kind == FrameType.RESPONSE or frame.flags & REMOTE_CLOSED:
            await inbox.end()

    async def _lose(self, error: LinkLost) -> None:
        if self._lost is None:
            self._lost = error
        self._ended.set()
        for inbox in tuple(self._inboxes.values()):
            await inbox.end(self._lost)


class ClientStream(Generic[M]):
    """A stream of messages in both directions, or in one."""

    def __init__(self, link: FrameStream, number: int, inbox: Inbox, reply: type[M], what: str) -> None:
        self._link = link
        self._number = number
        self._inbox = inbox
        self._reply = reply
        self._what = what
        self._sending = True

    async def send(self, message: Message) -> None:
        """Send one. Raises LinkLost, Oversized."""
        if not self._sending:
            raise Internal(f"{self._what}: a stream was written to after its end")
        await self._link.write(TtrpcFrame(self._number, FrameType.DATA, message.SerializeToString()).encode())

    async def end(self) -> None:
        """Say that no more comes from here. Idempotent."""
        if self._sending:
            self._sending = False
            await self._link.write(
                TtrpcFrame(self._number, FrameType.DATA, flags=REMOTE_CLOSED | NO_DATA).encode()
            )

    async def receive(self) -> M | None:
        """The next message, None at the end. Raises the error that the other side ended with, LinkLost."""
        frame = await self._inbox.get()
        if frame is None or (frame.kind == FrameType.DATA and frame.flags & NO_DATA):
            return None
        if frame.kind == FrameType.RESPONSE:
            return _payload(frame, self._reply, self._what)
        return _parsed(frame.data, self._reply, self._what)


def _request(
    service: str,
    method: str,
    request: Message | None,
    timeout: float | None,
    metadata: Iterable[tuple[str, str]],
) -> Request:
    return Request(
        service=service,
        method=method,
        payload=b"" if request is None else request.SerializeToString(),
        timeout_nano=0 if timeout is None else max(int(timeout * 1e9), 1),
        metadata=[KeyValue(key=key, value=value) for key, value in metadata],
    )


def _parsed(data: bytes, kind: type[M], what: str) -> M:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise DataLoss(f"{what}: the answer is not valid protobuf: {error}") from error


def _payload(frame: TtrpcFrame, kind: type[M], what: str) -> M:
    response = _parsed(frame.data, Response, what)
    if response.status.code:
        error: OrlopError = error_of(response.status)
        raise error
    return _parsed(response.payload, kind, what)
