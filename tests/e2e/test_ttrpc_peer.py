"""Our ttrpc with the original, in both directions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition
from orlop.ttrpc import link, server
from orlop.ttrpc.client import Client, TimedOut
from tests.conformance import tools
from tests.patience import PATIENCE
from tests.unit.ttrpc_double import NAME, Echo, Empty, Part, Streaming, Sum


@pytest.fixture(scope="module")
def peer() -> Path:
    return tools.peer("ttrpc")


@pytest.fixture
async def client(peer: Path, tmp_path: Path) -> AsyncIterator[Client]:
    path = tmp_path / "socket"
    child = await asyncio.create_subprocess_exec(peer, "serve", path)
    try:
        async with asyncio.timeout(60 * PATIENCE):
            while True:
                # It is there before anybody listens.
                try:
                    connection = await link.connect(path)
                    break
                except link.LinkLost:
                    await asyncio.sleep(0.02)
        found = Client(connection, "the original")
        try:
            yield found
        finally:
            await found.close()
    finally:
        child.kill()
        await child.wait()


async def test_our_client_and_its_server(client: Client) -> None:
    for text in ("", "hello", "x" * (3 << 20)):
        reply = await client.call(NAME, "Echo", Echo(seq=1, msg=text), Echo, timeout=60)
        assert (reply.seq, reply.msg) == (2, text)
    with pytest.raises(FailedPrecondition, match="asked to fail"):
        await client.call(NAME, "Echo", Echo(msg="fail"), Echo)
    with pytest.raises(TimedOut):
        await client.call(NAME, "Echo", Echo(msg="sleep"), Echo, timeout=0.2)
    told = await client.call(NAME, "Echo", Echo(msg="metadata"), Echo, metadata=[("key", "value")])
    assert told.msg == "value"
    calls = [client.call(NAME, "Echo", Echo(seq=number), Echo) for number in range(200)]
    assert [reply.seq for reply in await asyncio.gather(*calls)] == list(range(1, 201))


async def test_our_client_and_its_streams(client: Client) -> None:
    async with client.stream(NAME, "EchoStream", Echo) as both:
        for number in range(300):
            await both.send(Echo(seq=number))
            assert await both.receive() == Echo(seq=number + 1)
        await both.end()
        assert await both.receive() is None
    async with client.stream(NAME, "SumStream", Sum) as up:
        for number in range(1, 11):
            await up.send(Part(add=number))
        await up.end()
        assert await up.receive() == Sum(sum=55, num=10)
    async with client.stream(NAME, "DivideStream", Part, request=Sum(sum=50, num=10)) as down:
        parts = []
        while (part := await down.receive()) is not None:
            parts.append(part.add)
        assert parts == [5] * 10
    async with client.stream(NAME, "EmptyPayloadStream", Echo, request=Empty()) as empty:
        assert await empty.receive() == Echo()
        assert await empty.receive() is None


async def test_its_client_and_our_server(peer: Path, tmp_path: Path) -> None:
    services = Streaming().services()

    async def serve(one: link.SocketLink) -> None:
        await server.serve(one, services)

    listener = link.Listener(tmp_path / "socket", serve)
    await listener.start()
    try:
        child = await asyncio.create_subprocess_exec(
            peer, "call", tmp_path / "socket", stdout=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(120 * PATIENCE):
            said, _ = await child.communicate()
        assert said.decode() == "ok\n"
    finally:
        await listener.stop()
