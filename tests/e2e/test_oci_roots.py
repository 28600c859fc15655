"""A root that the VM shares with the host: what is in it is what runs, whoever has changed it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from orlop.host import mounts
from tests.e2e.test_oci_bundles import Runtime
from tests.node import Node

STAYS = ("sleep", "600")


@pytest.fixture
def runtime(shared_node: Node, tmp_path: Path) -> Runtime:
    return Runtime(shared_node, tmp_path)


def program(says: str) -> str:
    """A program of the shell's that says one word."""
    return f"#!/bin/sh\necho {says}\n"


@contextlib.contextmanager
def overlay(place: Path) -> Iterator[Path]:
    """An overlay over the root directory in ``place``; its upper directory."""
    for name in ("layer/diff", "layer/work", "merged"):
        (place / name).mkdir(parents=True)
    options = f"lowerdir={place}/rootfs,upperdir={place}/layer/diff,workdir={place}/layer/work"
    mounts.mount("overlay", place / "merged", "overlay", options=options)
    try:
        yield place / "layer/diff"
    finally:
        mounts.unmount(place / "merged")


@pytest.fixture
def layered(runtime: Runtime) -> Iterator[Path]:
    """A container ``layered`` on an overlay, which it alone writes to; the overlay's upper directory."""
    with overlay(runtime.place) as upper:
        volume = runtime.place / "volume"
        volume.mkdir()
        _put(volume / "tool", "first")
        bind = {"destination": "/v", "type": "bind", "source": os.fspath(volume), "options": ["rbind"]}
        root = {"path": os.fspath(runtime.place / "merged")}
        bundle = runtime.bundle("layered", *STAYS, root=root, mounts=[bind])
        runtime("create", "-b", bundle, "layered")
        runtime("start", "layered")
        yield upper
        runtime("delete", "--force", "layered")


def _put(path: Path, says: str) -> None:
    aside = path.with_name("aside")
    aside.write_text(program(says))
    aside.chmod(0o755)
    aside.rename(path)


def test_what_the_container_changes_is_what_runs_next(runtime: Runtime, layered: Path) -> None:
    def run(script: str) -> None:
        runtime("exec", "layered", "sh", "-ec", script)

    def says(code: int = 0) -> str:
        return runtime("exec", "layered", "tool", code=code).out.strip()

    make = "printf '#!/bin/sh\\necho {0}\\n' > {1}; chmod +x {1}"
    run(make.format("one", "/bin/tool"))
    assert (says(), says()) == ("one", "one")
    run(make.format("two", "/bin/other") + "; mv /bin/other /bin/tool")
    assert (says(), says()) == ("two", "two")
    run(make.format("three", "/bin/tool"))
    assert says() == "three", "written in place"
    run("mkdir /opt; mv /bin/tool /opt/real; ln -s /opt/real /bin/tool")
    assert (says(), says()) == ("three", "three")
    run(make.format("four", "/opt/next") + "; ln -sf next /opt/link; ln -sf /opt/link /bin/tool")
    assert (says(), says()) == ("four", "four")
    run("mv /opt /srv; mkdir /opt; cp /srv/real /opt/link")
    assert says() == "three", "of another directory that has the name now"
    run("rm /bin/tool")
    assert says(code=255) == ""
    run("ln /srv/next /bin/tool")
    assert says() == "four"
    run("cat /srv/real > /srv/next")
    assert says() == "three", "written by another of its names"
    run("sed s/web:x:1000/web:x:4711/ /etc/passwd > /etc/aside; mv /etc/aside /etc/passwd")
    assert runtime("exec", "--user", "4711", "layered", "id", "-un").out == "web\n"
    assert (layered / "srv/next").read_text() == program("three")


def test_what_a_container_writes_is_on_the_host_at_once(runtime: Runtime, layered: Path) -> None:
    runtime("exec", "layered", "sh", "-c", "echo written > /made")
    assert (layered / "made").read_text() == "written\n"


def test_the_hosts_volumes_in_it_are_the_hosts(runtime: Runtime, layered: Path) -> None:
    tool = runtime.place / "volume" / "tool"
    for word in ("first", "second", "third"):
        _put(tool, word)
        assert runtime("exec", "layered", "/v/tool").out == f"{word}\n"


def test_a_directory_that_is_no_overlay_is_the_hosts_as_well(runtime: Runtime) -> None:
    tool = runtime.place / "rootfs" / "bin" / "tool"
    runtime("create", "-b", runtime.bundle("plain", *STAYS), "plain")
    runtime("start", "plain")
    for word in ("first", "second", "third"):
        _put(tool, word)
        assert runtime("exec", "plain", "tool").out == f"{word}\n"
    runtime("delete", "--force", "plain")
