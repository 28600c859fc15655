"""Which volumes of a container are for sockets."""

from __future__ import annotations

import pytest

from orlop.errors import InvalidArgument
from orlop.pods.socketplaces import ANNOTATION, MOST, marked
from orlop.sandbox.spec import Mount


def marks(text: str, *places: str) -> list[bool]:
    mounts = tuple(Mount(container_path=place, host_path="/srv/run") for place in places)
    return [mount.sockets for mount in marked(mounts, {ANNOTATION: text})]


def test_volumes_at_the_paths_that_are_named_are_marked() -> None:
    assert marks("/run/app, /var/run/agent", "/run/app", "/run", "/var/run/agent") == [True, False, True]
    assert marks("", "/run/app") == [False]


@pytest.mark.parametrize("written", ["/run/app/", "//run/app", "/run//app", "/run/./app", "/run/x/../app"])
def test_a_path_may_be_written_in_any_way(written: str) -> None:
    assert marks(written, "/run/app") == [True]
    assert marks("/run/app", written) == [True]


@pytest.mark.parametrize("text", ["run/app", "/run/app,app", ",".join(["/run"] * (MOST + 1))])
def test_what_names_no_paths_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="annotation"):
        marks(text, "/run/app")
