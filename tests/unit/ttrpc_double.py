"""A service with each kind of call, and links between a client and a server in one process."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message

from orlop.errors import FailedPrecondition
from orlop.host.tasks import beside
from orlop.ttrpc.client import Client
from orlop.ttrpc.link import SocketLink
from orlop.ttrpc.server import MAX_STREAMS, Services, serve

NAME = "ttrpc.integration.streaming.Streaming"


def _file() -> descriptor_pb2.FileDescriptorProto:
    """What the original's tests use: https://github.com/containerd/ttrpc, integration/streaming."""
    file = descriptor_pb2.FileDescriptorProto(
        name="streaming_test.proto",
        package="ttrpc.integration.streaming",
        syntax="proto3",
        dependency=["google/protobuf/empty.proto"],
    )
    field = descriptor_pb2.FieldDescriptorProto
    for name, fields in (
        ("EchoPayload", (("seq", field.TYPE_UINT32), ("msg", field.TYPE_STRING))),
        ("Part", (("add", field.TYPE_INT32),)),
        ("Sum", (("sum", field.TYPE_INT32), ("num", field.TYPE_INT32))),
    ):
        message = file.message_type.add(name=name)
        for number, (label, kind) in enumerate(fields, 1):
            message.field.add(name=label, number=number, type=kind, label=field.LABEL_OPTIONAL)
    own, empty = ".ttrpc.integration.streaming", ".google.protobuf.Empty"
    service = file.service.add(name="Streaming")
    for name, given, found, client, server in (
        ("Echo", f"{own}.EchoPayload", f"{own}.EchoPayload", False, False),
        ("EchoStream", f"{own}.EchoPayload", f"{own}.EchoPayload", True, True),
        ("SumStream", f"{own}.Part", f"{own}.Sum", True, False),
        ("DivideStream", f"{own}.Sum", f"{own}.Part", False, True),
        ("EchoNull", f"{own}.EchoPayload", empty, True, False),
        ("EchoNullStream", f"{own}.EchoPayload", empty, True, True),
        ("EmptyPayloadStream", empty, f"{own}.EchoPayload", False, True),
    ):
        service.method.add(
            name=name, input_type=given, output_type=found, client_streaming=client, server_streaming=server
        )
    return file


def _classes() -> tuple[Any, dict[str, Any]]:
    from google.protobuf import empty_pb2

    pool = descriptor_pool.DescriptorPool()
    empty = descriptor_pb2.FileDescriptorProto()
    empty_pb2.DESCRIPTOR.CopyToProto(empty)
    pool.Add(empty)
    pool.Add(_file())
    names = ("EchoPayload", "Part", "Sum")
    found = {
        name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"ttrpc.integration.streaming.{name}")
        )
        for name in names
    }
    found["Empty"] = message_factory.GetMessageClass(pool.FindMessageTypeByName("google.protobuf.Empty"))
    return pool.FindServiceByName(NAME), found


SERVICE, CLASSES = _classes()
Echo, Part, Sum, Empty = (CLASSES[name] for name in ("EchoPayload", "Part", "Sum", "Empty"))


class Streaming:
    """The service; ``cancelled`` is set when a call that was asked to wait is."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.waiting = asyncio.Event()

    def services(self) -> Services:
        services = Services()
        services.add(
            SERVICE,
            {
                "Echo": self.echo,
                "EchoStream": self.echo_stream,
                "SumStream": self.sum_stream,
                "DivideStream": self.divide_stream,
                "EchoNull": self.echo_null,
                "EchoNullStream": self.echo_null_stream,
                "EmptyPayloadStream": self.empty_payload_stream,
            },
        )
        return services

    async def echo(self, request: Any) -> Message:
        if request.msg == "fail":
            raise FailedPrecondition("it was asked to fail")
        if request.msg == "break":
            raise RuntimeError("it was asked to break")
        if request.msg == "large":
            return Echo(msg="x" * (5 << 20))  # type: ignore[no-any-return]
        if request.msg == "sleep":
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return Echo(seq=request.seq + 1, msg=request.msg)  # type: ignore[no-any-return]

    async def echo_stream(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Message, None]:
        async for request in requests:
            if request.msg == "fail":
                raise FailedPrecondition("the stream was asked to fail")
            yield Echo(seq=request.seq + 1, msg=request.msg)

    async def sum_stream(self, requests: AsyncIterator[Any]) -> Message:
        parts = [part.add async for part in requests]
        return Sum(sum=sum(parts), num=len(parts))  # type: ignore[no-any-return]

    async def divide_stream(self, request: Any) -> AsyncGenerator[Message, None]:
        for _ in range(request.num):
            yield Part(add=request.sum // request.num)

    async def echo_null(self, requests: AsyncIterator[Any]) -> Message:
        async for _ in requests:
            pass
        return Empty()  # type: ignore[no-any-return]

    async def echo_null_stream(self, requests: AsyncIterator[Any]) -> AsyncGenerator[Message, None]:
        async for _ in requests:
            yield Empty()

    async def empty_payload_stream(self, _request: Any) -> AsyncGenerator[Message, None]:
        yield Echo()


async def links() -> tuple[SocketLink, SocketLink]:
    """Two ends of a pair of sockets."""
    one, other = socket.socketpair()
    return (
        SocketLink(*await asyncio.open_unix_connection(sock=one)),
        SocketLink(*await asyncio.open_unix_connection(sock=other)),
    )


@asynccontextmanager
async def joined(service: Streaming, *, max_streams: int = MAX_STREAMS) -> AsyncIterator[Client]:
    """A client of ``service``."""
    here, there = await links()
    client = Client(here, "the double")
    try:
        async with beside(serve(there, service.services(), max_streams=max_streams)):
            yield client
    finally:
        await client.close()
        await there.close()
