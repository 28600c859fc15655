"""The calls of the daemon's socket, which speaks CRI.

    async with CriClient(Path("/run/orlop/orlop.sock")) as client:
        answer = await client.runtime.version(pb.VersionRequest(), timeout=5)

Each call is a method named in snake case; streaming calls return an async iterator. A failed call
raises the :class:`~orlop.errors.OrlopError` that the daemon raised, by its status code.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from google.protobuf import message_factory
from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.message import Message
from grpc import aio

from orlop import errors
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import OrlopError
from orlop.rpc.names import method_name

DEFAULT_TIMEOUT = 120.0

_OPTIONS = (
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.enable_retries", 0),
    # A name for HTTP/2's sake; else it would be the percent-encoded path of the socket.
    ("grpc.default_authority", "localhost"),
)
_ERRORS: dict[int, type[OrlopError]] = {
    int(kind.code): kind
    # Of those with one code, the one that the others are kinds of comes last, and stays.
    for kind in reversed(vars(errors).values())
    if isinstance(kind, type) and issubclass(kind, OrlopError) and kind is not OrlopError
}


class Service:
    """The calls of one service, as methods."""

    def __init__(self, channel: aio.Channel, descriptor: ServiceDescriptor, address: str) -> None:
        self._address = address
        self._calls: dict[str, Callable[..., Any]] = {}
        for method in descriptor.methods:
            make: Callable[..., Any] = channel.unary_unary
            if method.client_streaming:
                make = channel.stream_unary
            elif method.server_streaming:
                make = channel.unary_stream
            call = make(
                f"/{descriptor.full_name}/{method.name}",
                request_serializer=message_factory.GetMessageClass(method.input_type).SerializeToString,
                response_deserializer=message_factory.GetMessageClass(method.output_type).FromString,
            )
            bind = self._streaming if method.server_streaming else self._unary
            self._calls[method_name(method.name)] = bind(call)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self._calls[name]
        except KeyError:
            raise AttributeError(name) from None

    def _unary(self, call: Any) -> Callable[..., Awaitable[Any]]:
        async def unary(
            request: Message | AsyncIterator[Message], *, timeout: float | None = DEFAULT_TIMEOUT
        ) -> Any:
            try:
                return await call(request, timeout=timeout)
            except aio.AioRpcError as error:
                raise self._translated(error) from error

        return unary

    def _streaming(self, call: Any) -> Callable[..., AsyncIterator[Any]]:
        async def stream(request: Message, *, timeout: float | None = None) -> AsyncIterator[Any]:
            running = call(request, timeout=timeout)
            try:
                async for message in running:
                    yield message
            except aio.AioRpcError as error:
                raise self._translated(error) from error
            finally:
                running.cancel()

        return stream

    def _translated(self, error: aio.AioRpcError) -> OrlopError:
        details = error.details() or error.code().name
        if "failed to connect" in details.lower():
            details = f"no daemon answers at {self._address}: {details}"
        return _ERRORS.get(error.code().value[0], OrlopError)(details)


class Connected:
    """A connection to the socket at ``path``, whose services are those of a subclass."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._channel = aio.insecure_channel(f"unix:{path}", options=_OPTIONS)

    def _service(self, descriptor: ServiceDescriptor) -> Service:
        return Service(self._channel, descriptor, str(self.path))

    async def close(self) -> None:
        """Let go of the connection."""
        await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class CriClient(Connected):
    """Pods and images: ``runtime`` and ``images`` are its services."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        services = pb.DESCRIPTOR.services_by_name
        self.runtime = self._service(services["RuntimeService"])
        self.images = self._service(services["ImageService"])


class NativeClient(Connected):
    """What CRI has no words for: ``containers``, ``archives`` and ``names`` are its services."""

    def __init__(self, path: Path) -> None:
        from orlop.native.api import native_v1_pb2

        super().__init__(path)
        services = native_v1_pb2.DESCRIPTOR.services_by_name
        self.containers = self._service(services["ContainerService"])
        self.archives = self._service(services["ArchiveService"])
        self.names = self._service(services["ImageNameService"])


class VolumeClient(Connected):
    """Named volumes, in the words of CSI: ``controller`` and ``node`` are its services."""

    def __init__(self, path: Path) -> None:
        # Most commands have nothing to do with volumes.
        from orlop.csi.api import csi_v1_pb2

        super().__init__(path)
        services = csi_v1_pb2.DESCRIPTOR.services_by_name
        self.controller = self._service(services["Controller"])
        self.node = self._service(services["Node"])
