"""``orlop top``, ``events``, ``debug`` and ``report`` against a real daemon."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

BUSY = "echo here; dd if=/dev/zero of=/big bs=64k count=64 2>/dev/null; sync; while true; do :; done"


def orlop(node: Node, *argv: str, cwd: Path | None = None) -> str:
    command = [sys.executable, "-m", "orlop.cli.main", *argv, "--socket", node.socket]
    done = subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, timeout=120 * PATIENCE, check=False
    )
    assert done.returncode == 0, done
    return done.stdout


@pytest.fixture(scope="module", params=["vm", "process"])
def pod(request: pytest.FixtureRequest, shared_node: Node) -> Any:
    pod_id, container = shared_node.run(BUSYBOX, "sh", "-c", BUSY, handler=request.param)
    shared_node.wait_log(container, "here")
    yield pod_id, container, request.param
    shared_node.remove_pod(pod_id)


def test_top_shows_what_a_busy_pod_uses(shared_node: Node, pod: tuple[str, str, str]) -> None:
    pod_id, _, handler = pod
    limit = time.monotonic() + 120 * PATIENCE
    while True:
        said = json.loads(orlop(shared_node, "top", "--once", "--interval", "1", "--format", "json"))
        (one,) = [one for one in said["pods"] if one["id"] == pod_id]
        # What is written reaches the disk when the guest's kernel sees fit.
        if one["cpus"] > 0.05 and one["private"] > 0:
            break
        assert time.monotonic() < limit, one
    assert one["handler"] == handler
    assert bool(one["shared"]) == (handler == "vm")
    assert {"orlop_vm_pool_ready", "orlop_vm_pool_bytes"} <= said["node"].keys()
    table = orlop(shared_node, "top", "--once", "--interval", "0.1")
    assert one["name"] in table and "ready VMs in the pool" in table


def test_events_tell_the_past_and_go_on(shared_node: Node, pod: tuple[str, str, str]) -> None:
    _, container, handler = pod
    past = [json.loads(line) for line in orlop(shared_node, "events", "--format", "json").splitlines()]
    own = [one["event"] for one in past if one["id"] == container]
    assert own == ["created", "started"]
    command = [sys.executable, "-m", "orlop.cli.main", "events", "-f", "--format", "json", "--socket"]
    with subprocess.Popen([*command, shared_node.socket], stdout=subprocess.PIPE, text=True) as following:
        try:
            assert following.stdout is not None
            following.stdout.readline()  # it has subscribed, and tells the past
            pod_id, short = shared_node.run(BUSYBOX, "sh", "-c", "exit 3", handler=handler)
            seen = []
            while True:
                one = json.loads(following.stdout.readline())
                if one["id"] == short:
                    seen.append(one)
                    if one["event"] == "stopped":
                        break
        finally:
            following.kill()
    assert [one["event"] for one in seen] == ["created", "started", "stopped"]
    assert seen[-1]["exit_code"] == 3
    shared_node.remove_pod(pod_id)


def test_debug_puts_all_into_one_archive(
    shared_node: Node, pod: tuple[str, str, str], tmp_path: Path
) -> None:
    pod_id, container, handler = pod
    said = json.loads(orlop(shared_node, "debug", pod_id[:13], "--format", "json", cwd=tmp_path))
    path = tmp_path / said["file"]
    assert path.stat().st_mode & 0o777 == 0o600
    with tarfile.open(path) as archive:
        files = {
            name.partition("/")[2]: archive.extractfile(name).read()  # type: ignore[union-attr]
            for name in archive.getnames()
        }
    assert files.keys() == said["members"].keys()
    assert json.loads(files["pod.json"])["status"]["id"] == pod_id
    assert json.loads(files["guest/stats.json"])["stats"]["attributes"]["id"] == pod_id
    (output,) = [data for name, data in files.items() if name.endswith(f"{container[:13]}/output.log")]
    assert b"here" in output
    assert b"CreateContainer" in files["start.html"]
    assert ("guest/console.log" in files) == (handler == "vm")
    # The daemon of these tests is no unit of systemd, and the archive says so.
    assert "daemon.log" in files or b"journalctl" in files["daemon.log.error"]


class Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for key, value in attrs if key in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_report_draws_the_start(shared_node: Node, pod: tuple[str, str, str], tmp_path: Path) -> None:
    pod_id, container, handler = pod
    target = tmp_path / "start.html"
    orlop(shared_node, "report", pod_id, "-o", os.fspath(target))
    text = target.read_text()
    page = Page()
    page.feed(text)
    assert not page.open and not page.links, "it is whole, and needs nothing else"
    said = json.loads(orlop(shared_node, "report", pod_id, "--format", "json"))
    calls = {call["steps"][0]["name"]: call for call in said["calls"]}
    assert calls["cri.CreateContainer"]["container"] == container
    for call in said["calls"]:
        first = call["steps"][0]
        for step in call["steps"]:
            assert step["start_us"] >= 0 and not step["failed"]
            assert step["start_us"] + step["duration_us"] <= first["duration_us"] + 1000
            assert step["name"].removeprefix("cri.") in text
    steps = {step["name"] for call in said["calls"] for step in call["steps"]}
    assert {"cri.RunPodSandbox", "sandbox.run", "sandbox.create", "sandbox.start"} <= steps
    assert ("vm.setup" in steps) == (handler == "vm")
