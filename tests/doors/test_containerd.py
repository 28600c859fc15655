"""containerd of Debian, which nobody here wrote, with containers that are VMs behind its own kind of shim."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from bench import peers

from tests.doors.containerd import RUNTIME, Containerd, containerd
from tests.node import BUSYBOX, Node
from tests.patience import PATIENCE

LIMIT = 180 * PATIENCE
RUN = ("run", "--runtime", RUNTIME)


@pytest.fixture(scope="module")
def ctr(shared_node: Node, registry: str) -> Iterator[Containerd]:
    with (
        tempfile.TemporaryDirectory(prefix="orlop-ctr-") as name,
        containerd(Path(name), peers.debian_containerd(), shared_node, registry) as one,
    ):
        one.pull(BUSYBOX)
        yield one
        one.remove_containers()
        shared_node.wait_no_leaks_but_warm(60 * PATIENCE)


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


def test_a_container_ends_as_its_program_does(ctr: Containerd) -> None:
    script = "echo out; echo err >&2; cat /proc/sys/kernel/hostname; exit 7"
    done = ctr(*RUN, "--rm", BUSYBOX, "ends", "sh", "-c", script, check=False)
    assert done.code == 7 and done.out.startswith("out\n") and done.err.startswith("err\n"), done
    assert ctr("container", "ls", "-q").out == ""


def status(ctr: Containerd, name: str) -> str:
    rows = [line.split() for line in ctr("task", "ls").out.splitlines()[1:]]
    return next((row[2] for row in rows if row[0] == name), "")


def test_it_is_a_vm_that_is_looked_at_paused_and_ended(ctr: Containerd) -> None:
    ctr(*RUN, "-d", BUSYBOX, "stays", "sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait")
    kernel = ctr("task", "exec", "--exec-id", "e", "stays", "cat", "/proc/sys/kernel/osrelease").out
    assert kernel.strip() != os.uname().release
    assert "memory.usage" in ctr("task", "metrics", "stays").out
    ctr("task", "pause", "stays")
    assert status(ctr, "stays") == "PAUSED"
    ctr("task", "resume", "stays")
    assert status(ctr, "stays") == "RUNNING"
    again = ctr(*RUN, "-d", BUSYBOX, "stays", "true", check=False)
    assert again.code and "already exists" in again.err, again
    assert ctr("task", "rm", "stays", check=False).code, "it runs"
    ctr("task", "kill", "-s", "TERM", "stays")
    until(lambda: status(ctr, "stays") == "STOPPED", "it does not end")
    ctr("task", "rm", "stays", check=False)
    ctr("container", "rm", "stays")
    assert status(ctr, "stays") == ""


def test_what_cannot_be_says_so(ctr: Containerd) -> None:
    done = ctr(*RUN, "--rm", "--net-host", BUSYBOX, "wants", "true", check=False)
    assert done.code and "host's network namespace, which a VM does not share" in done.err, done
    done = ctr(*RUN, "--rm", BUSYBOX, "missing", "nosuchprogram", check=False)
    assert done.code and "nosuchprogram" in done.err, done


def test_a_daemon_that_is_killed_takes_no_container_with_it(ctr: Containerd, shared_node: Node) -> None:
    script = "i=0; while [ ! -e /end ]; do i=$((i+1)); echo $i; usleep 200000; done; exit 9"
    log = ctr.directory / "counts.log"
    with log.open("wb") as output:
        running = subprocess.Popen(
            ctr.argv(*RUN, "--rm", BUSYBOX, "counts", "sh", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=ctr.env,
        )
    until(lambda: len(log.read_text().split()) > 3, "it does not count")
    assert ctr("task", "exec", "--exec-id", "early", "counts", "sh", "-c", "exit 5", check=False).code == 5
    shared_node.kill()
    shared_node.start()
    shared_node.wait_ready()
    assert running.poll() is None
    ctr("task", "exec", "--exec-id", "late", "counts", "touch", "/end")
    assert running.wait(LIMIT) == 9
    counted = [int(line) for line in log.read_text().split()]
    # A FIFO cannot be asked what went through it: a moment may come twice, none is lost.
    assert sorted(set(counted)) == list(range(1, counted[-1] + 1))
