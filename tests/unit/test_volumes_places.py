"""The paths at which containers of our own clients find named volumes."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlop.volumes.places import place_at, place_of

SOCKET = Path("/run/orlop/orlop.sock")


def test_a_volume_is_known_by_its_path() -> None:
    place = place_of(SOCKET, "data")
    assert place.mount == "/run/orlop/volumes/data/mount"
    assert place_at(SOCKET, place.mount) == place


@pytest.mark.parametrize(
    "path",
    [
        "",
        "mount",
        "/run/orlop/volumes/data",
        "/run/orlop/volumes/data/staged",
        "/run/orlop/volumes/mount",
        "/run/orlop/volumes/../mount",
        "/run/orlop/volumes/data/../data/mount",
        "/elsewhere/volumes/data/mount",
    ],
)
def test_no_other_path_is_that_of_a_volume(path: str) -> None:
    assert place_at(SOCKET, path) is None
