"""A server: services that are called over links."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing, suppress
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message

from orlop.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    OrlopError,
    ResourceExhausted,
    Unimplemented,
)
from orlop.host.tasks import Tasks
from orlop.ttrpc import frames
from orlop.ttrpc.frames import NO_DATA, REMOTE_CLOSED, FrameStream, FrameType, LinkLost, Oversized, TtrpcFrame
from orlop.ttrpc.inbox import Inbox
from orlop.ttrpc.messages_pb2 import Request, Response
from orlop.ttrpc.status import refusal

MAX_STREAMS = 256

METADATA: ContextVar[Mapping[str, str]] = ContextVar("METADATA", default=MappingProxyType({}))
"""What came with the call that is being served, beside its request; of one key the first value."""

Method = Callable[[Any], Awaitable[Message] | AsyncGenerator[Message, None]]


class Services:
    """What can be called. Each method takes the request, or an async iterator of them where the client
    streams, and returns the reply, or is an async generator of them where the server streams."""

    def __init__(self) -> None:
        self._methods: dict[tuple[str, str], tuple[MethodDescriptor, Method]] = {}

    def add(self, service: ServiceDescriptor, methods: Mapping[str, Method]) -> None:
        """Offer all of ``service``, each method by its name. Raises Internal when one is missing."""
        if missing := {method.name for method in service.methods} ^ methods.keys():
            raise Internal(f"{service.full_name}: {', '.join(sorted(missing))} is missing or unknown")
        for method in service.methods:
            self._methods[service.full_name, method.name] = method, methods[method.name]

    def find(self, service: str, method: str) -> tuple[MethodDescriptor, Method]:
        """Raises Unimplemented."""
        try:
            return self._methods[service, method]
        except KeyError:
            raise Unimplemented(f"there is no method {method[:80]!r} of {service[:80]!r} here") from None


async def serve(link: FrameStream, services: Services, *, max_streams: int = MAX_STREAMS) -> str:
    """Answer what comes through ``link`` until it ends; returns the reason.

    Calls that run then are cancelled. The caller closes the link.
    """
    return await _Connection(link, services, max_streams).run()


class _Connection:
    def __init__(self, link: FrameStream, services: Services, max_streams: int) -> None:
        self._link = link
        self._services = services
        self._max_streams = max_streams
        self._tasks = Tasks()
        self._inboxes: dict[int, Inbox] = {}
        self._last = 0

    async def run(self) -> str:
        try:
            while True:
                try:
                    await self._take(await frames.read(self._link))
                except Oversized as error:
                    await self._answer(error.stream, refusal(error, "a request"))
        except LinkLost as error:
            return str(error)
        finally:
            await self._tasks.close()

    async def _take(self, frame: TtrpcFrame) -> None:
        try:
            if frame.stream % 2 == 0:
                raise InvalidArgument(f"stream {frame.stream}: streams of clients have odd numbers")
            if frame.kind == FrameType.REQUEST:
                self._begin(frame)
            elif frame.kind == FrameType.DATA:
                await self._more(frame)
        except OrlopError as error:
            if isinstance(error, LinkLost):
                raise
            await self._answer(frame.stream, refusal(error, "a request"))

    def _begin(self, frame: TtrpcFrame) -> None:
        if frame.stream <= self._last:
            raise InvalidArgument(f"stream {frame.stream} is not above {self._last}, the last one")
        self._last = frame.stream
        if len(self._tasks) >= self._max_streams:
            raise ResourceExhausted(f"{self._max_streams} calls are under way on this connection already")
        try:
            request = Request.FromString(frame.data)
        except DecodeError as error:
            raise InvalidArgument(f"the request is not valid protobuf: {error}") from error
        method, call = self._services.find(request.service, request.method)
        if method.client_streaming:
            self._inboxes[frame.stream] = Inbox()
        self._tasks.spawn(self._serve(frame, request, method, call), method.full_name)

    async def _more(self, frame: TtrpcFrame) -> None:
        inbox = self._inboxes.get(frame.stream)
        if inbox is None:
            raise InvalidArgument(f"stream {frame.stream} takes no more messages")
        if not frame.flags & NO_DATA:
            await inbox.put(frame)
        if frame.flags & REMOTE_CLOSED:
            await inbox.end()

    async def _serve(
        self, frame: TtrpcFrame, request: Request, method: MethodDescriptor, call: Method
    ) -> None:
        timeout = request.timeout_nano / 1e9 if request.timeout_nano > 0 else None
        METADATA.set({pair.key: pair.value for pair in reversed(request.metadata)})
        # Who called is gone; what the method does then is not wanted by anybody.
        with suppress(LinkLost):
            try:
                await _within(timeout, method.name, self._run(frame.stream, request, method, call))
            except LinkLost:
                raise
            except Exception as error:
                await self._answer(frame.stream, refusal(error, method.name))
            finally:
                self._inboxes.pop(frame.stream, None)

    async def _run(self, stream: int, request: Request, method: MethodDescriptor, call: Method) -> None:
        kind = message_factory.GetMessageClass(method.input_type)
        given: Message | AsyncIterator[Message]
        if method.client_streaming:
            given = _incoming(self._inboxes[stream], kind)
        else:
            given = _parsed(request.payload, kind)
        found = call(given)
        if isinstance(found, AsyncGenerator):
            async with aclosing(found) as messages:
                async for message in messages:
                    await self._link.write(
                        TtrpcFrame(stream, FrameType.DATA, message.SerializeToString()).encode()
                    )
            await self._link.write(TtrpcFrame(stream, FrameType.DATA, flags=REMOTE_CLOSED | NO_DATA).encode())
        else:
            await self._answer(stream, Response(payload=(await found).SerializeToString()))

    async def _answer(self, stream: int, response: Response) -> None:
        try:
            await self._link.write(
                TtrpcFrame(stream, FrameType.RESPONSE, response.SerializeToString()).encode()
            )
        except Oversized as error:
            await self._link.write(
                TtrpcFrame(
                    stream, FrameType.RESPONSE, refusal(error, "a response").SerializeToString()
                ).encode()
            )


async def _within(timeout: float | None, name: str, work: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(timeout) as limit:
            await work
    except TimeoutError:
        if not limit.expired():
            raise
        raise DeadlineExceeded(f"{name} took longer than the {timeout:g} s it was given") from None


async def _incoming(inbox: Inbox, kind: type[Message]) -> AsyncIterator[Message]:
    while (frame := await inbox.get()) is not None:
        yield _parsed(frame.data, kind)


def _parsed(data: bytes, kind: type[Message]) -> Message:
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidArgument(f"the request is not a valid {kind.DESCRIPTOR.name}: {error}") from error
