"""A kubelet on CRI-O, with Orlop below: the pod of docs/kubernetes.md by both of CRI-O's ways to it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import yaml

from tests.cluster.room import Cluster, cluster, eventually
from tests.page import blocks

HANDLERS = ("orlop", "orlop-vm")


@pytest.fixture(scope="module")
def room() -> Iterator[Cluster]:
    with cluster(1, crio=["node1"]) as one:
        for handler in HANDLERS:
            one.apply(
                {
                    "apiVersion": "node.k8s.io/v1",
                    "kind": "RuntimeClass",
                    "metadata": {"name": handler},
                    "handler": handler,
                    "overhead": {"podFixed": {"memory": "128Mi", "cpu": "100m"}},
                }
            )
        yield one


@pytest.mark.parametrize("handler", HANDLERS)
def test_the_documented_pod_runs_is_entered_and_says_what_it_says(room: Cluster, handler: str) -> None:
    pod = yaml.safe_load(blocks("kubernetes.md")["pod"])
    name = pod["metadata"]["name"] = f"hello-{handler}"
    pod["spec"]["runtimeClassName"] = handler
    room.apply(pod)
    room.wait(f"pod/{name}", "condition=Ready")
    said = eventually(lambda: room.kubectl("logs", name).out, bool)
    (kernel,) = said.split()[1:]
    assert room.kubectl("exec", name, "--", "uname", "-r").out.strip() == kernel
    assert room.run("uname", "-r").out.strip() != kernel
    failed = room.kubectl("exec", name, "--", "sh", "-c", "exit 4", check=False)
    assert failed.code == 4, failed
    room.kubectl("delete", "pod", name, "--grace-period=1", "--wait=true")
