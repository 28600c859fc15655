"""What the agent answers, in a process of its own that has no containers."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from orlop.guest import agent as agents
from orlop.guest.agent import Agent
from orlop.guest.answer import Answer
from orlop.guest.loop import Loop
from orlop.guest.streams.table import Streaming
from orlop.wire import messages
from orlop.wire.framing import Frame, Kind, Parser, preamble
from orlop.wire.messages import Delete
from tests.patience import PATIENCE

NONCE = b"0123456789abcdef"


class Stuck:
    """A container with a process that does not die, until ``gone``."""

    def __init__(self) -> None:
        self.spec = SimpleNamespace(id="c")
        self.status = "running"
        self.process = SimpleNamespace(signal=lambda number: None, child=None, exit=None, on_started=None)
        self.cgroup = SimpleNamespace(pids=lambda: [77])
        self.watch = -1
        self.leaving: list[Any] = []
        self.stuck: list[str] = []
        self.gone: bool | Exception = False
        self.released = 0

    def release(self) -> bool:
        if isinstance(self.gone, Exception):
            raise self.gone
        self.released += self.gone
        return self.gone


@pytest.fixture
def events() -> list[messages.Event]:
    return []


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, events: list[messages.Event]) -> Iterator[Agent]:
    monkeypatch.setattr(agents, "DELETE_ATTEMPTS", 3)
    handler = signal.getsignal(signal.SIGCHLD)
    loop = Loop(pytest.fail)
    yield Agent(loop, Streaming(loop, lambda data: None), lambda event: not events.append(event))
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, handler)


def delete(agent: Agent, stuck: Stuck) -> list[dict[str, Any]]:
    agent.containers.setdefault("c", stuck)  # type: ignore[arg-type]
    said: list[dict[str, Any]] = []
    agent.delete(Delete(id="c"), Answer(lambda payload: said.append(json.loads(payload))))
    return said


def turn(agent: Agent) -> None:
    for _ in range(8):
        agent.loop.run_once(0.01)


def test_delete_says_when_a_container_is_not_gone(agent: Agent) -> None:
    stuck = Stuck()
    said = delete(agent, stuck)
    turn(agent)
    assert [answer["error"]["code"] for answer in said] == ["unavailable"]
    assert "77" in said[0]["error"]["message"] and "c" in agent.containers
    stuck.gone = True
    again = delete(agent, stuck)
    assert again == [{"ok": {}}]
    assert (stuck.released, agent.containers) == (1, {})


def test_two_deletes_at_once_release_once(agent: Agent) -> None:
    stuck = Stuck()
    first, second = delete(agent, stuck), delete(agent, stuck)
    assert not first and not second
    stuck.gone = True
    turn(agent)
    assert (first, second, stuck.released) == ([{"ok": {}}], [{"ok": {}}], 1)


def test_a_release_that_breaks_is_told_and_can_be_tried_again(agent: Agent) -> None:
    stuck = Stuck()
    stuck.gone = RuntimeError("broken")
    assert "broken" in delete(agent, stuck)[0]["error"]["message"]
    stuck.gone = True
    assert delete(agent, stuck) == [{"ok": {}}]


def test_a_disk_that_stays_mounted_is_told(agent: Agent, events: list[messages.Event]) -> None:
    stuck = Stuck()
    stuck.gone, stuck.stuck = True, ["/run/orlop/disks/1: device or resource busy"]
    assert delete(agent, stuck) == [{"ok": {}}]
    (event,) = events
    assert isinstance(event, messages.Log) and "c: could not unmount /run/orlop/disks/1" in event.text


def test_what_an_earlier_daemon_was_making_is_given_up(agent: Agent) -> None:
    stuck = Stuck()
    stuck.status, stuck.gone = "creating", True
    agent.containers["c"] = stuck  # type: ignore[assignment]
    said: list[dict[str, Any]] = []
    agent.dump(messages.Dump(), Answer(lambda payload: said.append(json.loads(payload))))
    assert "containers" not in said[0]["ok"] and agent.containers == {}


def test_a_second_start_is_refused_and_a_deleted_one_told(agent: Agent) -> None:
    stuck = Stuck()
    stuck.status = "created"
    stuck.process.go = lambda: None
    stuck.cgroup.pairs = lambda name: {}
    stuck.cgroup.path = "/nowhere"
    agent.containers["c"] = stuck  # type: ignore[assignment]
    said: list[dict[str, Any]] = []
    agent.start(messages.Start(id="c"), Answer(lambda payload: said.append(json.loads(payload))))
    with pytest.raises(messages.Refused, match="is starting, not created"):
        agent.start(messages.Start(id="c"), Answer(lambda payload: None))
    delete(agent, stuck)
    stuck.process.on_started(messages.Refused("internal", "killed"))
    assert "deleted meanwhile" in said[0]["error"]["message"]


def test_what_does_not_stand_still_goes_on(agent: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "FREEZE_ATTEMPTS", 3)
    stuck = Stuck()
    wrote: list[bool] = []
    stuck.frozen = False  # type: ignore[attr-defined]
    stuck.cgroup.frozen = False
    stuck.cgroup.freeze = lambda *, frozen: wrote.append(frozen)
    agent.containers["c"] = stuck  # type: ignore[assignment]
    said: list[dict[str, Any]] = []

    def answer() -> Answer:
        return Answer(lambda payload: said.append(json.loads(payload)))

    agent.freeze(messages.Freeze(id="c", frozen=True), answer())
    with pytest.raises(messages.Refused, match="is paused"):
        agent.exec(messages.Exec(id="e", container_id="c", args=("true",)), answer())
    turn(agent)
    assert [one["error"]["code"] for one in said] == ["unavailable"] and wrote == [True, False]
    # One that ended meanwhile is told.
    agent.freeze(messages.Freeze(id="c", frozen=True), answer())
    stuck.status = "stopped"
    turn(agent)
    assert "changed meanwhile" in said[1]["error"]["message"]


def changed(agent: Agent, entry: Any, sent: bytearray) -> tuple[list[dict[str, Any]], bytes]:
    """What the agent answers, and tells on the stream until that ends."""
    agent.containers["c"] = entry
    agent.streaming.send = sent.extend
    agent.streaming.flowing = True
    said: list[dict[str, Any]] = []
    answer = Answer(lambda payload: said.append(json.loads(payload)))
    agent.changes(messages.Changes(id="c", stream=7), answer)
    limit = time.monotonic() + 20 * PATIENCE
    frames: list[Frame] = []
    while not (said and frames and frames[-1].kind is Kind.EOF):
        assert time.monotonic() < limit, said
        agent.loop.run_once(0.05)
        frames = Parser(NONCE).feed(preamble(NONCE) + bytes(sent))
    told = b"".join(one.payload for one in frames if one.kind is Kind.DATA)
    return said, told


def test_changes_are_told_by_a_process_of_its_own(agent: Agent, tmp_path: Path) -> None:
    (tmp_path / "upper/etc").mkdir(parents=True)
    (tmp_path / "upper/etc/new").touch()
    (tmp_path / "layer/etc").mkdir(parents=True)
    entry = SimpleNamespace(
        spec=SimpleNamespace(id="c"), upper=f"{tmp_path}/upper", layers=(f"{tmp_path}/layer",)
    )
    said, told = changed(agent, entry, bytearray())
    assert said == [{"ok": {}}] and told == b"C/etc\0A/etc/new\0"
    entry.upper = f"{tmp_path}/none"
    agent.streaming.table.clear()
    said, told = changed(agent, entry, bytearray())
    assert said[0]["error"]["code"] == "failed_precondition" and "No such file" in said[0]["error"]["message"]
    assert told == b""
    entry.upper = ""
    with pytest.raises(messages.Refused, match="no image"):
        agent.changes(messages.Changes(id="c", stream=8), Answer(lambda payload: None))
    assert 8 not in agent.streaming.table
