"""How a guest's memory is divided, on files that stand for its control groups."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlop.guest.machine import memory, reserve
from orlop.guest.machine.cgroup import GuestCgroup
from orlop.guest.machine.reserve import MemoryDivision, Portion

MIB = 1 << 20
TOTAL = 468 * MIB
ROOM = reserve.for_containers(TOTAL)


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    found = {"pod": tmp_path / "pod", "open": tmp_path / "pod/open"}
    for name, path in found.items():
        path.mkdir()
        for file in ("memory.max", "memory.current", "cpu.weight"):
            (path / file).write_text("0")
        monkeypatch.setattr(reserve, name.upper(), GuestCgroup(str(path)))
    monkeypatch.setattr(memory, "total", lambda: TOTAL)
    return found


def limit(group: Path) -> int:
    return int((group / "memory.max").read_text())


def test_the_short_way_to_ask_for_the_memory_tells_the_same() -> None:
    assert memory.total() == memory.figures()[0]


def test_the_guest_keeps_a_reserve() -> None:
    assert 40 * MIB < TOTAL - ROOM < 80 * MIB
    assert reserve.for_containers(100 * MIB) == 75 * MIB
    # Of plugged memory a part goes to its page descriptors.
    assert reserve.for_containers(TOTAL + 6400 * MIB) < ROOM + 6400 * MIB - 90 * MIB


def test_containers_without_a_limit_share_what_the_others_leave(groups: dict[str, Path]) -> None:
    division = MemoryDivision()
    division.apply(())
    assert limit(groups["pod"]) == limit(groups["open"]) == ROOM
    assert (groups["open"] / "cpu.weight").read_text() == "0"
    limited, first, second = Portion(200 * MIB, 50), Portion(0, 79), Portion(-1, 0)
    division.apply((limited, first, second))
    assert limit(groups["pod"]) == ROOM and limit(groups["open"]) == ROOM - 200 * MIB
    assert (groups["open"] / "cpu.weight").read_text() == "179"
    # A limit that came later is its own; the container stays where it is.
    second.limit = 10 * MIB
    division.apply((limited, first, second))
    assert limit(groups["open"]) == ROOM - 200 * MIB
    division.apply((first,))
    assert limit(groups["open"]) == ROOM
    division.apply((Portion(4096 * MIB, 0),))
    assert limit(groups["open"]) == 64 * MIB


def test_nobody_is_killed_by_a_limit_that_comes_down(groups: dict[str, Path]) -> None:
    division = MemoryDivision()
    (groups["open"] / "memory.current").write_text(str(300 * MIB))
    division.apply((Portion(200 * MIB, 0), Portion(0, 0)))
    assert limit(groups["open"]) == 300 * MIB
    (groups["open"] / "memory.current").write_text(str(100 * MIB))
    division.apply((Portion(200 * MIB, 0), Portion(0, 0)))
    assert limit(groups["open"]) == ROOM - 200 * MIB
