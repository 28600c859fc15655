"""A node that lasts: many pods, images that come and go, logs that are rotated, a disk that is full.

``make lasting`` runs it and leaves its figures in ``build/lasting.md``; docs/operations.md has such a table.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from orlop.client import logs
from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from tests.node import BUSYBOX, NGINX, Node, node
from tests.patience import PATIENCE

PODS = int(os.environ.get("ORLOP_LASTING_PODS", "110"))
"""As many as a kubelet runs by default."""

VMS = int(os.environ.get("ORLOP_LASTING_VMS", "40"))
RESERVE = 3 << 30
"""Bytes of memory that the machine keeps for others."""

FIGURES = Path("build/lasting.md")
MIB = 1 << 20

pytestmark = pytest.mark.timeout(3600)


@pytest.fixture(scope="module", autouse=True)
def figures() -> Iterator[Callable[[str, str], None]]:
    rows: list[str] = []
    yield lambda what, value: rows.append(f"| {what} | {value} |")
    FIGURES.parent.mkdir(exist_ok=True)
    FIGURES.write_text("\n".join(["| what | figure |", "|---|---|", *rows]) + "\n")
    print(f"\n{FIGURES.read_text()}")


def took(work: Callable[[], Any]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def available() -> int:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def resident(pid: int) -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert found is not None
    return int(found[1]) * 1024


def all_run(one: Node, containers: list[str]) -> None:
    listed = one.json("ps", "-s", "running")["containers"]
    assert {item["id"] for item in listed} == set(containers)


def found_again(one: Node, containers: list[str]) -> float:
    """Kill the daemon and start it; seconds until every container is known to run."""
    one.kill()
    seconds = took(one.start)
    seconds += took(lambda: all_run(one, containers))
    return seconds


def test_as_many_pods_as_a_kubelet_runs(registry: str, figures: Callable[[str, str], None]) -> None:
    with node(registry, handler="process", extra={"vm": {"pool": {"size": 0}}}) as one:
        one.pull(BUSYBOX)
        containers: list[str] = []

        def start(_: int) -> None:
            containers.append(one.run(BUSYBOX, "sleep", "100000")[1])

        def start_all() -> None:
            with ThreadPoolExecutor(4) as pool:
                list(pool.map(start, range(PODS)))

        figures(f"{PODS} pods of the handler `process`, four at a time", f"{took(start_all):.0f} s")
        all_run(one, containers)
        figures("the daemon's memory with them", f"{resident(one.pid) // MIB} MiB")
        figures("`crictl ps`, `crictl stats` with them", _lists(one))
        figures("after SIGKILL of the daemon, all found again", f"{found_again(one, containers):.1f} s")
        figures("all removed", f"{took(one.remove_all):.0f} s")
        one.wait_no_leaks_but_warm(60 * PATIENCE)


def _lists(one: Node) -> str:
    return ", ".join(f"{took(lambda call=call: one.crictl(call)):.2f} s" for call in ("ps", "stats"))


def test_as_many_vms_as_memory_allows(registry: str, figures: Callable[[str, str], None]) -> None:
    with node(registry, extra={"vm": {"pool": {"size": 0}}}) as one:
        one.wait_ready()
        one.pull(BUSYBOX)
        before, started, containers = available(), time.monotonic(), []
        while len(containers) < VMS and available() > RESERVE:
            containers.append(one.run(BUSYBOX, "sleep", "100000", handler="vm")[1])
        count = len(containers)
        figures(f"{count} pods of the handler `vm`, one by one", f"{time.monotonic() - started:.0f} s")
        figures("memory of the host for each of them", f"{(before - available()) // count // MIB} MiB")
        figures("the daemon's memory with them", f"{resident(one.pid) // MIB} MiB")
        assert count == VMS or available() <= RESERVE
        all_run(one, containers)
        figures("after SIGKILL of the daemon, all found again", f"{found_again(one, containers):.1f} s")
        for container in containers:
            assert one.crictl("exec", container, "echo", "alive").out == "alive\n"
        figures("all removed", f"{took(one.remove_all):.0f} s")
        one.wait_no_leaks_but_warm(60 * PATIENCE)


def test_images_are_collected_as_the_kubelet_does(registry: str, figures: Callable[[str, str], None]) -> None:
    """By age and use: ImageFsInfo says how full it is, RemoveImage makes room, what is pinned is left."""
    with node(registry, handler="process", extra={"images": {"pinned": ["*/busybox:*"]}}) as one:

        def used() -> int:
            (filesystem,) = one.json("imagefsinfo")["status"]["imageFilesystems"]
            return int(filesystem["usedBytes"]["value"])

        def images() -> dict[str, bool]:
            return {tag: item["pinned"] for item in one.json("images")["images"] for tag in item["repoTags"]}

        one.pull(BUSYBOX)
        small = used()
        for _ in range(5):
            one.pull(NGINX)
            full = used()
            assert full > small
            assert images() == {BUSYBOX: True, NGINX: False}
            one.crictl("rmi", NGINX)
            limit = time.monotonic() + 30 * PATIENCE
            while used() > small:
                assert time.monotonic() < limit, "what was removed still takes room"
                time.sleep(0.2)
        figures("an image of nginx, five times pulled and removed, leaves", f"{used() - small} bytes")
        _, container = one.run(BUSYBOX, "sleep", "1000")
        one.pull(NGINX)
        _, serving = one.run(NGINX, "sh", "-c", "cat /etc/nginx/nginx.conf; sleep 1000")
        one.crictl("rmi", NGINX, check=False)
        assert one.crictl("exec", serving, "cat", "/etc/nginx/nginx.conf").out, "what runs keeps its image"
        assert one.status(container)["state"] == "CONTAINER_RUNNING"


@pytest.mark.parametrize("handler", ["vm", "process"])
def test_logs_are_rotated(registry: str, handler: str, figures: Callable[[str, str], None]) -> None:
    """As the kubelet rotates: rename, ReopenContainerLog, compress or remove the oldest."""
    with node(registry) as one:
        one.wait_ready()
        count = "i=0; while [ $i -lt 20000 ]; do i=$((i+1)); echo line $i; done; echo the end; sleep 1000"
        _, container = one.run(BUSYBOX, "sh", "-c", count, handler=handler)
        log = Path(one.status(container)["logPath"])
        pieces = []
        while "the end" not in log.read_text():
            piece = log.with_name(f"{log.name}.{len(pieces)}")
            log.rename(piece)
            pieces.append(piece)
            asyncio.run(_reopen(one.socket, container))
            limit = time.monotonic() + 30 * PATIENCE
            while not (log.exists() and log.stat().st_size) and "the end" not in piece.read_text():
                assert time.monotonic() < limit, "nothing reaches the new log"
                time.sleep(0.01)
            if "the end" in piece.read_text():
                break
        # conmon reads in blocks: a line may come in two entries, the first of which ends with no newline.
        text = b"".join(line.content for path in [*pieces, log] for line in logs.read_all(path))
        assert [int(number) for number in re.findall(rb"line (\d+)$", text, re.M)] == list(range(1, 20001))
        figures(f"20,000 lines over {len(pieces)} rotations, `{handler}`", "each there once")


async def _reopen(socket: str, container: str) -> None:
    async with CriClient(Path(socket)) as client:
        request = pb.ReopenContainerLogRequest(container_id=container)
        await client.runtime.reopen_container_log(request)


def test_a_full_disk_stops_what_is_new_and_nothing_else(
    registry: str, figures: Callable[[str, str], None]
) -> None:
    extra = {"vm": {"pool": {"size": 0}, "template": False}}
    with node(registry, handler="process", extra=extra) as one:
        one.stop()
        kept = one.scratch / "kept"
        one.settings.root.rename(kept)
        one.settings.root.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512m", "none", one.settings.root], check=True)
        try:
            subprocess.run(["cp", "-a", f"{kept}/.", one.settings.root], check=True)
            one.start()
            one.pull(BUSYBOX)
            _, container = one.run(BUSYBOX, "sleep", "1000")
            filling = one.settings.root / "filling"
            subprocess.run(
                ["dd", "if=/dev/zero", f"of={filling}", "bs=64k"], capture_output=True, check=False
            )
            assert one.status(container)["state"] == "CONTAINER_RUNNING"
            assert one.crictl("exec", container, "echo", "alive").out == "alive\n"
            refused = one.crictl("pull", NGINX, check=False)
            assert refused.code != 0 and "no space left" in refused.err.lower(), refused
            pod = one.try_pod(one.pod_config(), "process")
            # The last pages of the disk may just do for one pod.
            assert pod.code == 0 or "ResourceExhausted" in pod.err, pod
            one.kill()
            one.start()
            assert one.status(container)["state"] == "CONTAINER_RUNNING"
            filling.unlink()
            one.pull(NGINX)
            _, later = one.run(BUSYBOX, "sleep", "1000")
            assert {container, later} <= {one["id"] for one in one.json("ps")["containers"]}
            one.remove_all()
            figures("a full disk", "pulls and new pods are refused, what runs goes on, also over a restart")
            one.stop()
        finally:
            subprocess.run(["umount", "-l", one.settings.root], check=True)
