"""Connections to sockets of the host: how many a guest takes, and what becomes of those that wait."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from orlop.guest import paths
from orlop.guest.loop import Loop
from orlop.guest.streams import calls
from orlop.guest.streams.calls import HostSockets
from orlop.guest.streams.table import Streaming
from orlop.wire.messages import Accept, Called, Event, Refused, Show
from orlop.wire.values import GuestMount, ShownSocket


class Guest:
    def __init__(self) -> None:
        self.errors: list[str] = []
        self.told: list[Called] = []
        self.loop = Loop(self.errors.append)
        self.streaming = Streaming(self.loop, lambda data: None)
        self.streaming.flowing = True
        self.sockets = HostSockets(self.streaming, self.tell)

    def tell(self, event: Event) -> None:
        assert isinstance(event, Called)
        self.told.append(event)

    def serve(self) -> None:
        for _ in range(10):
            self.loop.run_once(0)
        assert not self.errors


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Guest:
    monkeypatch.setattr(paths, "SOCKETS", os.fspath(tmp_path / "s"))
    monkeypatch.setattr(calls, "MOST", 3)
    return Guest()


def listen(guest: Guest, owner: str) -> str:
    mount = GuestMount(target="/x", kind="socket", volume="7", mode=0o640)
    path = f"{paths.SOCKETS}/{guest.sockets.listen(owner, mount)}"
    assert Path(path).stat().st_mode & 0o777 == 0o640
    return path


def dial(path: str) -> socket.socket:
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    link.settimeout(5)
    link.connect(path)
    return link


def test_so_many_are_taken_and_others_wait(guest: Guest) -> None:
    path = listen(guest, "c")
    links = [dial(path) for _ in range(5)]
    guest.serve()
    assert [(one.id, one.socket, one.uid) for one in guest.told] == [("c", "7", os.getuid())] * 3
    first, second, third = (one.call for one in guest.told)
    guest.sockets.accept(Accept(call=first))
    assert links[0].recv(1) == b"", "the host has hung up"
    guest.serve()
    assert len(guest.told) == 4, "there is room for one"
    guest.sockets.accept(Accept(call=second, stream=9))
    guest.serve()
    assert len(guest.told) == 4, "who is joined counts"
    links[1].close()
    guest.streaming.table[9].drain()
    guest.serve()
    assert len(guest.told) == 5 and not guest.streaming.table
    with pytest.raises(Refused, match="nobody waits"):
        guest.sockets.accept(Accept(call=first, stream=10))
    guest.sockets.release("another")
    guest.sockets.release("c")
    assert links[2].recv(1) == b"" and not Path(path).exists()
    with pytest.raises(Refused, match="nobody waits"):
        guest.sockets.accept(Accept(call=third))


def test_a_later_daemon_hears_of_those_who_wait(guest: Guest) -> None:
    path = listen(guest, "c")
    early = dial(path)
    guest.serve()
    guest.streaming.pause()
    guest.sockets.pause()
    late = dial(path)
    guest.serve()
    assert len(guest.told) == 1, "nobody is there to be told"
    guest.streaming.flowing = True
    guest.sockets.resume()
    guest.serve()
    assert [one.call for one in guest.told] == [1, 1, 2]
    guest.sockets.release("c")
    assert early.recv(1) == late.recv(1) == b""


def shown(name: str, made: int = 1, mode: int = 0o600) -> ShownSocket:
    return ShownSocket(name=name, mode=mode, uid=os.getuid(), gid=os.getgid(), made=made)


def number(path: Path) -> int:
    return path.lstat().st_ino


def test_sockets_in_a_volume_come_and_go_with_the_hosts(guest: Guest, tmp_path: Path) -> None:
    place = tmp_path / "v"
    place.mkdir()

    def show(*sockets: ShownSocket) -> None:
        guest.sockets.show(Show(id="v", sockets=sockets), os.fspath(place))

    show(shown("a"), shown("b", mode=0o640))
    assert stat.S_IMODE((place / "b").stat().st_mode) == 0o640
    link = dial(os.fspath(place / "a"))
    guest.serve()
    assert [(one.id, one.socket) for one in guest.told] == [("v", "a")]
    assert guest.sockets.has((place / "a").stat()) and not guest.sockets.has(place.stat())
    # The same ones stay, with another mode too; one that was made anew is another file.
    held = os.open(place / "b", os.O_PATH)  # its number is given to no other file
    before = number(place / "a")
    show(shown("a", mode=0o666), shown("b", made=2))
    assert number(place / "a") == before and stat.S_IMODE((place / "a").stat().st_mode) == 0o666
    assert number(place / "b") != os.fstat(held).st_ino
    os.close(held)
    # What a container puts in a socket's place is its own, and stays.
    (place / "a").unlink()
    (place / "a").touch()
    show(shown("b", made=2), shown("a", mode=0o600))
    assert stat.S_IMODE((place / "a").stat().st_mode) != 0o600
    show(shown("a", made=2))
    assert [one.name for one in place.iterdir()] == ["a"] and (place / "a").is_file()
    (place / "a").unlink()
    show(shown("a", made=2))
    show(shown("a", made=2))
    assert guest.sockets.has((place / "a").stat())
    # Who waits is served all the same.
    guest.sockets.accept(Accept(call=guest.told[0].call))
    assert link.recv(1) == b""
    show()
    assert not list(place.iterdir())
    guest.serve()
