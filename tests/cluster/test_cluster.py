"""Pods under both handlers on two nodes: they reach each other, and outlive the programs that run them."""

from __future__ import annotations

import itertools
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.room import Cluster
from tests.conformance.images import E2E
from tests.node import Done
from tests.node_e2e import enclosure
from tests.page import blocks
from tests.patience import PATIENCE

HANDLERS = ("vm", "process")
PORT = 8080
LIMIT = 120.0 * PATIENCE


def _pod(name: str, node: str, handler: str) -> dict[str, Any]:
    served: dict[str, Any] = {
        "name": "web",
        "image": f"{E2E}/agnhost:2.63.0",
        "args": ["netexec", f"--http-port={PORT}"],
        "readinessProbe": {"httpGet": {"path": "/healthz", "port": PORT}, "periodSeconds": 1},
    }
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "web", "handler": handler}},
        "spec": {
            "runtimeClassName": handler,
            "nodeName": node,
            "containers": [served],
            "terminationGracePeriodSeconds": 1,
        },
    }


def _service(name: str, handler: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "labels": {"app": "web"}},
        "spec": {
            "type": "NodePort",
            "selector": {"handler": handler},
            "ports": [{"port": 80, "targetPort": PORT}],
        },
    }


def _name(handler: str, node: str) -> str:
    return f"{handler}-{node}"


@pytest.fixture(scope="module")
def pods(shared_cluster: Cluster) -> Iterator[dict[str, str]]:
    """A web server per handler and node, by name with its address, and a Service per handler."""
    wanted = [(handler, node.name) for handler in HANDLERS for node in shared_cluster.nodes]
    shared_cluster.apply(*(_pod(_name(*one), one[1], one[0]) for one in wanted))
    shared_cluster.apply(*(_service(f"web-{handler}", handler) for handler in HANDLERS))
    shared_cluster.wait("pod", "condition=Ready", "--selector=app=web")
    items = shared_cluster.json("get", "pods", "--selector=app=web")["items"]
    yield {one["metadata"]["name"]: one["status"]["podIP"] for one in items}
    shared_cluster.kubectl("delete", "pod,service", "--selector=app=web", "--wait=true")


def _fetch(cluster: Cluster, pod: str, url: str, seconds: float = 60.0 * PATIENCE) -> Done:
    """What a pod gets from a URL, the one time that it asks."""
    return cluster.kubectl("exec", pod, "--", "curl", "-sS", "-m", f"{seconds:g}", url, check=False)


def _eventually(cluster: Cluster, pod: str, url: str, *answers: str) -> None:
    """What the pod gets from the URL is each of the answers, sooner or later."""
    limit, missing, done = time.monotonic() + LIMIT, {*answers}, None
    while missing:
        assert time.monotonic() < limit, f"{pod} got none of {missing} from {url}: {done}"
        done = _fetch(cluster, pod, url, 10.0 * PATIENCE)
        missing.discard(done.out.strip())


def test_every_pod_reaches_every_other(shared_cluster: Cluster, pods: dict[str, str]) -> None:
    for one, other in itertools.product(pods, pods):
        done = _fetch(shared_cluster, one, f"http://{pods[other]}:{PORT}/hostname")
        assert done.out == other, f"{one} to {other}: {done}"


def test_a_pods_address_is_seen_by_the_other(shared_cluster: Cluster, pods: dict[str, str]) -> None:
    for one, other in itertools.permutations(pods, 2):
        seen = _fetch(shared_cluster, one, f"http://{pods[other]}:{PORT}/clientip").out
        assert seen.rsplit(":", 1)[0] == pods[one], f"{one} to {other}"


def test_a_service_is_found_by_its_name_and_leads_to_both_nodes(
    shared_cluster: Cluster, pods: dict[str, str]
) -> None:
    for one, handler in itertools.product(pods, HANDLERS):
        answers = [_name(handler, node.name) for node in shared_cluster.nodes]
        _eventually(shared_cluster, one, f"http://web-{handler}/hostname", *answers)


def test_a_node_port_leads_to_pods_of_the_other_node(shared_cluster: Cluster, pods: dict[str, str]) -> None:
    for handler in HANDLERS:
        service = shared_cluster.json("get", "service", f"web-{handler}")
        port = service["spec"]["ports"][0]["nodePort"]
        missing, limit = (
            {_name(handler, node.name) for node in shared_cluster.nodes},
            time.monotonic() + LIMIT,
        )
        while missing:
            assert time.monotonic() < limit, f"nothing of {missing}"
            for node in shared_cluster.nodes:
                url = f"http://{node.address}:{port}/hostname"
                missing.discard(shared_cluster.run("curl", "-sS", "-m", "10", url, check=False).out)


@pytest.mark.parametrize("program", ["kubelet", "orlopd"])
def test_pods_outlive_a_killed(program: str, shared_cluster: Cluster, pods: dict[str, str]) -> None:
    node = shared_cluster.nodes[0]
    mine = [_name(handler, node.name) for handler in HANDLERS]
    before = {name: shared_cluster.json("get", "pod", name)["status"] for name in mine}
    node.kill(program)
    for name in mine:
        _eventually(shared_cluster, name, f"http://{pods[name]}:{PORT}/hostname", name)
    # The kubelet has looked at them since.
    new = _name("process", f"{node.name}-after-{program}")
    shared_cluster.apply(_pod(new, node.name, "process"))
    shared_cluster.wait(f"pod/{new}", "condition=Ready")
    shared_cluster.kubectl("delete", "pod", new)
    for name in mine:
        status = shared_cluster.json("get", "pod", name)["status"]
        assert status["podIP"] == before[name]["podIP"]
        containers = status["containerStatuses"]
        assert [one["restartCount"] for one in containers] == [0]
        ids = [one["containerID"] for one in before[name]["containerStatuses"]]
        assert [one["containerID"] for one in containers] == ids


def test_the_documented_pod_runs_in_a_vm(shared_cluster: Cluster) -> None:
    shared_cluster.apply(blocks("kubernetes.md")["pod"])
    shared_cluster.wait("pod/hello", "condition=Ready")
    limit = time.monotonic() + 60 * PATIENCE
    # A pod without a probe is ready as soon as its container runs, which may be before it said anything.
    while not (said := shared_cluster.kubectl("logs", "hello").out):
        assert time.monotonic() < limit, "it says nothing"
    assert said.startswith("kernel ")
    assert platform.release() not in said
    shared_cluster.kubectl("delete", "pod", "hello", "--grace-period=1")


def _deployment(handler: str, version: str) -> dict[str, Any]:
    """Two replicas that tell a version, one of them always ready."""
    pod = _pod("", "", handler)
    labels = {"app": "rolled", "rolled": handler}
    pod["spec"].pop("nodeName")
    pod["spec"]["containers"][0]["env"] = [{"name": "VERSION", "value": version}]
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": f"rolled-{handler}"},
        "spec": {
            "replicas": 2,
            "strategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 1}},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": pod["spec"]},
        },
    }


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_rollout_completes_while_daemons_are_killed(handler: str, shared_cluster: Cluster) -> None:
    name, rolled = f"deployment/rolled-{handler}", f"--selector=rolled={handler}"
    status = ("rollout", "status", name, f"--timeout={LIMIT * 2:.0f}s")
    shared_cluster.apply(_deployment(handler, "one"))
    shared_cluster.kubectl(*status, timeout=LIMIT * 3)
    shared_cluster.apply(_deployment(handler, "two"))
    for node in shared_cluster.nodes:
        node.kill("orlopd")
    shared_cluster.kubectl(*status, timeout=LIMIT * 3)
    # Those of the old version go, whoever was asked to remove them and died.
    limit = time.monotonic() + LIMIT
    pods: list[dict[str, Any]] = []
    while len(pods) != 2:
        assert time.monotonic() < limit, [one["metadata"]["name"] for one in pods]
        pods = shared_cluster.json("get", "pods", rolled)["items"]
    for pod in pods:
        said = shared_cluster.kubectl("exec", pod["metadata"]["name"], "--", "printenv", "VERSION")
        assert said.out == "two\n"
    shared_cluster.kubectl("delete", name, "--cascade=foreground")


OWNER = """
import time
from tests.cluster.room import cluster
with cluster(nodes=1) as one:
    print(one.directory, flush=True)
    time.sleep(10000)
"""


def test_nothing_stays_of_a_cluster_whose_owner_is_terminated() -> None:
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    directory = Path(owner.stdout.readline().strip())
    assert directory.is_dir()
    owner.terminate()
    owner.wait(LIMIT)
    limit = time.monotonic() + LIMIT
    groups = [one.group(directory.name) for one in enclosure.hierarchies()]
    while directory.exists() or any(group.exists() for group in groups):
        assert time.monotonic() < limit, f"left: {directory}, {groups}"
        time.sleep(0.1)
    assert directory.name not in Path("/proc/self/mountinfo").read_text()
