"""ttrpc between our own client and server, and against bytes of any kind."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import (
    DataLoss,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    OrlopError,
    ResourceExhausted,
    Unimplemented,
)
from orlop.host.tasks import beside
from orlop.ttrpc import frames, link
from orlop.ttrpc.client import Client, TimedOut
from orlop.ttrpc.frames import (
    HEADER,
    MAX_MESSAGE,
    NO_DATA,
    REMOTE_CLOSED,
    FrameType,
    LinkLost,
    Oversized,
    TtrpcFrame,
)
from orlop.ttrpc.inbox import MAX_FRAMES, Inbox
from orlop.ttrpc.messages_pb2 import Request, Response
from orlop.ttrpc.server import Services, serve
from tests.unit.ttrpc_double import NAME, SERVICE, Echo, Empty, Part, Streaming, Sum, joined, links


async def test_a_call_is_answered_whatever_its_size() -> None:
    async with joined(Streaming()) as client:
        for text in ("", "hello", "x" * (3 << 20)):
            reply = await client.call(NAME, "Echo", Echo(seq=1, msg=text), Echo, timeout=60)
            assert (reply.seq, reply.msg) == (2, text)


async def test_many_calls_at_once_get_each_its_own_answer() -> None:
    async with joined(Streaming()) as client:
        calls = [client.call(NAME, "Echo", Echo(seq=number), Echo) for number in range(200)]
        assert [reply.seq for reply in await asyncio.gather(*calls)] == list(range(1, 201))


@pytest.mark.parametrize(
    ("service", "method", "text", "expected"),
    [
        (NAME, "Echo", "fail", FailedPrecondition),
        (NAME, "Echo", "break", Internal),
        (NAME, "Echo", "large", ResourceExhausted),
        (NAME, "None", "", Unimplemented),
        ("None", "Echo", "", Unimplemented),
    ],
)
async def test_errors_keep_their_kind(
    service: str, method: str, text: str, expected: type[OrlopError]
) -> None:
    async with joined(Streaming()) as client:
        with pytest.raises(expected):
            await client.call(service, method, Echo(msg=text), Echo)
        assert (await client.call(NAME, "Echo", Echo(seq=1), Echo)).seq == 2


async def test_a_request_that_is_too_long_is_never_sent() -> None:
    async with joined(Streaming()) as client:
        with pytest.raises(Oversized):
            await client.call(NAME, "Echo", Echo(msg="x" * MAX_MESSAGE), Echo)
        assert (await client.call(NAME, "Echo", Echo(seq=1), Echo)).seq == 2


async def test_a_call_ends_in_time_here_and_there() -> None:
    service = Streaming()
    async with joined(service) as client:
        with pytest.raises(TimedOut, match="the double did not answer Echo"):
            await client.call(NAME, "Echo", Echo(msg="sleep"), Echo, timeout=0.05)
        async with asyncio.timeout(30):
            await service.cancelled.wait()
        assert (await client.call(NAME, "Echo", Echo(seq=1), Echo)).seq == 2


async def test_a_cancelled_call_leaves_the_others_alone() -> None:
    service = Streaming()
    async with joined(service) as client:
        async with beside(client.call(NAME, "Echo", Echo(msg="sleep"), Echo)):
            await service.waiting.wait()
        assert (await client.call(NAME, "Echo", Echo(seq=1), Echo)).seq == 2


async def test_who_calls_through_a_lost_link_hears_so_at_once() -> None:
    here, there = await links()
    client = Client(here, "somebody")
    async with beside(client.call(NAME, "Echo", Echo(), Echo)) as call:
        await frames.read(there)
        await there.close()
        with pytest.raises(LinkLost, match="somebody: the other side has closed"):
            await call
    with pytest.raises(LinkLost):
        await client.call(NAME, "Echo", Echo(), Echo)
    assert "somebody" in await client.wait_closed()
    await client.close()


async def test_what_runs_for_a_caller_that_is_gone_is_cancelled() -> None:
    here, there = await links()
    service = Streaming()
    async with beside(serve(there, service.services())) as serving:
        client = Client(here, "it")
        async with beside(client.call(NAME, "Echo", Echo(msg="sleep"), Echo)):
            await service.waiting.wait()
        await client.close()
        assert "closed" in await serving
    assert service.cancelled.is_set()
    await there.close()


async def test_streams() -> None:
    async with joined(Streaming()) as client:
        async with client.stream(NAME, "EchoStream", Echo) as both:
            for number in range(300):
                await both.send(Echo(seq=number))
                reply = await both.receive()
                assert reply is not None
                assert reply.seq == number + 1
            await both.end()
            await both.end()
            assert await both.receive() is None
            assert await both.receive() is None
        async with client.stream(NAME, "SumStream", Sum) as up:
            for number in range(1, 11):
                await up.send(Part(add=number))
            await up.end()
            assert (await up.receive()) == Sum(sum=55, num=10)
        async with client.stream(NAME, "DivideStream", Part, request=Sum(sum=50, num=10)) as down:
            parts = []
            while (part := await down.receive()) is not None:
                parts.append(part.add)
            assert parts == [5] * 10
        async with client.stream(NAME, "EmptyPayloadStream", Echo, request=Empty()) as empty:
            assert await empty.receive() == Echo()
            assert await empty.receive() is None


async def test_a_stream_ends_with_the_error_of_the_other_side() -> None:
    async with joined(Streaming()) as client:
        async with client.stream(NAME, "EchoStream", Echo) as stream:
            await stream.send(Echo(msg="fail"))
            with pytest.raises(FailedPrecondition, match="asked to fail"):
                await stream.receive()
        assert (await client.call(NAME, "Echo", Echo(seq=1), Echo)).seq == 2


async def test_calls_at_once_are_bounded() -> None:
    service = Streaming()
    async with (
        joined(service, max_streams=1) as client,
        beside(client.call(NAME, "Echo", Echo(msg="sleep"), Echo)),
    ):
        await service.waiting.wait()
        with pytest.raises(ResourceExhausted):
            await client.call(NAME, "Echo", Echo(), Echo)


async def test_who_does_not_read_a_stream_loses_it_and_nobody_else() -> None:
    inbox = Inbox(patience=0.01)
    for number in range(MAX_FRAMES):
        await inbox.put(TtrpcFrame(number, FrameType.DATA))
    with pytest.raises(ResourceExhausted, match="was not read"):
        await inbox.put(TtrpcFrame(0, FrameType.DATA))
    await inbox.put(TtrpcFrame(0, FrameType.DATA))
    for number in range(MAX_FRAMES):
        frame = await inbox.get()
        assert frame is not None
        assert frame.stream == number
    with pytest.raises(ResourceExhausted):
        await inbox.get()


async def test_bytes_that_wait_are_bounded() -> None:
    inbox = Inbox(patience=0.01)
    for _ in range(2):
        await inbox.put(TtrpcFrame(1, FrameType.DATA, bytes(MAX_MESSAGE)))
    with pytest.raises(ResourceExhausted):
        await inbox.put(TtrpcFrame(1, FrameType.DATA, b"x"))


async def served(there: link.SocketLink) -> None:
    """Serve a link to its end, and close it."""
    try:
        await serve(there, Streaming().services())
    finally:
        await there.close()


async def answers(*sent: bytes) -> list[tuple[int, int]]:
    """Stream and status of what a server answers to these bytes."""
    here, there = await links()
    found = []
    async with beside(served(there)):
        for data in sent:
            await here.write(data)
        here.writer.write_eof()
        try:
            while True:
                frame = await frames.read(here)
                found.append((frame.stream, Response.FromString(frame.data).status.code))
        except LinkLost:
            pass
        finally:
            await here.close()
    return found


def request(stream: int, **fields: Any) -> bytes:
    wanted = Request(service=NAME, method="Echo", **fields)
    return TtrpcFrame(stream, FrameType.REQUEST, wanted.SerializeToString()).encode()


@pytest.mark.parametrize(
    ("sent", "stream", "status"),
    [
        (request(2), 2, 3),
        (TtrpcFrame(1, FrameType.REQUEST, b"\xff").encode(), 1, 3),
        (request(1, payload=b"\xff"), 1, 3),
        (TtrpcFrame(1, FrameType.DATA, b"x").encode(), 1, 3),
        (TtrpcFrame(1, FrameType.DATA, flags=REMOTE_CLOSED | NO_DATA).encode(), 1, 3),
        (HEADER.pack(MAX_MESSAGE + 1, 1, FrameType.REQUEST, 0) + bytes(MAX_MESSAGE + 1), 1, 8),
    ],
)
async def test_a_bad_frame_is_refused_and_the_connection_goes_on(
    sent: bytes, stream: int, status: int
) -> None:
    here, there = await links()
    async with beside(serve(there, Streaming().services())):
        await here.write(sent + request(99))
        found = {}
        for _ in range(2):
            frame = await frames.read(here)
            found[frame.stream] = Response.FromString(frame.data).status.code
        assert found == {stream: status, 99: 0}
    await here.close()
    await there.close()


async def test_numbers_of_streams_grow() -> None:
    here, there = await links()
    async with beside(serve(there, Streaming().services())):
        await here.write(request(5) + request(3))
        found = [await frames.read(here) for _ in range(2)]
    assert {(one.stream, Response.FromString(one.data).status.code) for one in found} == {(5, 0), (3, 3)}
    await here.close()
    await there.close()


async def test_a_length_that_no_frame_has_ends_the_connection() -> None:
    assert await answers(HEADER.pack(1 << 31, 1, 1, 0)) == []


async def test_an_unknown_kind_of_frame_is_ignored() -> None:
    here, there = await links()
    async with beside(serve(there, Streaming().services())):
        await here.write(TtrpcFrame(1, 77, b"x").encode() + request(3))
        assert (await frames.read(here)).stream == 3
    await here.close()
    await there.close()


FRAME = st.builds(
    lambda stream, kind, data, flags: TtrpcFrame(stream, kind, data, flags).encode(),
    st.integers(0, 9),
    st.integers(0, 4),
    st.one_of(
        st.binary(max_size=64),
        st.builds(
            lambda method, payload, timeout: Request(
                service=NAME, method=method, payload=payload, timeout_nano=timeout
            ).SerializeToString(),
            st.sampled_from([method.name for method in SERVICE.methods]),
            st.binary(max_size=16),
            st.integers(-5, 10_000_000),
        ),
    ),
    st.integers(0, 255),
)


@given(st.lists(st.one_of(FRAME, st.binary(max_size=32)), max_size=12))
def test_a_server_outlives_any_bytes(sent: list[bytes]) -> None:
    async def run() -> None:
        async with asyncio.timeout(60):
            await answers(*sent)

    asyncio.run(run())


@given(st.lists(st.one_of(FRAME, st.binary(max_size=32)), max_size=8))
def test_a_client_outlives_any_bytes(sent: list[bytes]) -> None:
    async def run() -> None:
        here, there = await links()
        client = Client(here, "it")
        for data in sent:
            await there.write(data)
        there.writer.write_eof()
        try:
            async with asyncio.timeout(60):
                with pytest.raises(OrlopError):
                    await client.call(NAME, "Echo", Echo(), Echo)
                    raise InvalidArgument("it was answered, as it may be")
        finally:
            await client.close()
            await there.close()

    asyncio.run(run())


async def test_an_answer_that_is_no_protobuf_fails_its_call_alone() -> None:
    here, there = await links()
    client = Client(here, "it")
    async with beside(client.call(NAME, "Echo", Echo(), Echo)) as call:
        await frames.read(there)
        await there.write(TtrpcFrame(1, FrameType.RESPONSE, b"\xff").encode())
        with pytest.raises(DataLoss, match="not valid protobuf"):
            await call
    await client.close()
    await there.close()


async def test_a_listener_bounds_its_connections_and_cleans_up(tmp_path: Path) -> None:
    served = asyncio.Event()

    async def hold(one: link.SocketLink) -> None:
        served.set()
        with pytest.raises(LinkLost):
            await one.read(1)

    path = tmp_path / "socket"
    listener = link.Listener(path, hold, limit=1)
    await listener.start()
    assert path.stat().st_mode & 0o777 == 0o600
    async with asyncio.timeout(30):
        first = await link.connect(path)
        await served.wait()
        with pytest.raises(FailedPrecondition, match="listens"):
            await link.Listener(path, hold).start()
        second = await link.connect(path)
        with pytest.raises(LinkLost):
            await second.read(1)
    await first.close()
    await second.close()
    await listener.stop()
    assert not path.exists()
    path.touch()
    with pytest.raises(LinkLost):
        await link.connect(path)


def test_a_service_has_all_its_methods() -> None:
    with pytest.raises(Internal, match="EchoStream"):
        Services().add(SERVICE, {"Echo": Streaming.echo})  # type: ignore[dict-item]
