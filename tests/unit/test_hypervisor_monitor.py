"""The connection to a QEMU: what is sent when. The other end is a socket that speaks QMP."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from orlop.errors import Unavailable
from orlop.hypervisor.qemu.monitor import Monitor

GREETING = {
    "QMP": {"version": {"qemu": {"micro": 0, "minor": 0, "major": 10}, "package": ""}, "capabilities": []}
}


class Qemu:
    """The other end: it hands out each command that has come, and answers when told to."""

    def __init__(self, peer: socket.socket) -> None:
        self._peer = peer
        self._rest = ""

    async def command(self) -> dict[str, object]:
        """The next command. Descriptors that come with it are closed."""
        loop = asyncio.get_running_loop()
        while True:
            # A message has no end of its own but that of its JSON.
            with suppress(json.JSONDecodeError):
                command, end = json.JSONDecoder().raw_decode(self._rest.lstrip())
                self._rest = self._rest.lstrip()[end:]
                return dict(command)
            ready = asyncio.Event()
            loop.add_reader(self._peer, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(self._peer)
            data, descriptors, _, _ = socket.recv_fds(self._peer, 4096, 1)
            for descriptor in descriptors:
                os.close(descriptor)
            if not data:
                raise EOFError
            self._rest += data.decode()

    async def nothing_comes(self) -> None:
        """Raises AssertionError for a command that comes within a moment."""
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                raise AssertionError(f"{await self.command()} was sent")

    async def say(self, **message: object) -> None:
        """Send one message."""
        await asyncio.get_running_loop().sock_sendall(self._peer, json.dumps(message).encode() + b"\r\n")

    async def answer(self, command: dict[str, object], result: object) -> None:
        """Answer a command."""
        number = {"id": command["id"]} if "id" in command else {}
        await self.say(**{"return": result, **number})

    def end(self) -> None:
        """Close the connection."""
        self._peer.close()


async def why() -> str:
    return "QEMU ended by signal 6"


@asynccontextmanager
async def connected(directory: Path) -> AsyncIterator[tuple[Monitor, Qemu]]:
    """A monitor and the QEMU that it is connected to."""
    path = directory / "qmp.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen()
        connecting = asyncio.create_task(Monitor.connect("m", str(path), lambda name, data: None, why=why))
        listener.setblocking(False)
        peer, _ = await asyncio.get_running_loop().sock_accept(listener)
        peer.setblocking(False)
        qemu = Qemu(peer)
        await qemu.say(**GREETING)
        await qemu.answer(await qemu.command(), {})
        monitor = await connecting
        try:
            yield monitor, qemu
        finally:
            qemu.end()
            await monitor.close()


@pytest.fixture
def file() -> Iterator[int]:
    """An open file."""
    descriptor = os.open("/dev/null", os.O_RDONLY)
    yield descriptor
    os.close(descriptor)


async def test_nothing_is_sent_while_a_descriptor_is_on_its_way(tmp_path: Path, file: int) -> None:
    async with connected(tmp_path) as (monitor, qemu), asyncio.TaskGroup() as group:
        passing = group.create_task(monitor.execute_with(file, "add-fd", {"fdset-id": 1}))
        added = await qemu.command()
        assert added["execute"] == "add-fd"
        asking = group.create_task(monitor.execute("query-status"))
        second = group.create_task(monitor.execute_with(file, "add-fd", {"fdset-id": 2}))
        await qemu.nothing_comes()
        await qemu.answer(added, {"fd": 7})
        assert await passing == {"fd": 7}
        names = []
        for _ in range(2):
            command = await qemu.command()
            names.append(command["execute"])
            await qemu.answer(command, {})
        assert sorted(names) == ["add-fd", "query-status"]
        assert await asking == {} and await second == {}


async def test_a_descriptor_whose_caller_went_away_still_goes_alone(tmp_path: Path, file: int) -> None:
    async with connected(tmp_path) as (monitor, qemu), asyncio.TaskGroup() as group:
        passing = group.create_task(monitor.execute_with(file, "add-fd", {"fdset-id": 1}))
        added = await qemu.command()
        passing.cancel()
        asking = group.create_task(monitor.execute("query-status"))
        await qemu.nothing_comes()
        await qemu.answer(added, {"fd": 7})
        await qemu.answer(await qemu.command(), {"status": "running"})
        assert await asking == {"status": "running"}
        with suppress(asyncio.CancelledError):
            await passing
        assert passing.cancelled()


async def test_a_command_that_finds_qemu_gone_tells_why(tmp_path: Path) -> None:
    async with connected(tmp_path) as (monitor, qemu):
        asking = asyncio.create_task(monitor.execute("query-status"))
        await qemu.command()
        qemu.end()
        with pytest.raises(Unavailable, match="has ended: QEMU ended by signal 6"):
            await asking


async def test_a_descriptor_for_a_qemu_that_is_gone_is_refused_in_a_sentence(
    tmp_path: Path, file: int
) -> None:
    async with connected(tmp_path) as (monitor, qemu):
        qemu.end()
        with pytest.raises(Unavailable, match="has ended: QEMU ended by signal 6"):
            await monitor.execute_with(file, "add-fd", {"fdset-id": 1})
