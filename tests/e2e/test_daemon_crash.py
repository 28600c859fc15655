"""The daemon is killed while it works; pods that ran are found again, half-made ones are not there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.node import BUSYBOX, CALL_TIMEOUT, Node, node
from tests.patience import PATIENCE

DELAYS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.4)
"""Seconds after the start of a call at which the daemon is killed."""


@pytest.fixture(scope="module", params=["process", "vm"])
def module_node(registry: str, request: pytest.FixtureRequest) -> Iterator[Node]:
    with node(registry, handler=request.param, extra={"vm": {"pool": {"size": 0}}}) as one:
        one.wait_ready()
        one.pull(BUSYBOX)
        # A template that is being made is no leak; it is there before the first test looks.
        wait_until(lambda: not [leak for leak in one.leaks() if "qemu-system" in leak])
        yield one


@pytest.fixture
def own_node(module_node: Node) -> Iterator[Node]:
    """The module's node, without what a failed test has left."""
    if not module_node.alive():
        module_node.start()
    module_node.remove_all()
    yield module_node


def wait_until(condition: Callable[[], bool], timeout: float = 180.0 * PATIENCE) -> None:
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, "waited too long"
        time.sleep(0.2)


def in_background(one: Node, *args: str) -> subprocess.Popen[bytes]:
    endpoint = f"unix://{one.socket}"
    argv = [one._crictl, "--timeout", f"{CALL_TIMEOUT:.0f}s", "-r", endpoint, "-i", endpoint, *args]
    env = {**os.environ, "CRI_CONFIG_FILE": os.fspath(one._crictl_config())}
    return subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env)


def killed_during(one: Node, delay: float, *args: str) -> None:
    """Kill the daemon ``delay`` seconds into a crictl command, and start it again."""
    call = in_background(one, *args)
    time.sleep(delay)
    one.kill()
    call.wait(timeout=CALL_TIMEOUT)
    one.start()
    one.wait_ready()


def pods(one: Node) -> dict[str, str]:
    return {item["id"]: item["state"] for item in one.json("pods")["items"] or ()}


def containers(one: Node) -> dict[str, str]:
    return {item["id"]: item["state"] for item in one.json("ps", "-a")["containers"] or ()}


def test_killed_while_pods_run(own_node: Node) -> None:
    """Containers run on, their logs have no gap, their exits are known."""
    one = own_node
    # However long the daemon takes to be there again, it runs.
    script = "i=0; while [ ! -e /end ]; do echo line $i; i=$((i+1)); usleep 100000; done; exit 3"
    pod_id, container = one.run(BUSYBOX, "sh", "-c", script)
    one.wait_log(container, "line 2")
    one.kill()
    time.sleep(1)
    one.start()
    # It has its template: the node is not unready for a moment.
    assert all(condition["status"] for condition in one.json("info")["status"]["conditions"])
    assert pods(one)[pod_id] == "SANDBOX_READY"
    assert one.status(container)["state"] == "CONTAINER_RUNNING"
    assert one.crictl("exec", container, "echo", "still here").out.strip() == "still here"
    seen = len(one.crictl("logs", container).out.splitlines())
    one.wait_log(container, f"line {seen + 3}\n")
    one.crictl("exec", container, "touch", "/end")
    status = one.wait_exit(container)
    assert status["exitCode"] == 3
    lines = [line for line in one.crictl("logs", container).out.splitlines() if line.startswith("line")]
    assert lines == [f"line {number}" for number in range(len(lines))] and len(lines) > seen + 3
    one.remove_pod(pod_id)
    one.wait_no_leaks()


def test_exit_while_the_daemon_is_dead(own_node: Node) -> None:
    one = own_node
    pod_id, container = one.run(BUSYBOX, "sh", "-c", "sleep 1; echo last words; exit 42")
    one.kill()
    time.sleep(3)
    one.start()
    one.wait_ready()
    status = one.wait_exit(container)
    assert (status["exitCode"], status["reason"]) == (42, "Error")
    assert "last words" in one.crictl("logs", container).out
    one.remove_pod(pod_id)
    one.wait_no_leaks()


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_in_run_pod_sandbox(own_node: Node, delay: float) -> None:
    one = own_node
    config = one.pod_config()
    path = one._file("pod", config)
    killed_during(one, delay, "runp", path)
    known = pods(one)
    assert set(known.values()) <= {"SANDBOX_READY"} and len(known) <= 1
    if not known:
        one.wait_no_leaks()
    # The kubelet asks again for the same attempt: it gets the pod that was made, or a new one.
    again = one.crictl("runp", path).out.strip()
    assert set(pods(one)) == {again} and set(known) <= {again}
    one.remove_pod(again)
    one.wait_no_leaks()


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_in_create_and_start(own_node: Node, delay: float) -> None:
    one = own_node
    pod = one.pod_config()
    pod_id = one.run_pod(pod)
    config: dict[str, Any] = {
        "metadata": {"name": "main", "attempt": 0},
        "image": {"image": BUSYBOX},
        "command": ["sleep", "1000"],
        "log_path": "main.log",
        "linux": {},
    }
    files = one._file("container", config), one._file("pod", pod)
    killed_during(one, delay, "create", pod_id, *files)
    known = containers(one)
    assert set(known.values()) <= {"CONTAINER_CREATED"} and len(known) <= 1
    again = one.crictl("create", pod_id, *files).out.strip()
    assert set(containers(one)) == {again} and set(known) <= {again}
    killed_during(one, delay, "start", again)
    if containers(one)[again] == "CONTAINER_CREATED":
        one.crictl("start", again)
    assert containers(one)[again] == "CONTAINER_RUNNING"
    assert one.crictl("exec", again, "true").code == 0
    one.remove_pod(pod_id)
    one.wait_no_leaks()


@pytest.mark.parametrize("delay", DELAYS[::2])
@pytest.mark.parametrize("command", ["stopp", "rmp"])
def test_killed_in_stop_and_remove(own_node: Node, delay: float, command: str) -> None:
    one = own_node
    pod_id, container = one.run(BUSYBOX, "sleep", "1000")
    if command == "rmp":
        one.crictl("stopp", pod_id)
    killed_during(one, delay, command, pod_id)
    assert pods(one).get(pod_id, "gone") in ("SANDBOX_READY", "SANDBOX_NOTREADY", "gone")
    if pods(one).get(pod_id) == "SANDBOX_NOTREADY":
        assert containers(one)[container] == "CONTAINER_EXITED"
    if pod_id in pods(one):
        one.remove_pod(pod_id)
    assert (pods(one), containers(one)) == ({}, {})
    one.wait_no_leaks()


def test_a_graceful_stop_keeps_pods(own_node: Node) -> None:
    one = own_node
    pod_id, container = one.run(BUSYBOX, "sleep", "1000")
    one.stop()
    one.start()
    one.wait_ready()
    assert containers(one)[container] == "CONTAINER_RUNNING"
    info = json.loads(one.crictl("inspectp", pod_id).out)
    assert info["status"]["state"] == "SANDBOX_READY"
    one.remove_pod(pod_id)


def test_a_second_daemon_is_refused(own_node: Node) -> None:
    path = own_node.scratch / "config.toml"
    done = subprocess.run(
        [sys.executable, "-m", "orlop.daemon", "--config", os.fspath(path)],
        capture_output=True,
        text=True,
        timeout=60 * PATIENCE,
        check=False,
    )
    assert done.returncode == 1 and f"pid {own_node.pid}" in done.stderr
    assert own_node.crictl("version").code == 0
