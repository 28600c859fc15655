"""Names that are held while a container's root is looked into: once each, and no further than it leads."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from orlop.guest.launch import pins
from orlop.guest.launch.pins import KeptNames, Pins
from orlop.guest.launch.program import _held


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    for name in ("usr/bin", "etc/real"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "usr/bin/sh").touch()
    (tmp_path / "etc/real/hosts").touch()
    for link, target in (
        ("bin", "usr/bin"),
        ("etc/hosts", "/etc/real/hosts"),
        ("etc/up", "../../../usr"),
        ("etc/one", "two"),
        ("etc/two", "one"),
        ("etc/self", "self/self"),
        ("etc/nowhere", "/none/there"),
    ):
        (tmp_path / link).symlink_to(target)
    descriptor = os.open(tmp_path, os.O_PATH)
    gc.collect()  # what other tests have dropped is not to be closed while descriptors are counted
    yield descriptor
    os.close(descriptor)


def held() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_each_name_is_held_once_and_links_lead_on(root: int) -> None:
    before = held()
    one = Pins(root)
    assert one.hold("/usr/bin/sh") == "/usr/bin/sh" and held() == before + 3
    assert one.hold("/usr/./bin//sh") == "/usr/bin/sh" and held() == before + 3
    assert one.hold("/bin/sh") == "/usr/bin/sh" and held() == before + 4
    assert one.hold("etc/hosts") == "/etc/real/hosts" and held() == before + 8
    assert one.hold("/usr/bin/missing/more") is None and held() == before + 8
    one.close()
    one.close()
    assert held() == before


@pytest.mark.parametrize("path", ["/etc/one", "/etc/self", "/etc/up/bin", "/../etc", "/etc/../usr"])
def test_what_leads_round_or_up_is_left_to_the_kernel(root: int, path: str) -> None:
    before = held()
    one = Pins(root)
    assert one.hold(path) == ""
    one.close()
    assert held() == before


def test_an_image_cannot_have_all_descriptors(root: int, tmp_path: Path) -> None:
    deep = "/".join(["d"] * (pins.MOST + 10))
    (tmp_path / deep).mkdir(parents=True)
    before = held()
    one = Pins(root)
    assert one.hold(deep) == "" and held() == before + pins.MOST
    one.close()
    assert held() == before


def test_directories_that_lack_the_program_are_not_searched_again(root: int) -> None:
    one = Pins(root)
    path = b"/usr/local/bin:/etc:/usr/bin:/sbin"
    assert _held(one, "sh", path, "/") == b"/usr/bin:/sbin"
    assert _held(one, "none", path, "/") == path, "the search tells that there is none"
    assert _held(one, "sh", b"/none::/usr/bin", "/") == b":/usr/bin", "the working directory is not known"
    assert _held(one, "bin/sh", path, "/usr") == path
    one.close()


def test_a_keeper_holds_what_was_looked_up_until_it_is_closed(root: int) -> None:
    before, keeper = held(), KeptNames()
    for _ in range(3):
        one = Pins(root, keeper)
        assert one.hold("/bin/sh") == "/usr/bin/sh"
        one.close()
        assert held() == before + 4, "each name once"
    late = Pins(root, keeper)
    assert late.hold("/etc/hosts") == "/etc/real/hosts"
    keeper.close()
    keeper.close()
    late.close()
    assert held() == before


def test_a_keeper_holds_what_a_name_is_now_and_no_more_than_it_may(root: int, tmp_path: Path) -> None:
    keeper = KeptNames()
    one = Pins(root, keeper)
    one.hold("/usr/bin/sh")
    one.close()
    (tmp_path / "aside").touch()
    (tmp_path / "aside").rename(tmp_path / "usr/bin/sh")
    before = held()
    one = Pins(root, keeper)
    one.hold("/usr/bin/sh")
    one.close()
    assert held() == before
    assert os.fspath(tmp_path / "usr/bin/sh") in _places(), "not the one that is deleted"
    for number in range(pins.KEPT + 10):
        (tmp_path / f"n{number}").touch()
        one = Pins(root, keeper)
        one.hold(f"/n{number}")
        one.close()
    assert held() == before - 3 + pins.KEPT
    keeper.close()


def _places() -> list[str]:
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of the list itself
            found.append(os.fspath(entry.readlink()))
    return found


def test_a_program_with_two_names_is_not_kept(root: int, tmp_path: Path) -> None:
    before, keeper = held(), KeptNames()
    assert _run(root, keeper) == "/usr/bin/sh" and held() == before + 3
    (tmp_path / "usr/bin/too").hardlink_to(tmp_path / "usr/bin/sh")
    assert _run(root, keeper) == "/usr/bin/sh" and held() == before + 2, "from then on"
    keeper.close()
    assert held() == before


def _run(root: int, keeper: KeptNames) -> str | None:
    one = Pins(root, keeper)
    assert _held(one, "sh", b"/usr/local/bin:/usr/bin", "/") == b"/usr/bin"
    place = one.hold("/usr/bin/sh")
    one.close()
    return place


def test_what_is_missing_is_asked_for_once(root: int, tmp_path: Path) -> None:
    one = Pins(root)
    assert one.hold("/usr/local/bin") is None
    (tmp_path / "usr/local").mkdir()
    assert one.hold("/usr/local/bin") is None
    one.close()
    assert one.hold("/usr/local") == "/usr/local", "but not longer than it is held"
    one.close()
