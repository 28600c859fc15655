"""The streams of exec, attach and port-forward through crictl, where something goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from typing import IO

import pytest

from tests.node import BUSYBOX, Done, Node
from tests.patience import PATIENCE

HANDLERS = ("vm", "process")
TRANSPORTS = ("spdy", "websocket")


@pytest.fixture(scope="module", params=HANDLERS)
def container(request: pytest.FixtureRequest, shared_node: Node) -> Iterator[str]:
    """A container that waits, one for all tests that do not harm it."""
    pod_id, container = shared_node.run(BUSYBOX, "cat", handler=request.param, stdin=True)
    yield container
    shared_node.remove_pod(pod_id)


def streamed(node: Node, container: str, transport: str, *command: str) -> Done:
    return node.crictl("exec", "--transport", transport, container, *command, check=False)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_command_that_does_not_exist_is_no_success(
    shared_node: Node, container: str, transport: str
) -> None:
    done = streamed(shared_node, container, transport, "nosuchcmd")
    assert done.code != 0
    assert "nosuchcmd" in done.err and "1006" not in done.err


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_exit_code_and_the_output_of_a_command(shared_node: Node, container: str, transport: str) -> None:
    done = streamed(shared_node, container, transport, "sh", "-c", "echo out; echo err >&2; exit 3")
    assert done.code != 0 and "exit status 3" in done.err.replace("code 3", "exit status 3")
    assert done.out == "out\n" and "err\n" in done.err
    good = streamed(shared_node, container, transport, "echo", "good")
    assert (good.code, good.out, good.err) == (0, "good\n", ""), "nothing but the output is said"


def _machine(node: Node, pod_id: str) -> int:
    """The process that the pod is: its QEMU."""
    return int(json.loads(node.crictl("inspectp", pod_id).out)["info"]["sandbox"]["pid"])


def _until_running(node: Node, container: str, word: str, *command: str) -> None:
    limit = time.monotonic() + 60 * PATIENCE
    while word not in node.crictl("exec", "-s", container, *(command or ("ps",))).out:
        assert time.monotonic() < limit
        time.sleep(0.2)


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("verb", ["exec", "attach"])
def test_a_vm_that_dies_is_no_success(shared_node: Node, verb: str, transport: str) -> None:
    node = shared_node
    script = "while :; do echo here; sleep 0.2; done"
    pod_id, container = node.run(BUSYBOX, "sh", "-c", script, handler="vm")
    command = ("exec", container, "sleep", "600") if verb == "exec" else ("attach", container)
    argv = node.crictl_argv(command[0], "--transport", transport, *command[1:])
    env = {**os.environ, "CRI_CONFIG_FILE": os.fspath(node._crictl_config())}
    null, pipe = subprocess.DEVNULL, subprocess.PIPE
    with subprocess.Popen(argv, stdin=null, stdout=pipe, stderr=pipe, text=True, env=env) as running:
        try:
            if verb == "exec":
                _until_running(node, container, "sleep 600")
            else:
                assert running.stdout is not None and running.stdout.readline()
            os.kill(_machine(node, pod_id), signal.SIGKILL)
            said = running.communicate(timeout=60 * PATIENCE)[1]
        finally:
            running.kill()
    assert running.returncode != 0 and "1006" not in said
    assert "VM" in said or "QEMU" in said, said
    node.remove_pod(pod_id)


@contextlib.contextmanager
def forwarded(node: Node, pod_id: str, port: int, transport: str) -> Iterator[tuple[int, IO[str]]]:
    """A port-forward by crictl: the port here, which it takes itself, and what crictl says."""
    argv = node.crictl_argv("port-forward", "--transport", transport, pod_id, f":{port}")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as forward:
        assert forward.stdout is not None
        try:
            lines = iter(forward.stdout.readline, "")
            found = next(filter(None, (re.search(r"127\.0\.0\.1:(\d+) ->", line) for line in lines)))
            yield int(found[1]), forward.stdout
        finally:
            forward.terminate()


def _says(output: IO[str], words: str) -> bool:
    return any(words in line for line in iter(output.readline, ""))


@pytest.mark.parametrize("handler", HANDLERS)
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_port_where_nobody_listens_is_told(shared_node: Node, handler: str, transport: str) -> None:
    node = shared_node
    pod_id, _ = node.run(BUSYBOX, "sleep", "600", handler=handler)
    with forwarded(node, pod_id, 4, transport) as (port, said):
        with socket.create_connection(("127.0.0.1", port), timeout=60 * PATIENCE) as client:
            assert client.recv(1) == b""
        assert _says(said, "port 4")
    node.remove_pod(pod_id)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_vm_that_dies_during_a_port_forward_is_told(shared_node: Node, transport: str) -> None:
    node = shared_node
    pod_id, container = node.run(BUSYBOX, "nc", "-lk", "-p", "8080", "-e", "cat", handler="vm")
    _until_running(node, container, ":8080 ", "netstat", "-ltn")
    with forwarded(node, pod_id, 8080, transport) as (port, said):
        with socket.create_connection(("127.0.0.1", port), timeout=60 * PATIENCE) as client:
            client.sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
            os.kill(_machine(node, pod_id), signal.SIGKILL)
            assert client.recv(1) == b""
        assert _says(said, "port 8080")
    node.remove_pod(pod_id)
