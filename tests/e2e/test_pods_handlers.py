"""The default handler ``auto``, devices by name, metrics, and a daemon that is stopped in mid-call."""

from __future__ import annotations

import json
import os
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.client.calls import NativeClient
from orlop.errors import FailedPrecondition
from orlop.native.api import native_v1_pb2 as pb
from tests.conformance.tools import free_port
from tests.node import BUSYBOX, Node, node
from tests.patience import PATIENCE


@pytest.fixture(scope="module")
def auto_node(registry: str) -> Iterator[Node]:
    extra: dict[str, dict[str, Any]] = {"metrics": {"port": free_port()}, "vm": {"pool": {"size": 0}}}
    with node(registry, handler="auto", extra=extra) as one:
        one.wait_ready()
        one.pull(BUSYBOX)
        yield one


def info(one: Node, pod_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(one.crictl("inspectp", pod_id).out)["info"]
    return found


@pytest.mark.parametrize(
    ("security", "handler", "word"),
    [
        ({}, "vm", "nothing"),
        ({"namespace_options": {"network": 2}}, "process", "network"),
        ({"namespace_options": {"pid": 2}}, "process", "PID"),
        ({"namespace_options": {"ipc": 2}}, "process", "IPC"),
        ({"privileged": True}, "process", "privileges"),
    ],
    ids=["plain", "host-network", "host-pid", "host-ipc", "privileged"],
)
def test_auto_takes_a_vm_unless_the_host_is_asked_for(
    auto_node: Node, security: dict[str, Any], handler: str, word: str
) -> None:
    one = auto_node
    config = one.pod_config(linux={"security_context": security})
    pod_id = one.run_pod(config)
    told = info(one, pod_id)
    assert told["handler"] == handler and word in told["handlerReason"]
    assert f"handler {handler}: chosen because" in one.settings.log.read_text()
    container = one.create(pod_id, config, BUSYBOX, "sleep", "1000", linux={"security_context": security})
    one.crictl("start", container)
    kernel = one.crictl("exec", container, "uname", "-r").out.strip()
    assert (kernel == os.uname().release) == (handler == "process")
    one.remove_pod(pod_id)
    one.wait_no_leaks()


def test_a_named_handler_is_never_weakened(auto_node: Node) -> None:
    config = auto_node.pod_config(linux={"security_context": {"namespace_options": {"network": 2}}})
    refused = auto_node.try_pod(config, "vm")
    assert refused.code != 0 and "network namespace" in refused.err
    assert auto_node.json("pods")["items"] == []
    auto_node.wait_no_leaks()


def test_a_device_by_name(auto_node: Node) -> None:
    """CDI: a node of the host under ``process``; under ``vm`` refused, for the guest has no such device."""
    one = auto_node
    directory = Path("/var/run/cdi")
    path = directory / "orlop-test.json"
    made = not directory.exists()
    directory.mkdir(exist_ok=True)
    edits = {
        "env": ["FROM_CDI=yes"],
        "deviceNodes": [{"path": "/dev/named", "hostPath": "/dev/kmsg", "permissions": "r"}],
    }
    devices = [{"name": "one", "containerEdits": edits}]
    path.write_text(json.dumps({"cdiVersion": "0.6.0", "kind": "orlop.example/test", "devices": devices}))
    try:
        for handler in ("process", "vm"):
            config = one.pod_config()
            pod_id = one.run_pod(config, handler)
            wish: dict[str, Any] = {"CDI_devices": [{"name": "orlop.example/test=one"}]}
            made_one = one.try_create(
                pod_id, config, BUSYBOX, "sh", "-c", "echo $FROM_CDI; ls -l /dev/named", **wish
            )
            if handler == "vm":
                assert made_one.code != 0 and "/dev/kmsg" in made_one.err
            else:
                container = made_one.out.strip().splitlines()[-1]
                one.crictl("start", container)
                assert "yes" in one.wait_log(container, "/dev/named")
            unknown: dict[str, Any] = {"CDI_devices": [{"name": "orlop.example/test=two"}]}
            refused = one.try_create(pod_id, config, BUSYBOX, "true", **unknown)
            assert refused.code != 0 and "orlop.example/test=two" in refused.err
            one.remove_pod(pod_id)
    finally:
        path.unlink()
        if made:
            directory.rmdir()
    one.wait_no_leaks()


def test_metrics_count(auto_node: Node) -> None:
    one = auto_node
    pod_id = one.run_pod(handler="process")
    port = one.settings.extra["metrics"]["port"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        text = response.read().decode()
    assert 'orlop_pods{handler="process",phase="ready"} 1.0' in text
    assert 'orlop_rpcs_total{code="ok",rpc="RunPodSandbox"}' in text
    one.remove_pod(pod_id)


async def native(one: Node, call: str, container: str) -> None:
    async with NativeClient(Path(one.socket)) as client:
        request = {"pause": pb.PauseContainerRequest, "resume": pb.ResumeContainerRequest}[call]
        await getattr(client.containers, f"{call}_container")(request(container_id=container))


def counted(one: Node, container: str) -> int:
    return len(one.crictl("logs", container).out.splitlines())


@pytest.mark.parametrize("handler", ["process", "vm"])
async def test_a_paused_container_stands_still(auto_node: Node, handler: str) -> None:
    one = auto_node
    script = "trap 'exit 5' TERM; i=0; while :; do i=$((i+1)); echo $i; usleep 50000; done"
    pod_id, container = one.run(BUSYBOX, "sh", "-c", script, handler=handler)
    one.wait_log(container, "3\n")
    await native(one, "pause", container)
    # What it wrote before arrives; then nothing more does, over a restart as well.
    before, since = -1, time.monotonic()
    while time.monotonic() - since < 3:
        if (now := counted(one, container)) != before:
            before, since = now, time.monotonic()
    assert "is paused; resume it" in one.crictl("exec", container, "true", check=False).err
    one.kill()
    one.start()
    with pytest.raises(FailedPrecondition, match="is paused already"):
        await native(one, "pause", container)
    assert json.loads(one.crictl("inspect", container).out)["info"]["paused"] is True
    assert counted(one, container) == before
    await native(one, "resume", container)
    one.wait_log(container, f"\n{before + 3}\n")
    assert one.crictl("exec", container, "true").code == 0
    # A stop is heard.
    await native(one, "pause", container)
    one.crictl("stop", "--timeout", "100", container)
    assert one.wait_exit(container)["exitCode"] == 5
    # And a pod goes with what is paused in it.
    again = one.create(pod_id, one.pod_config(), BUSYBOX, "sleep", "600")
    one.crictl("start", again)
    await native(one, "pause", again)
    one.remove_pod(pod_id)


@pytest.mark.parametrize("handler", ["process", "vm"])
@pytest.mark.parametrize("delay", [0.03, 0.15])
def test_stopped_in_mid_call(auto_node: Node, handler: str, delay: float) -> None:
    """SIGTERM lets the call end or undoes it; either way nothing is half made."""
    one = auto_node
    path = one._file("pod", one.pod_config())
    endpoint = f"unix://{one.socket}"
    argv = [
        one._crictl,
        "--timeout",
        "60s",
        "-r",
        endpoint,
        "-i",
        endpoint,
        "runp",
        "--runtime",
        handler,
        path,
    ]
    call = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    time.sleep(delay)
    one.stop()
    answer = call.communicate(timeout=60 * PATIENCE)[0].decode().strip()
    one.start()
    one.wait_ready()
    pods = [item["id"] for item in one.json("pods")["items"] or ()]
    assert pods == ([answer] if answer else [])
    for pod_id in pods:
        one.remove_pod(pod_id)
    one.wait_no_leaks()
