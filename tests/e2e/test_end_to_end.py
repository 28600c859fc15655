"""The whole way, through crictl: a real image from a real registry, in a pod of each handler."""

from __future__ import annotations

import http.client
import os
import platform
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.conformance.tools import free_port
from tests.node import BUSYBOX, NGINX, OWN, Node
from tests.node import node as new_node
from tests.patience import PATIENCE

HANDLERS = ("vm", "process")


@pytest.mark.parametrize("handler", HANDLERS)
def test_life_of_a_container(shared_node: Node, handler: str) -> None:
    node = shared_node
    node.pull(BUSYBOX)
    pod = node.pod_config()
    pod_id = node.run_pod(pod, handler)
    script = "echo out; echo err >&2; uname -r; hostname; while [ ! -e /go ]; do sleep 0.1; done; exit 7"
    container = node.create(pod_id, pod, BUSYBOX, "sh", "-c", script)
    assert node.status(container)["state"] == "CONTAINER_CREATED"
    node.crictl("start", container)
    log = node.wait_log(container, pod["hostname"])
    assert "out\n" in log and "err\n" in log
    kernel = node.crictl("exec", "-s", container, "uname", "-r").out.strip()
    assert kernel in log
    assert (kernel != platform.release()) == (handler == "vm")
    assert node.pod_status(pod_id)["runtimeHandler"] == handler
    failing = node.crictl("exec", "-s", container, "sh", "-c", "exit 3", check=False)
    assert failing.code != 0 and "3" in failing.err
    node.crictl("exec", "-s", container, "touch", "/go")
    status = node.wait_exit(container)
    assert status["exitCode"] == 7 and status["reason"] == "Error"
    node.remove_pod(pod_id)
    assert container not in node.crictl("ps", "-a", "-q", "--no-trunc").out
    node.wait_no_leaks_but_warm()


@pytest.mark.parametrize("handler", HANDLERS)
def test_exec_and_attach_stream(shared_node: Node, handler: str) -> None:
    node = shared_node
    pod_id, container = node.run(BUSYBOX, "cat", handler=handler, stdin=True)
    answer = node.crictl("exec", "-i", container, "sh", "-c", "cat; echo done >&2", stdin=b"through stdin\n")
    assert answer.out == "through stdin\n" and "done" in answer.err
    many = node.crictl("exec", container, "sh", "-c", "seq 1 100000")
    assert many.out == "".join(f"{number}\n" for number in range(1, 100001))
    # A writer whose reader is gone has to end: nothing may be ignored that the container did not ask for.
    ignored = node.crictl("exec", container, "sh", "-c", "grep SigIgn /proc/self/status; yes | head -n 1")
    _, mask, line = ignored.out.split()
    assert int(mask, 16) & (1 << signal.SIGPIPE - 1 | 1 << signal.SIGXFSZ - 1) == 0 and line == "y"
    node.remove_pod(pod_id)


@pytest.mark.parametrize("handler", HANDLERS)
def test_stop_asks_first_and_kills_then(shared_node: Node, handler: str) -> None:
    node = shared_node
    polite = "trap 'echo asked; exit 5' TERM; echo up; while :; do sleep 0.1; done"
    pod_id, container = node.run(BUSYBOX, "sh", "-c", polite, handler=handler)
    node.wait_log(container, "up")
    node.crictl("stop", "-t", "100", container)
    assert node.wait_exit(container)["exitCode"] == 5
    assert "asked" in node.crictl("logs", container).out
    pod = node.pod_config()
    deaf = node.create(pod_id, pod, BUSYBOX, "sh", "-c", "trap '' TERM; echo up; while :; do sleep 0.1; done")
    node.crictl("start", deaf)
    node.wait_log(deaf, "up")
    started = time.monotonic()
    node.crictl("stop", "-t", "1", deaf)
    assert 0.9 < time.monotonic() - started < 60 * PATIENCE
    assert node.wait_exit(deaf)["exitCode"] == 137
    node.remove_pod(pod_id)
    node.crictl("stopp", pod_id)
    node.crictl("rmp", pod_id, check=False)


def _get(address: str, port: int, timeout: float = 60 * PATIENCE) -> str:
    limit = time.monotonic() + timeout
    while True:
        connection = http.client.HTTPConnection(address, port, timeout=30)
        try:
            connection.request("GET", "/")
            return connection.getresponse().read().decode()
        except OSError:
            if time.monotonic() > limit:
                raise
            time.sleep(0.2)
        finally:
            connection.close()


@pytest.mark.parametrize("handler", HANDLERS)
def test_pods_reach_each_other_and_the_host_reaches_them(shared_node: Node, handler: str) -> None:
    node = shared_node
    node.pull(NGINX)
    port = free_port()
    web = node.pod_config(port_mappings=[{"protocol": 0, "container_port": 80, "host_port": port}])
    web_id = node.run_pod(web, handler)
    server = node.create(web_id, web, NGINX)
    node.crictl("start", server)
    address = node.pod_status(web_id)["network"]["ip"]
    assert "Welcome" in _get(address, 80)
    host = _own_address()
    assert "Welcome" in _get(host, port)
    client_id, client = node.run(BUSYBOX, "sleep", "600", handler=handler)
    page = node.crictl("exec", "-s", client, "wget", "-q", "-O-", f"http://{address}/").out
    assert "Welcome" in page
    node.remove_pod(client_id)
    node.remove_pod(web_id)
    with pytest.raises(OSError):
        _get(host, port, timeout=0.5)
    node.wait_no_leaks_but_warm()


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return str(probe.getsockname()[0])


@pytest.mark.parametrize("handler", HANDLERS)
def test_volumes_environment_and_user(shared_node: Node, handler: str, tmp_path: Path) -> None:
    node = shared_node
    writable, fixed = tmp_path / "rw", tmp_path / "ro"
    for path in (writable, fixed):
        path.mkdir()
        path.chmod(0o777)
        (path / "there").write_text("from the host\n")
    mounts = [
        {"container_path": "/rw", "host_path": os.fspath(writable)},
        {"container_path": "/ro", "host_path": os.fspath(fixed), "readonly": True},
    ]
    script = "cat /rw/there; echo $A; pwd; id -u; echo back >/rw/made; touch /ro/a || echo refused; echo end"
    pod_id, container = node.run(
        BUSYBOX,
        "sh",
        "-c",
        script,
        handler=handler,
        mounts=mounts,
        envs=[{"key": "A", "value": "from the pod"}],
        working_dir="/tmp",
        linux={"security_context": {"run_as_user": {"value": 1234}}},
    )
    log = node.wait_log(container, "end")
    for expected in ("from the host", "from the pod", "/tmp", "1234", "refused"):
        assert expected in log
    assert (writable / "made").read_text() == "back\n"
    assert not (fixed / "a").exists()
    node.remove_pod(pod_id)


@pytest.mark.parametrize("handler", HANDLERS)
def test_image_of_layers(shared_node: Node, handler: str) -> None:
    node = shared_node
    pod_id, container = node.run(f"{OWN}/layers:1", handler=handler)
    log = node.wait_log(container, "yes")
    assert log.splitlines()[:3] == ["/data", "1234", "yes"]
    node.remove_pod(pod_id)
    pod_id, container = node.run(f"{OWN}/layers:1", "sleep", "600", handler=handler)
    seen = node.crictl("exec", "-s", container, "sh", "-c", "ls /data /opaque").out.split()
    assert seen == ["/data:", "kept", "/opaque:", "new"]
    node.remove_pod(pod_id)


@pytest.mark.parametrize("image", ["multi", "zstd"])
def test_images_of_other_makes(shared_node: Node, image: str) -> None:
    node = shared_node
    pod_id, container = node.run(f"{OWN}/{image}:1", "echo", "it runs", handler="vm")
    node.wait_log(container, "it runs")
    node.remove_pod(pod_id)


@pytest.mark.parametrize("handler", HANDLERS)
def test_pods_survive_the_daemon(registry: str, handler: str) -> None:
    with new_node(registry, handler=handler) as node:
        node.wait_ready()
        ticking = "i=0; while :; do i=$((i+1)); echo tick $i; sleep 0.2; done"
        pod_id, container = node.run(BUSYBOX, "sh", "-c", ticking)
        ending_pod, ending = node.run(BUSYBOX, "sh", "-c", "sleep 3; exit 9")
        node.wait_log(container, "tick 3")
        node.kill()
        time.sleep(4)
        node.start()
        node.wait_ready()
        assert node.status(container)["state"] == "CONTAINER_RUNNING"
        assert node.wait_exit(ending)["exitCode"] == 9
        node.crictl("exec", "-s", container, "true")
        node.wait_log(container, "tick 16\n")
        ticks = [int(line.split()[1]) for line in node.crictl("logs", container).out.splitlines()]
        assert ticks == list(range(1, len(ticks) + 1)), "lines were lost or doubled"
        node.remove_pod(pod_id)
        node.remove_pod(ending_pod)
