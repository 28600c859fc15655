"""Which sockets of the host a container has, and what a guest may make of them."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.host import unixsockets
from orlop.sandbox.spec import Mount
from orlop.sandbox.vm import sockets
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import HostSocket
from orlop.sandbox.vm.sockets import Relay, find, find_once
from orlop.wire.messages import Accept, Called


def bound(path: Path) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.bind(os.fspath(path))
    return link


def test_sockets_of_volumes(tmp_path: Path) -> None:
    below = tmp_path / "dir"
    below.mkdir()
    links = [bound(tmp_path / "a"), bound(below / "b"), bound(below / "c")]
    (below / "file").touch()
    (below / "link").symlink_to("b")
    (tmp_path / "to-a").symlink_to("a")
    mounts = [
        Mount(container_path=target, host_path=os.fspath(tmp_path / path))
        for target, path in (("/run/a", "to-a"), ("/d/", "dir"), ("/d/c", "dir/file"), ("/none", "absent"))
    ]
    assert [(one.target, one.held.path) for one in find(mounts)] == [("/run/a", os.fspath(tmp_path / "a"))]
    found = find_once(mounts, {mount.container_path for mount in mounts})
    assert [(one.target, one.held.path) for one in found] == [
        ("/run/a", os.fspath(tmp_path / "a")),
        ("/d/b", os.fspath(below / "b")),
    ]
    assert len({one.held.id for one in found}) == 2
    for link in links:
        link.close()


def test_sockets_below_the_top_of_a_drivers_volume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver lays its volume out as it likes; nothing but memory is looked through for that."""
    volume = tmp_path / "pods/uid/volumes/kubernetes.io~csi/agent/mount"
    for name in ("agent", "own", "remote", "a/b/c", "a/b/c/d"):
        (volume / name).mkdir(parents=True)
        os.mknod(volume / name / "s", stat.S_IFSOCK | 0o600)
    monkeypatch.setattr(sockets, "kind_of", lambda path: "tmpfs")
    remote = {os.fspath(volume / "remote"): "nfs4"}
    monkeypatch.setattr(sockets, "kinds_below", lambda path: remote)

    def targets(path: Path) -> list[str]:
        found = find_once([Mount(container_path="/v/", host_path=os.fspath(path))], {"/v/", "/v/own", "/"})
        assert len({one.held.id for one in found}) == len(found)
        assert all(one.held.path == os.fspath(path / one.target.removeprefix("/v/")) for one in found)
        return [one.target for one in found]

    assert targets(volume) == ["/v/agent/s", "/v/a/b/c/s"]
    assert targets(volume / "agent") == ["/v/s"]
    # A directory of the host of any other kind is looked at no deeper than ever.
    assert targets(volume.parent) == []
    monkeypatch.setattr(sockets, "kind_of", lambda path: "ext4")
    assert targets(volume) == []


def test_a_socket_that_goes_meanwhile_takes_no_other_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = sockets.sockets_below

    def one_goes(directory: str) -> tuple[list[str], list[str]]:
        names, below = looked_at(directory)
        (tmp_path / names[0]).unlink()
        return names, below

    monkeypatch.setattr(sockets, "sockets_below", one_goes)
    links = [bound(tmp_path / name) for name in "ab"]
    found = find_once([Mount(container_path="/d", host_path=os.fspath(tmp_path))], {"/d"})
    assert [one.target for one in found] == ["/d/b"]
    for link in links:
        link.close()


class Agent:
    """Takes requests."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Any] = asyncio.Queue()

    async def call(self, request: Any) -> None:
        self.asked.put_nowait(request)


async def test_a_guest_gets_no_more_than_was_given_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to("file")
    agent = Agent()
    relay = Relay(cast(AgentClient, agent), "p")
    held = [HostSocket(id=name, path=os.fspath(tmp_path / name)) for name in ("file", "link", "absent")]
    for number, name in enumerate(("file", "link", "absent", "unknown")):
        relay.called(Called(id="c", socket=name, call=number, uid=0, gid=0), held)
    asked = [await agent.asked.get() for _ in range(4)]
    assert sorted(asked, key=lambda one: one.call) == [Accept(call=number) for number in range(4)]

    async def never(path: str, **ids: Any) -> socket.socket:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(unixsockets, "connect", never)
    monkeypatch.setattr(sockets, "_MOST", 3)
    monkeypatch.setattr(sockets, "_MOST_WAITING", 2)
    for number in range(9):
        relay.called(Called(id="c", socket="file", call=number, uid=0, gid=0), held)
    assert len(relay._tasks) == 5, "what no honest guest says is not heard"
    await relay.close()


async def test_a_connection_that_is_over_for_the_guest_alone_keeps_no_other_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    over = asyncio.Event()

    async def lingering(path: str, **ids: Any) -> socket.socket:
        await over.wait()
        raise ConnectionRefusedError

    monkeypatch.setattr(unixsockets, "connect", lingering)
    monkeypatch.setattr(sockets, "_MOST", 1)
    agent = Agent()
    relay = Relay(cast(AgentClient, agent), "p")
    for number in range(2):
        relay.called(Called(id="c", socket="s", call=number, uid=0, gid=0), [HostSocket(id="s", path="/s")])
    over.set()
    async with asyncio.timeout(60):
        assert [await agent.asked.get() for _ in range(2)] == [Accept(call=0), Accept(call=1)]
    await relay.close()
