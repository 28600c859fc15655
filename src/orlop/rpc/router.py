"""Binds the methods of a service to gRPC, and turns errors into statuses: the one place that does.

A servicer has one method per call, named as the call in snake case: ``RunPodSandbox`` is
``run_pod_sandbox``. It takes the request message and returns the response message, or its bytes
where it has them at hand; a streaming call is an async generator of those. Where the client streams, the
method takes an async generator of request messages.

Requests are parsed here rather than in gRPC, so that one which is not valid protobuf (text that is
not UTF-8, say) is refused as INVALID_ARGUMENT with the reason and not as an internal error.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing, nullcontext
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from grpc import aio

from orlop.errors import Code, Internal, InvalidArgument, OrlopError, Unavailable
from orlop.rpc.names import method_name
from orlop.rpc.tracecontext import CallerTrace

log = logging.getLogger(__name__)

Answer = Message | bytes
Context = aio.ServicerContext[bytes, bytes]
Unary = Callable[[Any], Awaitable[Answer]]
Stream = Callable[[Any], AsyncGenerator[Answer, None]]
Fed = Callable[[AsyncGenerator[Message, None]], Awaitable[Answer]]

MAX_DETAILS = 2048
"""Most bytes of an error message sent. It travels in an HTTP/2 header, where each byte that is not
ASCII takes three, and of which some clients take no more than 8 KiB."""

_LEVELS = {
    Code.INTERNAL: logging.ERROR,
    Code.UNKNOWN: logging.ERROR,
    Code.DATA_LOSS: logging.ERROR,
    # Asking for what is gone is how callers learn that it is gone.
    Code.NOT_FOUND: logging.DEBUG,
}
_STATUS = {code.value[0]: code for code in grpc.StatusCode}


class CallMeter(Protocol):
    """Counts calls, and measures how long they take."""

    def rpc(self, name: str) -> AbstractContextManager[None]:
        """Around one call."""


class Router:
    """Makes gRPC handlers of servicers."""

    def __init__(self, metrics: CallMeter | None = None, *, traced: bool = False) -> None:
        self._metrics = metrics
        self._trace = CallerTrace(traced)
        self._streams: set[asyncio.Task[Any]] = set()
        self._closing = False

    def handler(self, service: ServiceDescriptor, *servicers: object) -> grpc.GenericRpcHandler[bytes, bytes]:
        """The handler of all calls of ``service``. Raises Internal when a method is missing."""
        handlers = {}
        for method in service.methods:
            name = method_name(method.name)
            found = [getattr(servicer, name) for servicer in servicers if hasattr(servicer, name)]
            if len(found) != 1:
                raise Internal(f"{len(found)} servicers have a method {name} for {service.full_name}")
            handlers[method.name] = self._bind(method, found[0])
        return grpc.method_handlers_generic_handler(service.full_name, handlers)

    def close(self) -> None:
        """End the streams that would never end by themselves."""
        self._closing = True
        for task in tuple(self._streams):
            task.cancel()

    def _bind(self, method: MethodDescriptor, call: Any) -> grpc.RpcMethodHandler[bytes, bytes]:
        parse = message_factory.GetMessageClass(method.input_type).FromString
        if method.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._fed(method.name, parse, call))
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streaming(method.name, parse, call))
        return grpc.unary_unary_rpc_method_handler(self._unary(method.name, parse, call))

    def _measure(self, name: str) -> AbstractContextManager[None]:
        return nullcontext() if self._metrics is None else self._metrics.rpc(name)

    def _unary(
        self, name: str, parse: Callable[[bytes], Message], call: Unary
    ) -> Callable[[bytes, Context], Awaitable[bytes]]:
        async def serve(data: bytes, context: Context) -> bytes:
            return await self._answered(name, context, lambda: call(_parsed(name, parse, data)))

        return serve

    def _fed(
        self, name: str, parse: Callable[[bytes], Message], call: Fed
    ) -> Callable[[AsyncIterator[bytes], Context], Awaitable[bytes]]:
        async def messages(requests: AsyncIterator[bytes]) -> AsyncGenerator[Message, None]:
            async for data in requests:
                yield _parsed(name, parse, data)

        async def serve(requests: AsyncIterator[bytes], context: Context) -> bytes:
            async with aclosing(messages(requests)) as parsed:
                return await self._answered(name, context, lambda: call(parsed))

        return serve

    async def _answered(self, name: str, context: Context, call: Callable[[], Awaitable[Answer]]) -> bytes:
        """What the one answer to a call is, or the status of its failure."""
        try:
            with self._trace.of(context.invocation_metadata), self._measure(name):
                return _encoded(await call())
        except OrlopError as error:
            await _refuse(context, name, error)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            await _fail(context, name, error)

    def _streaming(
        self, name: str, parse: Callable[[bytes], Message], call: Stream
    ) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
        async def serve(data: bytes, context: Context) -> AsyncIterator[bytes]:
            task = asyncio.current_task()
            assert task is not None
            self._streams.add(task)
            try:
                async with aclosing(call(_parsed(name, parse, data))) as messages:
                    async for message in messages:
                        yield _encoded(message)
            except OrlopError as error:
                await _refuse(context, name, error)
            except asyncio.CancelledError:
                if not self._closing or task.uncancel():
                    raise
                await _refuse(context, name, Unavailable("the daemon is shutting down"))
            except Exception as error:
                await _fail(context, name, error)
            finally:
                self._streams.discard(task)

        return serve


def _parsed(name: str, parse: Callable[[bytes], Message], data: bytes) -> Message:
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidArgument(f"the request of {name} is not valid protobuf: {error}") from error


def _encoded(answer: Answer) -> bytes:
    return answer if isinstance(answer, bytes) else answer.SerializeToString()


def details(error: BaseException) -> str:
    """The error's message as it may travel: one line of valid UTF-8, bounded."""
    text = " ".join(str(error).split()) or type(error).__name__
    data = text.encode("utf-8", "replace")
    if len(data) > MAX_DETAILS:
        data = data[: MAX_DETAILS - 3] + b"..."
    return data.decode(errors="ignore")


async def _refuse(context: Context, name: str, error: OrlopError) -> NoReturn:
    level = _LEVELS.get(error.code, logging.INFO)
    log.log(level, "%s: %s", name, error, exc_info=error if level == logging.ERROR else None)
    await context.abort(_STATUS[error.code], details(error))


async def _fail(context: Context, name: str, error: Exception) -> NoReturn:
    log.error("%s failed unexpectedly", name, exc_info=error)
    await context.abort(grpc.StatusCode.INTERNAL, f"{name}: {type(error).__name__}: {details(error)}")
