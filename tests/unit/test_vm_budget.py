"""What a guest sends is paid for, and one that floods is read slowly and then not at all."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import Unavailable
from orlop.sandbox.vm import agent as agents
from orlop.sandbox.vm import budget
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.budget import Budget
from orlop.wire.framing import Kind, frame
from orlop.wire.messages import Done, ExecExited, Ping, Request, pack_event
from orlop.wire.values import Exit
from tests.unit.vm_peer import Peer

DONE = Done()
EVENT = frame(
    Kind.EVENT, payload=pack_event(ExecExited(container_id="0", id="0", exit=Exit(code=0, finished_at=1)))
)
FLOODS = {
    "events": EVENT,
    "acknowledgements": frame(Kind.ACK, 1),
    "resets": frame(Kind.RESET, 1, b"x" * 4096),
    "repeats": frame(Kind.DATA, 1, b"x" * 65536),
    "ends": frame(Kind.EOF, 1, offset=0),
}


def answer(request: Request[Any]) -> Any:
    return DONE


async def _lag(seconds: float) -> list[float]:
    """How late a task was that wanted its turn every millisecond, sorted."""
    found = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        due = time.monotonic() + 0.001
        await asyncio.sleep(0.001)
        found.append(time.monotonic() - due)
    return sorted(found)


async def _flooded(peer: Peer, encoded: bytes, seconds: float) -> list[float]:
    async def flood() -> None:
        batch = encoded * max(1, 65536 // len(encoded))
        while True:
            peer.send(batch)
            assert peer._writer is not None
            await peer._writer.drain()

    flooding = asyncio.ensure_future(flood())
    try:
        return await _lag(seconds)
    finally:
        flooding.cancel()
        await asyncio.gather(flooding, return_exceptions=True)


async def _client(peer: Peer) -> AgentClient:
    client = await AgentClient.connect(peer.path, name="vm 1", timeout=60)
    client.new_stream()
    return client


@pytest.mark.parametrize("what", FLOODS)
async def test_a_flood_leaves_the_daemon_its_time(tmp_path: Path, what: str) -> None:
    async with Peer(tmp_path / "s", answer) as peer:
        client = await _client(peer)
        stream = client.incoming(1)
        if what == "repeats":
            peer.send(FLOODS[what])
        # Other programs may take the machine for a second, but not for one after the other.
        turns = 0
        for _ in range(5):
            turns = max(turns, len(await _flooded(peer, FLOODS[what], 1.0)))
            if turns > 300:
                break
        assert turns > 300, "others hardly had a turn"
        assert client._budget.owed() > 0
        stream.close()
        await client.close()


async def test_without_an_account_a_flood_takes_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same attack with the guard off."""
    monkeypatch.setattr(Budget, "owed", lambda self: 0.0)
    monkeypatch.setattr(agents, "_BATCH", 1 << 20)
    async with Peer(tmp_path / "s", answer) as peer:
        client = await _client(peer)
        assert len(await _flooded(peer, EVENT, 1.0)) < 200
        await client.close()


async def test_a_guest_that_goes_on_flooding_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "FLOOD_TIME", 0.5)
    async with Peer(tmp_path / "s", answer) as peer:
        client = await _client(peer)
        await _flooded(peer, EVENT, 1.5)
        assert "floods the daemon" in await client.wait_closed()
        await client.close()


async def test_output_at_full_speed_costs_nothing(tmp_path: Path) -> None:
    async with Peer(tmp_path / "s", answer) as peer:
        client = await _client(peer)
        stream = client.incoming(1)
        offset = 0
        for _ in range(300):
            peer.send(frame(Kind.DATA, 1, b"x" * 65536, offset))
            offset += 65536
            chunk = await stream.read()
            while len(chunk) < 65536:
                chunk += await stream.read()
            stream.consumed(len(chunk))
        assert client._budget.owed() == 0
        assert client._budget._units > budget.BURST - 50
        stream.close()
        await client.close()


async def test_a_guest_that_does_not_read_holds_little(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agents, "_UNANSWERED", 10)
    silent: Callable[[Request[Any]], Any] = lambda request: None  # noqa: E731
    async with Peer(tmp_path / "s", silent) as peer:
        client = await _client(peer)
        calls = [asyncio.ensure_future(client.call(Ping(), 0.1)) for _ in range(10)]
        await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(Unavailable, match="neither reads nor answers"):
            await client.call(Ping())
        await client.close()
