"""``orlop tenants trace`` as an administrator calls it, on a real API server. No packet is sent here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.tenants_api.conftest import Ship, pod, tenant

NODES = {"machine8": ("192.0.2.18", "10.64.8.128/25"), "machine9": ("192.0.2.19", "10.64.9.128/25")}
PODS = {
    ("amber", "one"): ("machine8", "10.64.8.131", "10.0.0.2"),
    ("amber", "two"): ("machine9", "10.64.9.131", "10.0.1.2"),
    ("cyan", "one"): ("machine8", "10.64.8.132", "10.0.0.2"),
}


def _patch(ship: Ship, kind: str, name: str, status: dict[str, Any], *more: str) -> None:
    words = ["--subresource=status", "--type=merge", "-p", json.dumps({"status": status}), *more]
    ship.plane.kubectl("patch", kind, name, *words)


@pytest.fixture
def placed(ship: Ship) -> Iterator[Ship]:
    """Two tenants with pods as kubelets and agents would have told of them."""
    ship.add(tenant("amber"), tenant("cyan"))
    for name, (address, aliases) in NODES.items():
        about = {"name": name, "annotations": {"orlop.dev/aliases": aliases}}
        ship.plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": about})
        _patch(ship, "node", name, {"addresses": [{"type": "InternalIP", "address": address}]})
    blocks = {name: f"10.0.{number}.0/24" for number, name in enumerate(NODES)}
    for name in ("amber", "cyan"):
        _patch(ship, "network", name, {"blocks": blocks})
    for (namespace, name), (node, alias, address) in PODS.items():
        document = json.loads(pod(name, runtimeClassName="vm"))
        document["metadata"].update(namespace=namespace, annotations={"orlop.dev/tenant-address": address})
        ship.plane.apply(document)
        binding = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name}}
        binding["target"] = {"apiVersion": "v1", "kind": "Node", "name": node}
        place = f"/api/v1/namespaces/{namespace}/pods/{name}/binding"
        ship.plane.kubectl("create", "--raw", place, "-f", "-", stdin=json.dumps(binding))
        told = {"phase": "Running", "podIP": alias, "podIPs": [{"ip": alias}]}
        _patch(ship, "pod", name, told, "-n", namespace)
    yield ship
    for namespace, name in PODS:
        words = ("pod", name, "-n", namespace, "--force", "--grace-period=0")
        ship.plane.kubectl("delete", *words)
    ship.plane.kubectl("delete", "node", *NODES)
    ship.end("amber", "cyan")


@pytest.mark.parametrize(
    ("words", "code", "by"),
    [
        (("amber/one", "amber/two", "80"), 0, None),
        (("amber/one", "198.51.100.1", "53/udp"), 0, None),
        (("amber/one", "cyan/one"), 1, "cluster"),
        (("amber/one", "node/machine9", "10250"), 1, "nodes"),
        (("amber/one", "kubernetes.default", "443"), 1, "endpoint"),
    ],
)
def test_the_administrator_is_told(placed: Ship, words: tuple[str, ...], code: int, by: str | None) -> None:
    closed = ("--closed", "10.64.0.0/16", "--closed", "10.96.0.0/16")
    done = placed.plane.orlop("trace", *words, *closed, "--format", "json")
    assert done.returncode == code, done.stderr
    said = json.loads(done.stdout)
    assert (said["reachable"], said.get("stopped_by")) == (code == 0, by)
    done = placed.plane.orlop("trace", *words, *closed)
    assert done.returncode == code
    assert done.stdout.splitlines()[0].split() == ["WHERE", "WHAT"]
    assert (by or "reachable") in done.stdout


def test_services_are_closed_though_nobody_says_so(placed: Ship) -> None:
    """No DaemonSet of agents is here: the API server's own range of Services counts."""
    address = placed.plane.json("get", "service", "kubernetes", "-n", "default")["spec"]["clusterIP"]
    done = placed.plane.orlop("trace", "amber/one", address, "443")
    assert done.returncode == 1
    assert "not reachable: cluster" in done.stdout


def test_what_cannot_be_traced_is_said(placed: Ship) -> None:
    done = placed.plane.orlop("trace", "amber/none", "amber/two")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no pod amber/none" in done.stderr
    assert placed.plane.orlop("trace", "amber/one", "amber/two", "http").returncode == 2
