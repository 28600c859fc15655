"""A connection that is carried between a namespace of the host and a VM."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from orlop.bundle import ports
from orlop.sandbox.base import Connection


class Inside:
    """The side in the VM."""

    def __init__(self, answer: bytes = b"", *, fails: bool = False) -> None:
        self.received = bytearray()
        self.ended = asyncio.Event()
        self._answer = answer
        self._fails = fails

    async def read(self, _limit: int) -> bytes:
        if self._fails:
            raise ConnectionResetError("the VM is gone")
        await self.ended.wait()
        data, self._answer = self._answer, b""
        return data

    async def write(self, data: bytes) -> None:
        self.received += data

    async def write_eof(self) -> None:
        self.ended.set()

    async def close(self) -> None:
        pass


async def passed(inside: Inside) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, asyncio.Task[None]]:
    here, there = socket.socketpair()
    reader, writer = await asyncio.open_connection(sock=here)

    async def work() -> None:
        own, mine = await asyncio.open_connection(sock=there)
        try:
            await ports._pass(own, mine, inside)
        finally:
            mine.close()

    return reader, writer, asyncio.ensure_future(work())


async def test_what_is_said_arrives_and_the_answer_comes_after_the_end() -> None:
    inside = Inside(b"answer")
    reader, writer, work = await passed(inside)
    writer.write(b"question")
    writer.write_eof()
    assert await reader.read() == b"answer"
    await work
    assert inside.received == b"question"
    writer.close()


async def test_a_vm_that_is_gone_ends_it() -> None:
    _, writer, work = await passed(Inside(fails=True))
    with pytest.raises(ConnectionResetError):
        await work
    writer.close()


async def test_an_answer_that_does_not_come_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ports, "_HALF_OPEN", 0.01)
    inside = Inside()
    monkeypatch.setattr(inside, "write_eof", inside.close)
    reader, writer, work = await passed(inside)
    writer.write_eof()
    await work
    assert await reader.read() == b""
    writer.close()


def test_the_rules_replace_those_of_an_earlier_daemon() -> None:
    lines = ports._rules(4711).splitlines()
    assert lines[:3] == ["table ip orlop_shim", "delete table ip orlop_shim", "table ip orlop_shim {"]
    assert lines[5].endswith("redirect to :4711")


async def test_the_loopback_of_the_host_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    async def dial(_port: int) -> Connection:
        raise AssertionError("nobody is to be connected")

    await ports._Loopback(Path("/proc/self/ns/net"), dial).serve()
    assert "it is the host's own" in caplog.text
