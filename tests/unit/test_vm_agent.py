"""The host's end of the talk with an agent, against a peer that speaks the real protocol."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import DeadlineExceeded, Internal, InvalidArgument, Unavailable
from orlop.host.tasks import beside
from orlop.sandbox.vm import agent as agents
from orlop.sandbox.vm.agent import AgentClient
from orlop.wire.flow import WINDOW
from orlop.wire.framing import Frame, Kind, data_frames, frame
from orlop.wire.hello import VERSION, Hello
from orlop.wire.messages import (
    Done,
    Dump,
    Event,
    Online,
    OutOfMemory,
    Ping,
    Refused,
    Request,
    pack_reply,
)
from tests.unit.vm_peer import Peer


def answer(request: Request[Any]) -> Any:
    if isinstance(request, Ping):
        return Done()
    if isinstance(request, Online):
        raise Refused("invalid", "not now")
    return None


async def client_of(peer: Peer) -> AgentClient:
    return await AgentClient.connect(peer.path, name="vm 1", timeout=60)


async def test_call_refusal_and_timeout(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", answer) as peer:
        client = await client_of(peer)
        assert await client.call(Ping()) == Done()
        with pytest.raises(InvalidArgument, match="not now"):
            await client.call(Online())
        peer.handler = lambda request: None
        with pytest.raises(DeadlineExceeded, match=r"ping within 0\.05"):
            await client.call(Ping(), timeout=0.05)
        await client.close()
        with pytest.raises(Unavailable):
            await client.call(Ping())


async def test_no_socket_and_no_greeting(tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        await AgentClient.connect(tmp_path / "none", name="vm 1", timeout=1)

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(mute, tmp_path / "mute")
    with pytest.raises(DeadlineExceeded):
        await AgentClient.connect(tmp_path / "mute", name="vm 1", timeout=0.05)
    server.close()
    await server.wait_closed()


async def test_a_lost_connection_fails_what_waits(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", lambda request: None) as peer:
        client = await client_of(peer)
        waiting = asyncio.create_task(client.call(Ping()))
        stream = client.incoming(client.new_stream())
        await peer.until(lambda: bool(peer.requests))
        peer.hang_up()
        with pytest.raises(Unavailable):
            await waiting
        with pytest.raises(Unavailable):
            await stream.read()
        assert "gone" in await client.wait_closed()
        await client.close()


async def test_a_malformed_reply_fails_its_own_caller_at_once(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", lambda request: None) as peer:
        client = await client_of(peer)
        async with asyncio.timeout(20), beside(client.call(Dump())) as waiting:
            await peer.until(lambda: bool(peer.requests))
            peer.send(frame(Kind.REPLY, 1, b'{"ok": {"containers": 7}}'))
            with pytest.raises(Unavailable, match="broke the protocol: reply to dump"):
                await waiting
        assert client.closed
        await client.close()


async def test_a_late_reply_is_dropped_and_the_talk_goes_on(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", lambda request: None) as peer:
        client = await client_of(peer)
        with pytest.raises(DeadlineExceeded):
            await client.call(Ping(), timeout=0.02)
        peer.handler = answer
        peer.send(frame(Kind.REPLY, 1, pack_reply(Done())))
        await client.call(Ping())
        assert not client.closed
        peer.send(frame(Kind.REPLY, 1, pack_reply(Done())))
        assert "request 1, which was not made" in await client.wait_closed()
        await client.close()


async def test_an_event_that_cannot_be_handled_ends_the_connection(tmp_path: Path) -> None:
    """And does so for all who wait, instead of leaving nobody to read their answers."""
    async with Peer(tmp_path / "s", lambda request: None) as peer:
        client = await client_of(peer)

        def stumble(event: Event) -> None:
            raise KeyError(event)

        client.on_event = stumble
        async with asyncio.timeout(20), beside(client.call(Ping())) as waiting:
            await peer.until(lambda: bool(peer.requests))
            peer.event(OutOfMemory(id="c1"))
            with pytest.raises(Internal, match="could not be dealt with"):
                await waiting
        await client.close()


async def test_streams_both_ways(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", answer) as peer:
        peer.hello = Hello(version=VERSION, next_stream=7)
        client = await client_of(peer)
        number = client.new_stream()
        assert number == 7
        stream, out = client.incoming(number), client.outgoing(number)
        for encoded in data_frames(number, 0, b"hello"):
            peer.send(encoded)
        assert await stream.read() == b"hello"
        stream.consumed(5)
        peer.send(frame(Kind.EOF, number, offset=5))
        assert await stream.read() == b""
        stream.end_consumed()
        await out.write(b"back")
        out.end()
        await peer.until(lambda: sum(1 for f in peer.frames if f.kind is Kind.EOF) == 1)
        assert b"".join(f.payload for f in peer.frames if f.kind is Kind.DATA) == b"back"
        assert max(f.offset for f in peer.frames if f.kind is Kind.ACK) == 6
        await client.close()


async def test_a_writer_waits_for_credit(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", answer) as peer:
        client = await client_of(peer)
        out = client.outgoing(client.new_stream())
        writing = asyncio.create_task(out.write(bytes(WINDOW + 10)))
        await peer.until(lambda: sum(len(f.payload) for f in peer.frames if f.kind is Kind.DATA) == WINDOW)
        assert not writing.done()
        peer.send(frame(Kind.ACK, out.stream, offset=WINDOW))
        await writing
        await client.close()


async def test_events_and_protocol_errors(tmp_path: Path) -> None:
    events: list[Event] = []
    async with Peer(tmp_path / "s", answer) as peer:
        client = await client_of(peer)
        client.on_event = events.append
        peer.event(OutOfMemory(id="c1"))
        await client.call(Ping())
        assert events == [OutOfMemory(id="c1")]
        peer.send(frame(Kind.EOF, 99, offset=0))
        assert "stream 99, which was not opened" in await client.wait_closed()
        await client.close()


async def test_a_lost_greeting_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "_GREETING", 0.05)
    async with Peer(tmp_path / "s", answer) as peer:
        take = peer._take
        lost: list[Frame] = []

        def forgetful(received: Frame) -> None:
            if received.kind is Kind.SYNC and not lost:
                lost.append(received)
            else:
                take(received)

        monkeypatch.setattr(peer, "_take", forgetful)
        client = await client_of(peer)
        assert lost and await client.call(Ping()) == Done()
        await client.close()
