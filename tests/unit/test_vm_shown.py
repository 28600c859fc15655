"""Which sockets of the host a guest is told to have in a directory, and when."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.errors import Unavailable
from orlop.host.watching import Watcher
from orlop.sandbox.vm import shown, sockets
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.shown import ShownSockets
from orlop.wire.messages import Show
from tests.patience import until


@dataclass
class Agent:
    """Hears what the guest is to have. While it is ``deaf`` it fails."""

    told: list[Show] = field(default_factory=list)
    closed: bool = False
    deaf: bool = False

    async def call(self, request: Any, timeout: float = 0) -> None:
        if self.deaf:
            raise Unavailable("nobody answers")
        self.told.append(request)

    def names(self) -> list[str]:
        return [one.name for one in self.told[-1].sockets] if self.told else []


@dataclass
class Bed:
    agent: Agent
    watcher: Watcher
    shown: ShownSockets
    own: set[str]


@pytest.fixture
async def bed() -> AsyncIterator[Bed]:
    agent, watcher, own = Agent(), Watcher(once=True), set[str]()
    one = Bed(agent, watcher, ShownSockets(cast(AgentClient, agent), watcher, "p", lambda: own), own)
    yield one
    await one.shown.close()
    assert not watcher._calls, "nothing is watched for a pod that is gone"
    watcher.close()


def server(path: Path, mode: int = 0o600) -> socket.socket:
    link = socket.socket(socket.AF_UNIX)
    link.bind(os.fspath(path))
    path.chmod(mode)
    link.listen()
    return link


async def test_the_guest_hears_of_what_comes_and_goes(bed: Bed, tmp_path: Path) -> None:
    with server(tmp_path / "a"):
        await bed.shown.follow("c", "c-0", os.fspath(tmp_path))
        assert bed.agent.names() == ["a"] and (bed.agent.told[0].id, bed.agent.told[0].share) == ("c", "c-0")
        await bed.shown.follow("c", "c-0", os.fspath(tmp_path))
        assert len(bed.agent.told) == 1, "once is enough"
        with server(tmp_path / "b", 0o640):
            await until(
                lambda: bed.agent.names() == ["a", "b"] and bed.agent.told[-1].sockets[1].mode == 0o640
            )
            assert {one.id: one.path for one in bed.shown.of("c")} == {
                "c-0/a": os.fspath(tmp_path / "a"),
                "c-0/b": os.fspath(tmp_path / "b"),
            }
            assert not bed.shown.of("another")
            (tmp_path / "b").rename(tmp_path / "d")
            await until(lambda: bed.agent.names() == ["a", "d"])
        (tmp_path / "d").unlink()
        (tmp_path / "link").symlink_to("a")
        await until(lambda: bed.agent.names() == ["a"])
        made = bed.agent.told[-1].sockets[0].made
    # One that is made anew under its name is another.
    (tmp_path / "a").unlink()
    with server(tmp_path / "a"):
        await until(lambda: [one.made for one in bed.agent.told[-1].sockets] not in ([], [made]))
        assert bed.agent.names() == ["a"]
        # A guest that does not answer is told later.
        bed.agent.deaf = True
        (tmp_path / "a").chmod(0o666)
        await until(lambda: bed.shown.of("c") == ())
        bed.agent.deaf = False
        await until(lambda: [one.mode for one in bed.agent.told[-1].sockets] == [0o666])
    shutil.rmtree(tmp_path)
    await until(lambda: bed.agent.names() == [])
    await bed.shown.forget("c")


async def test_a_later_daemon_tells_it_all(bed: Bed, tmp_path: Path) -> None:
    bed.shown.adopt("c", "c-0", os.fspath(tmp_path))
    await until(lambda: len(bed.agent.told) == 1)
    assert bed.agent.told[0] == Show(id="c", share="c-0"), "the guest may have what has gone meanwhile"
    with server(tmp_path / "a"):
        await until(lambda: bed.agent.names() == ["a"])
    await bed.shown.forget("c")
    assert not bed.shown.of("c")


async def test_in_a_directory_of_containers_sockets_are_those_that_are_served(
    bed: Bed, tmp_path: Path
) -> None:
    bed.own.add(os.fspath(tmp_path / "own"))
    left = socket.socket(socket.AF_UNIX)
    left.bind(os.fspath(tmp_path / "left"))
    with server(tmp_path / "own"), server(tmp_path / "a"):
        await bed.shown.follow("sockets-1", "", os.fspath(tmp_path))
        assert bed.agent.names() == ["a"]
        # A server that takes its time to listen.
        left.listen()
        await until(lambda: bed.agent.names() == ["a", "left"])
        assert [one.id for one in bed.shown.of("sockets-1")] == ["a", "left"]
    left.close()


async def test_who_has_the_hosts_directory_reaches_the_pods_own_sockets(bed: Bed, tmp_path: Path) -> None:
    bed.own.add(os.fspath(tmp_path / "own"))
    with server(tmp_path / "own"):
        await bed.shown.follow("c", "c-0", os.fspath(tmp_path))
        assert bed.agent.names() == ["own"]


async def test_what_nobody_on_the_host_has_bound_is_left_to_the_containers(bed: Bed, tmp_path: Path) -> None:
    """It is a file: a container has made it, or a server has left it."""
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as log:
        stale.bind(os.fspath(tmp_path / "stale"))
        log.bind(os.fspath(tmp_path / "log"))
        # Who has not begun to listen has it all the same, and nobody hears of the question.
        log.settimeout(0)
        with server(tmp_path / "served") as listening, socket.socket(socket.AF_UNIX) as bound:
            bound.bind(os.fspath(tmp_path / "bound"))
            stale.close()
            listening.settimeout(0)
            await bed.shown.follow("c", "c-0", os.fspath(tmp_path))
            assert bed.agent.names() == ["bound", "log", "served"]
            for one in (listening.accept, partial(log.recv, 1)):
                with pytest.raises(BlockingIOError):
                    one()
    # A link in its place is not followed.
    (tmp_path / "inner").mkdir()
    with server(tmp_path / "inner" / "other"):
        (tmp_path / "served").unlink()
        (tmp_path / "served").symlink_to(tmp_path / "inner" / "other")
        await until(lambda: bed.agent.names() == [])


async def test_of_a_pod_so_many_and_of_a_busy_directory_so_often(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shown, "MAX_SHOWN", 3)
    monkeypatch.setattr(shown, "_MOST_DIRECTORIES", 2)
    looks: list[str] = []
    look = sockets.sockets_below

    def counted(directory: str) -> tuple[list[str], list[str]]:
        looks.append(directory)
        return look(directory)

    monkeypatch.setattr(shown, "sockets_below", counted)
    links = []
    for name in "xyz":
        (tmp_path / name).mkdir()
        links += [server(tmp_path / name / one) for one in "ab"]
        await bed.shown.follow("c", name, os.fspath(tmp_path / name))
    assert [len(one.sockets) for one in bed.agent.told] == [2, 1]
    looks.clear()
    for number in range(2000):
        (tmp_path / "x" / f"{number}").touch()
        if number % 100 == 0:
            await asyncio.sleep(0.001)
    await until(lambda: len(looks) > 0)
    assert len(looks) < 200
    for link in links:
        link.close()
