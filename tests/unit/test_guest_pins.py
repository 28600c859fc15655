"""Names that are held while a container's root is looked into: once each, and no further than it leads."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.guest.launch import pins
from orlop.guest.launch.pins import Pins
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
