"""What a guest tells of the files that a container has changed: checked, and given up when nobody reads."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import FailedPrecondition, NotFound, Unavailable
from orlop.linux.changes import Change, packed
from orlop.sandbox.vm import changes
from orlop.sandbox.vm.agent import AgentClient
from orlop.wire.framing import Kind, data_frames, frame
from orlop.wire.hello import CHANGES, VERSION, Hello
from orlop.wire.messages import (
    Changes,
    Done,
    Refused,
    Request,
)
from tests.patience import PATIENCE
from tests.unit.vm_peer import Peer

WANTED = [Change("C", b"/etc"), Change("A", b"/etc/\xff"), Change("D", b"/bin/true")]


class Guest(Peer):
    """Tells ``said``, and the end of it if it ``ends``; or answers with a ``refusal``."""

    def __init__(self, path: Path, said: bytes, *, ends: bool = True, refusal: Refused | None = None) -> None:
        super().__init__(path, self.tell)
        self.hello = Hello(version=VERSION, features=(CHANGES,))
        self.said, self.ends, self.refusal = said, ends, refusal

    def tell(self, request: Request[Any]) -> Any:
        if not isinstance(request, Changes):
            return None
        assert request.id == "c"
        for encoded in data_frames(request.stream, 0, self.said):
            self.send(encoded)
        if self.refusal is not None:
            raise self.refusal
        if self.ends:
            self.send(frame(Kind.EOF, request.stream, offset=len(self.said)))
            return Done()
        return None


async def told(guest: Peer) -> list[Change]:
    client = await AgentClient.connect(guest.path, name="vm 1", timeout=20 * PATIENCE)
    found: list[Change] = []
    try:
        async with asyncio.timeout(20 * PATIENCE), aclosing(changes.told(client, "c")) as parts:
            async for part in parts:
                found += part
    finally:
        await client.close()
    return found


async def test_changes_come_in_pieces(tmp_path: Path) -> None:
    async with Guest(tmp_path / "s", b"".join(map(packed, WANTED))) as guest:
        assert await told(guest) == WANTED
    async with Guest(tmp_path / "none", b"") as guest:
        assert await told(guest) == []


@pytest.mark.parametrize("said", [b"Aetc\0", b"A/a/../b\0", b"Z/a\0", b"\0", b"A/" + b"x" * 5000, b"A/a"])
async def test_what_cannot_be_a_change_is_refused(tmp_path: Path, said: bytes) -> None:
    async with Guest(tmp_path / "s", packed(WANTED[0]) + said) as guest:
        with pytest.raises(Unavailable, match="cannot be changes"):
            await told(guest)


async def test_a_guest_that_refuses_has_no_stream_to_wait_for(tmp_path: Path) -> None:
    async with Guest(tmp_path / "s", b"", refusal=Refused("not_found", "no such container")) as guest:
        with pytest.raises(NotFound, match="no such container"):
            await told(guest)
    said = packed(WANTED[0])
    async with Guest(tmp_path / "late", said, refusal=Refused("failed_precondition", "too deep")) as guest:
        with pytest.raises(FailedPrecondition, match="too deep"):
            await told(guest)


async def test_a_guest_of_an_earlier_version_is_not_asked(tmp_path: Path) -> None:
    async with Guest(tmp_path / "s", b"") as guest:
        guest.hello = Hello(version=VERSION)
        with pytest.raises(FailedPrecondition, match="earlier version"):
            await told(guest)
        assert not guest.requests


async def test_who_reads_no_more_is_told_no_more(tmp_path: Path) -> None:
    async with Guest(tmp_path / "s", packed(WANTED[0]), ends=False) as guest:
        client = await AgentClient.connect(guest.path, name="vm 1", timeout=20 * PATIENCE)
        async with aclosing(changes.told(client, "c")) as parts:
            assert await anext(parts) == [WANTED[0]]
        await guest.until(lambda: any(one.kind is Kind.RESET for one in guest.frames))
        await client.close()
