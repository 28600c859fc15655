"""Which sockets of a guest's containers the host has, and what it takes away."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.errors import FailedPrecondition
from orlop.sandbox.vm import listeners
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import HostListener, PodFile, PodFiles
from orlop.sandbox.vm.listeners import Listeners, is_served
from orlop.wire.messages import Dial, Listening
from orlop.wire.values import BoundSocket
from tests.patience import PATIENCE, until


class End:
    """A stream that nothing runs through."""

    gone = False

    async def read(self) -> bytes:
        return b""

    def close(self) -> None:
        return None

    def end_consumed(self) -> None:
        return None

    def end(self) -> None:
        return None

    async def delivered(self) -> None:
        return None


class Agent:
    """Refuses to connect so many times."""

    closed = False

    def __init__(self) -> None:
        self.refuses = 0
        self.asked: list[Dial] = []

    async def call(self, request: Any, timeout: float = 0) -> None:
        self.asked.append(request)
        if len(self.asked) <= self.refuses:
            raise FailedPrecondition("nobody listens")

    def new_stream(self) -> int:
        return 7

    def incoming(self, stream: int) -> End:
        return End()

    outgoing = incoming


@pytest.fixture
def files(tmp_path: Path) -> PodFiles:
    found = PodFiles(tmp_path / "state", "pod")
    found.write(PodFile(pod_id="pod"))
    return found


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "plugins"
    path.mkdir()
    return path


def listening(*names: str, mode: int = 0o600, volume: str = "sockets-1") -> Listening:
    owner = {"uid": os.getuid(), "gid": os.getgid()}
    return Listening(id=volume, sockets=tuple(BoundSocket(name=one, mode=mode, **owner) for one in names))


def of(agent: Agent, files: PodFiles, place: Path) -> Listeners:
    return Listeners(
        cast(AgentClient, agent), files, lambda volume: os.fspath(place) if volume == "sockets-1" else ""
    )


def mode_of(path: Path) -> int:
    """A file's mode; it may just be made anew."""
    try:
        return stat.S_IMODE(path.lstat().st_mode)
    except FileNotFoundError:
        return 0


async def test_the_host_has_what_the_containers_have(files: PodFiles, place: Path) -> None:
    agent = Agent()
    one = of(agent, files, place)
    one.changed(listening("a", "b"))
    await until(lambda: one.paths() == {f"{place}/a", f"{place}/b"})
    assert {known.name for known in files.listeners()} == {"a", "b"}
    # Another mode is another socket; and what the guest does not have any more goes.
    one.changed(listening("a", mode=0o666))
    await until(lambda: one.paths() == {f"{place}/a"} and mode_of(place / "a") == 0o666)
    await until(lambda: not (place / "b").exists())
    # Who connects a moment before the server listens waits for it.
    agent.refuses = 2
    reader, writer = await asyncio.open_unix_connection(place / "a")
    writer.write_eof()
    assert await reader.read() == b""
    assert agent.asked == [Dial(id="sockets-1", name="a", stream=7)] * 3
    writer.close()
    await one.release()
    assert list(place.iterdir()) == [] and files.listeners() == ()
    one.changed(listening("late"))
    assert not one.paths(), "nothing is made after the end"


async def test_a_guest_names_nothing_but_a_socket_in_its_directory(files: PodFiles, place: Path) -> None:
    one = of(Agent(), files, place)
    (place / "file").write_text("kept")
    (place / "link").symlink_to("elsewhere")
    wrong = ("../out", "..", ".", "a/b", "new\nline", "n" * 101, "file", "link")
    one.changed(listening(*wrong, "right"))
    one.changed(listening("theirs", volume="sockets-2"))
    await until(lambda: one.paths() == {f"{place}/right"})
    assert sorted(path.name for path in place.iterdir()) == ["file", "link", "right"]
    assert (place / "file").read_text() == "kept"
    # Nor does it get more of them than there may be.
    for number in range(listeners._MOST_VOLUMES + 9):
        one.changed(listening("x", volume=f"sockets-{number}"))
    assert len(one._said) == listeners._MOST_VOLUMES
    await one.release()
    assert sorted(path.name for path in place.iterdir()) == ["file", "link"]


async def test_a_later_daemon_goes_on_with_it(files: PodFiles, place: Path) -> None:
    first = of(Agent(), files, place)
    first.changed(listening("kept", "gone"))
    await until(lambda: len(first.paths()) == 2)
    await first.close()
    assert not is_served(f"{place}/kept") and (place / "kept").exists()
    later = of(Agent(), files, place)
    # The guest may say it before the daemon knows what the pod has.
    later.changed(listening("kept"))
    later.adopt()
    await until(lambda: is_served(f"{place}/kept") and not (place / "gone").exists())
    # Somebody else takes the name; it is not ours to remove.
    (place / "kept").unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{place}/kept")
        other.listen()
        await later.release()
        assert (place / "kept").exists()


@pytest.mark.parametrize("served", [False, True])
def test_what_a_killed_daemon_was_making_is_found(files: PodFiles, place: Path, served: bool) -> None:
    files.write_listeners([HostListener(directory=os.fspath(place), name="a")])
    with socket.socket(socket.AF_UNIX) as link:
        link.bind(f"{place}/a")
        if served:
            link.listen()
        listeners.remove(files)
        assert (place / "a").exists() is served, "who listens there is somebody else"
    assert files.listeners() == ()
    listeners.remove(files)


async def test_a_descriptor_that_was_closed_is_somebody_elses(files: PodFiles, place: Path) -> None:
    one = of(Agent(), files, place)
    one.changed(listening("a"))
    await until(lambda: one.paths() == {f"{place}/a"})
    loop, heard = asyncio.get_running_loop(), asyncio.Event()
    near, far = socket.socketpair()

    class Reused:
        """A socket whose number goes to another one as soon as it is closed."""

        def __init__(self, link: socket.socket) -> None:
            self.number = link.fileno()
            self._link = link

        def close(self) -> None:
            self._link.close()
            os.dup2(near.fileno(), self.number)
            loop.add_reader(self.number, heard.set)

    made = one._made["sockets-1", "a"]
    made.link = reused = Reused(made.link)  # type: ignore[assignment]
    one.changed(listening())
    await until(lambda: not one.paths())
    far.send(b"x")
    async with asyncio.timeout(20 * PATIENCE):
        await heard.wait()
    loop.remove_reader(reused.number)
    os.close(reused.number)
    near.close()
    far.close()
    await one.release()


async def test_sockets_that_nobody_connects_to_keep_no_other_from_being_served(
    files: PodFiles, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "_MOST", 1)
    agent = Agent()
    one = of(agent, files, place)
    one.changed(listening("a", "b", "c"))
    await until(lambda: len(one.paths()) == 3)
    for name in "cba":
        reader, writer = await asyncio.open_unix_connection(place / name)
        writer.write_eof()
        async with asyncio.timeout(20 * PATIENCE):
            assert await reader.read() == b""
        writer.close()
    assert [request.name for request in agent.asked] == ["c", "b", "a"]
    await one.release()
