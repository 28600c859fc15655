"""The policies: each way to the node is refused, and open when its policy is taken away."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.tenants_api.conftest import Ship, pod, tenant
from tests.tenants_api.plane import eventually

BINDINGS = "validatingadmissionpolicybindings"
HOST_PATH = {"name": "node", "hostPath": {"path": "/"}}
NFS = {"name": "node", "nfs": {"server": "192.0.2.1", "path": "/"}}
WAYS: dict[str, dict[str, Any]] = {
    "hostNetwork": {"hostNetwork": True},
    "hostPID": {"hostPID": True},
    "hostIPC": {"hostIPC": True},
    "hostPath": {"volumes": [HOST_PATH]},
    "nfs": {"volumes": [NFS]},
    "hostPort": {"container": {"ports": [{"containerPort": 80, "hostPort": 80}]}},
    "other RuntimeClass": {"runtimeClassName": "host"},
    "privileged on the node": {
        "runtimeClassName": "host",
        "container": {"securityContext": {"privileged": True}},
    },
    "nodeName": {"nodeName": "node1"},
    "system priority": {"priorityClassName": "system-node-critical"},
    "hostPort of an init container": {
        "initContainers": [
            {"name": "first", "image": "busybox", "ports": [{"containerPort": 1, "hostPort": 1}]}
        ]
    },
}


@pytest.fixture(scope="module")
def guarded(installed: Ship) -> Iterator[Ship]:
    if not installed.running():
        installed.start()
    installed.add(tenant("guarded", members=[{"user": "dev-1", "role": "admin"}]))
    yield installed
    installed.end("guarded")


@contextlib.contextmanager
def without(ship: Ship, policy: str) -> Iterator[None]:
    """The cluster while a policy is not bound; API servers forget and learn of it a moment later."""
    kept = ship.plane.json("get", BINDINGS, policy)
    ship.plane.kubectl("delete", BINDINGS, policy)
    try:
        yield
    finally:
        for field in ("uid", "resourceVersion", "creationTimestamp", "generation", "managedFields"):
            kept["metadata"].pop(field, None)
        ship.plane.apply(kept)


def create(ship: Ship, text: str) -> Any:
    return ship.plane.try_kubectl("create", "-n", "guarded", "--dry-run=server", "-f", "-", stdin=text)


def let(ship: Ship, text: str, way: str = "") -> None:
    """Wait until an object may be made."""
    eventually(lambda: (way, create(ship, text)), lambda it: it[1].returncode == 0)


def closed(ship: Ship, text: str) -> None:
    """Wait until it may not."""
    eventually(lambda: create(ship, text), lambda done: done.returncode != 0)


def test_each_way_to_the_node_is_refused_and_open_without_its_policy(guarded: Ship) -> None:
    pods = {way: pod(**json.loads(json.dumps(spec))) for way, spec in WAYS.items()}
    for way, text in pods.items():
        assert "orlop-tenants-pods" in create(guarded, text).stderr, way
    with without(guarded, "orlop-tenants-pods"):
        for way, text in pods.items():
            let(guarded, text, way)
        # And nobody gets into a new tenant meanwhile.
        guarded.add(tenant("late", members=[{"user": "dev-1", "role": "admin"}]), phase="Pending")
        status = guarded.plane.json("get", "tenant", "late")["status"]
        assert "ValidatingAdmissionPolicyBinding orlop-tenants-pods" in status["message"]
        assert not guarded.plane.names("rolebindings", "-n", "late")
    guarded.settled("late")
    assert guarded.plane.names("rolebindings", "-n", "late") == {"orlop:admin"}
    for text in pods.values():
        closed(guarded, text)
    guarded.end("late")


def test_a_pod_in_its_vm_is_let_and_may_be_privileged_there(guarded: Ship) -> None:
    harmless = {
        "container": {"securityContext": {"privileged": True}},
        "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "projected": {"sources": []}}],
    }
    for spec in ({}, {"runtimeClassName": "vm"}, harmless):
        done = guarded.plane.try_kubectl(
            "create", "-n", "guarded", "--dry-run=server", "-o", "json", "-f", "-", stdin=pod(**spec)
        )
        assert done.returncode == 0, done.stderr
        made = json.loads(done.stdout)["spec"]
        assert made["runtimeClassName"] == "vm"
        assert made["overhead"], "what a VM needs is counted for a pod that named no class, too"


def test_pods_of_nobodys_namespaces_are_not_touched(guarded: Ship) -> None:
    for way in ("hostNetwork", "hostPath", "hostPID"):
        done = guarded.plane.try_kubectl("create", "--dry-run=server", "-f", "-", stdin=pod(**WAYS[way]))
        assert done.returncode == 0, done.stderr


def service(**spec: Any) -> str:
    made = {"ports": [{"port": 80}], "selector": {"a": "b"}, **spec}
    return json.dumps({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": made})


def test_services_take_no_addresses_and_no_ports_of_nodes(guarded: Ship) -> None:
    balanced = {"type": "LoadBalancer"}
    ways = [
        service(externalIPs=["192.0.2.7"]),
        service(type="NodePort"),
        service(**balanced, loadBalancerClass="example.org/other"),
        service(**balanced, ports=[{"port": 80, "nodePort": 30080}]),
        service(**balanced, externalTrafficPolicy="Local"),
    ]
    for text in ways:
        assert "orlop-tenants-services" in create(guarded, text).stderr
    for text in (service(), service(**balanced), service(**balanced, allocateLoadBalancerNodePorts=True)):
        assert create(guarded, text).returncode == 0
    with without(guarded, "orlop-tenants-services"):
        for text in ways:
            let(guarded, text)
    closed(guarded, ways[0])


def test_whose_a_namespace_is_says_only_who_may_write_tenants(guarded: Ship) -> None:
    """Not even somebody who may write namespaces."""
    one = guarded.plane
    one.kubectl("create", "clusterrole", "landlord", "--verb=*", "--resource=namespaces")
    one.kubectl("create", "clusterrolebinding", "landlord", "--clusterrole=landlord", "--user=landlord")
    landlord = ["--as=landlord", "--dry-run=server"]
    labels = ["orlop.dev/tenant-", "orlop.dev/tenant=other", "orlop.dev/runtime-class=host"]
    changes = [("label", "namespace", "guarded", "--overwrite", label) for label in labels]
    changes.append(("annotate", "namespace", "guarded", "--overwrite", "orlop.dev/tenant-uid=1"))
    about = {"name": "fake", "labels": {"orlop.dev/tenant": "guarded"}}
    fake = {"kind": "Namespace", "apiVersion": "v1", "metadata": about}
    eventually(lambda: one.try_kubectl("label", "namespace", "guarded", "a=b", *landlord).returncode == 0)
    for change in changes:
        assert "only who may write Tenants" in one.refused(*change, *landlord)
    assert "only who may write Tenants" in one.refused("create", "-f", "-", *landlord, stdin=json.dumps(fake))
    with without(guarded, "orlop-tenants-namespaces"):
        for change in changes:
            eventually(lambda change=change: one.try_kubectl(*change, *landlord).returncode == 0)  # type: ignore[misc]
    eventually(lambda: one.try_kubectl(*changes[0], *landlord), lambda done: done.returncode != 0)
    one.kubectl("delete", "clusterrole,clusterrolebinding", "landlord")


def test_without_their_policy_the_operators_objects_are_the_admins(guarded: Ship) -> None:
    boss = guarded.member("guarded", "dev-1")
    away = ("delete", "networkpolicy", "orlop-tenant", "-n", "guarded", "--dry-run=server")
    eventually(
        lambda: boss.try_kubectl(*away), lambda done: "belongs to the tenant's operator" in done.stderr
    )
    with without(guarded, "orlop-tenants-objects"):
        eventually(lambda: boss.try_kubectl(*away), lambda done: done.returncode == 0)
    eventually(lambda: boss.try_kubectl(*away), lambda done: done.returncode != 0)
