"""Pods of the last release run on under this version, forwards and back.

Not part of ``make test``: it builds the last release and its guest image. ``make upgrade`` runs it.
"""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from tests.node import BUSYBOX
from tests.patience import PATIENCE
from tests.upgrade import release
from tests.upgrade.node import UpgradedNode, upgraded

COUNT = "i=0; trap 'exit 7' TERM; while true; do i=$((i+1)); echo line $i; sleep 0.1; done"


def lines(node: UpgradedNode, container: str) -> list[int]:
    """The numbers that a counting container has logged."""
    return [int(number) for number in re.findall(r"line (\d+)", node.crictl("logs", container).out)]


def goes_on(node: UpgradedNode, container: str) -> None:
    """The container counts on, and no line of it is lost or there twice."""
    seen = len(lines(node, container))
    limit = time.monotonic() + 60 * PATIENCE
    while len(lines(node, container)) < seen + 5:
        assert time.monotonic() < limit, f"{container} counts no further than {seen}"
        time.sleep(0.2)
    found = lines(node, container)
    assert found == list(range(1, len(found) + 1))


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("handler", ["vm", "process"])
def test_pods_of_the_last_release_run_on(registry: str, tmp_path: Path, handler: str) -> None:
    old = release.site()
    volume = tmp_path / "volume"
    volume.mkdir()
    mounts = [{"host_path": str(volume), "container_path": "/volume"}]
    with upgraded(registry) as node:
        node.install(old)
        node.start()
        node.wait_ready()
        node.pull(BUSYBOX)
        pod = node.pod_config()
        pod_id = node.run_pod(pod, handler)
        counting = node.create(pod_id, pod, BUSYBOX, "sh", "-c", COUNT, mounts=mounts)
        node.crictl("start", counting)
        ended = node.create(pod_id, pod, BUSYBOX, "sh", "-c", "exit 9")
        node.crictl("start", ended)
        node.wait_exit(ended)
        waiting = node.create(pod_id, pod, BUSYBOX, "sh", "-c", "echo begun; sleep 600")
        goes_on(node, counting)
        node.stop()

        node.install(None)
        node.start()
        assert node.pod_status(pod_id)["state"] == "SANDBOX_READY"
        assert node.status(counting)["state"] == "CONTAINER_RUNNING"
        assert node.status(ended)["exitCode"] == 9
        goes_on(node, counting)
        assert (
            "6"
            in node.crictl(
                "exec", counting, "sh", "-c", "echo $((2 * 3)) >/volume/told; cat /volume/told"
            ).out
        )
        node.crictl("start", waiting)
        node.wait_log(waiting, "begun")
        # A container that the kubelet starts again in a pod that is older than the daemon.
        again = node.create(
            pod_id, pod, BUSYBOX, "sh", "-c", "cat /volume/told; echo $?; exit 4", mounts=mounts
        )
        node.crictl("start", again)
        assert node.wait_exit(again)["exitCode"] == 4
        assert "6" in node.crictl("logs", again).out
        node.crictl("rm", again)
        stats = {one["attributes"]["id"]: one for one in node.json("stats", "-a")["stats"]}
        assert int(stats[counting]["memory"]["workingSetBytes"]["value"]) > 0
        assert int(stats[counting]["cpu"]["usageCoreNanoSeconds"]["value"]) > 0
        node.wait_ready()
        _, fresh = node.run(BUSYBOX, "sh", "-c", COUNT, handler=handler)
        goes_on(node, fresh)

        # Back: the release cannot know what came after it. It says so, ends, and touches nothing.
        node.stop()
        node.install(old)
        assert "newer version" in node.refusal()
        node.install(None)
        node.start()
        for container in (counting, fresh):
            assert node.status(container)["state"] == "CONTAINER_RUNNING"
            goes_on(node, container)
        node.crictl("stop", "--timeout", "30", counting)
        assert node.status(counting)["exitCode"] == 7
        node.crictl("update", "--memory", str(64 << 20), waiting)
        node.remove_pod(pod_id)
        assert pod_id not in json.dumps(node.json("pods"))
