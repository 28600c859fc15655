"""What the trace says of a cluster, from the API's documents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from orlop.errors import Internal, InvalidArgument, NotFound
from orlop.tenantnet import rules, tables
from orlop.tenantnet.guards import GUARDS
from orlop.tenantnet.journey import REVERSE_PATH
from orlop.tenantnet.model import Ground, LocalNetwork
from orlop.tenantnet.verdicts import Packet, PacketFilter
from orlop.tenants.allocation import Book, GivenAddress
from orlop.tenants.api import NAMESPACES, NETWORKS, NODES, PODS, POLICIES, SERVICES, SLICES
from orlop.tenants.picture import Picture
from orlop.tenants.tracing import TraceAnswer, is_name, trace

CLOSED = ("10.64.0.0/16", "10.96.0.0/16")


def node(number: int) -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"node{number}",
            "annotations": {"orlop.dev/aliases": f"10.64.{number}.128/25"},
        },
        "spec": {"podCIDR": f"10.64.{number}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": f"192.0.2.1{number}"}]},
    }


def namespace(name: str, tenant: str = "") -> dict[str, Any]:
    labels = {"kubernetes.io/metadata.name": name, **({"orlop.dev/tenant": tenant} if tenant else {})}
    return {"metadata": {"name": name, "labels": labels}}


def network(name: str, vni: int, **egress: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name},
        "spec": {
            "vni": vni,
            "cidr": "10.0.0.0/16",
            "namespaces": [name],
            "egress": {"allow": ["0.0.0.0/0"], "deny": ["169.254.0.0/16"], **egress},
        },
        "status": {"blocks": {"node1": "10.0.1.0/24", "node2": "10.0.2.0/24"}},
    }


def pod(namespace: str, name: str, number: int, alias: str, address: str = "", **more: Any) -> dict[str, Any]:
    ready = more.pop("ready", True)
    return {
        "metadata": {
            "namespace": namespace,
            "name": name,
            "uid": f"{namespace}-{name}",
            "labels": {"app": name},
            "annotations": {"orlop.dev/tenant-address": address} if address else {},
        },
        "spec": {"nodeName": f"node{number}", "containers": [], **more},
        "status": {
            "phase": "Running",
            "podIP": alias,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def service(name: str, address: str, **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": "blue", "name": name},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": address,
            "clusterIPs": [address],
            "ports": [{"port": 80, "protocol": "TCP"}],
            **spec,
        },
        "status": {},
    }


def endpoints(name: str, *found: tuple[str, str, bool]) -> dict[str, Any]:
    return {
        "metadata": {
            "namespace": "blue",
            "name": f"{name}-1",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": "IPv4",
        "ports": [{"port": 8080, "protocol": "TCP"}],
        "endpoints": [
            {
                "addresses": [address],
                "conditions": {"ready": ready},
                "targetRef": {"kind": "Pod", "name": target},
            }
            for address, target, ready in found
        ],
    }


def picture(policies: Sequence[dict[str, Any]] = ()) -> Picture:
    found = {
        NODES: [node(1), node(2)],
        NAMESPACES: [namespace("blue", "blue"), namespace("green", "green"), namespace("plain")],
        NETWORKS: [network("blue", 42), network("green", 43, allow=["203.0.113.1/32"])],
        PODS: [
            pod("blue", "web", 1, "10.64.1.132", "10.0.1.2"),
            pod("blue", "db", 1, "10.64.1.133", "10.0.1.3", ready=False),
            pod("blue", "far", 2, "10.64.2.132", "10.0.2.2"),
            pod("blue", "new", 1, ""),
            # Its annotation says what is in no block of its node: no address of the network.
            pod("blue", "liar", 1, "10.64.1.140", "10.0.2.9"),
            pod("green", "web", 1, "10.64.1.153", "10.0.1.2"),
            pod("plain", "one", 1, "10.64.1.5"),
            pod("plain", "two", 2, "10.64.2.5"),
            pod("plain", "host", 1, "192.0.2.11", hostNetwork=True),
        ],
        SERVICES: [
            service("none", "10.96.0.9"),
            service("some", "10.96.0.8"),
            service("outer", "", type="ExternalName", externalName="example.org", ports=[]),
            service("list", "None", clusterIPs=["None"]),
        ],
        SLICES: [
            endpoints("none", ("10.64.1.133", "db", False)),
            endpoints("some", ("10.64.2.132", "far", True), ("10.64.1.133", "db", False)),
            endpoints("list", ("10.64.2.132", "far", True)),
        ],
        POLICIES: list(policies),
    }
    given = GivenAddress(
        tenant="green",
        kind="FloatingAddress",
        namespace="green",
        name="web",
        uid="f",
        pod="green-web",
        node="node1",
    )
    return Picture(found, CLOSED, 14789, Book(given={"192.0.2.240": given}))


def asked(source: str, destination: str, port: int = 80) -> TraceAnswer:
    return trace(picture(), source, destination, "tcp", port)


@pytest.mark.parametrize(
    ("source", "destination", "last"),
    [
        ("blue/web", "blue/far", "pod blue/far"),
        ("blue/web", "10.0.2.2", "pod blue/far"),
        ("blue/web", "10.64.1.133", "pod blue/db"),
        ("blue/web", "198.51.100.1", "outside"),
        ("blue/web", "list", "pod blue/far"),
        ("blue/web", "svc/blue/some", "pod blue/far"),
        ("blue/web", "10.96.0.8", "pod blue/far"),
        ("green/web", "203.0.113.1", "outside"),
        ("plain/host", "svc/blue/some", "pod blue/far"),
        ("blue/web", "192.0.2.240", "pod green/web"),
        ("blue/far", "192.0.2.240", "pod green/web"),
        ("plain/host", "192.0.2.240", "pod green/web"),
        ("plain/host", "blue/web", "pod blue/web"),
        ("plain/one", "plain/two", "pod plain/two"),
        ("plain/one", "node/node1", "node node1"),
    ],
)
def test_what_is_reached(source: str, destination: str, last: str) -> None:
    answer = asked(source, destination)
    assert (answer.reachable, answer.stopped_by, answer.steps[-1].where) == (True, "", last)


@pytest.mark.parametrize(
    ("source", "destination", "guard"),
    [
        ("blue/web", "green/web", "cluster"),
        ("blue/web", "plain/two", "cluster"),
        ("blue/web", "node/node2", "nodes"),
        ("blue/web", "169.254.169.254", "link-local"),
        ("blue/web", "10.0.77.7", "own-range"),
        ("blue/web", "10.0.1.1", "router"),
        ("green/web", "198.51.100.1", "egress-allow"),
        ("plain/one", "blue/web", "foreign-pods"),
        ("plain/one", "blue/far", "foreign-pods"),
        ("plain/one", "svc/blue/some", "foreign-pods"),
        ("green/web", "svc/blue/some", "cluster"),
        ("blue/web", "10.96.0.9", "no-endpoint"),
        ("blue/web", "10.0.1.99", "nobody"),
        ("blue/web", "blue/new", "pod"),
        ("blue/new", "blue/web", "pod"),
        ("blue/web", "svc/blue/none", "endpoint"),
        ("blue/web", "svc/blue/outer", "Service"),
    ],
)
def test_what_stops_it(source: str, destination: str, guard: str) -> None:
    answer = asked(source, destination)
    assert (answer.reachable, answer.stopped_by) == (False, guard)
    assert answer.reason


def test_guards_behind_the_first_are_told() -> None:
    behind = asked("blue/web", "green/web").behind
    assert [one.stopped_by for one in behind] == ["between-tenants", "foreign-pods"]


def test_who_is_not_ready_is_named() -> None:
    assert "pod db" in asked("blue/web", "svc/blue/none").reason
    assert "not ready" in asked("blue/web", "blue/db").steps[-1].what


def test_a_port_that_a_service_does_not_have_is_named() -> None:
    assert "80/tcp" in asked("blue/web", "svc/blue/none", 81).reason


def test_an_address_that_a_member_made_up_is_not_believed() -> None:
    assert "the cluster's own network" in asked("blue/liar", "blue/web").steps[0].what


@pytest.mark.parametrize(
    ("source", "destination"),
    [("blue/gone", "blue/web"), ("blue/web", "svc/blue/gone"), ("blue/web", "node/9")],
)
def test_what_is_not_there(source: str, destination: str) -> None:
    with pytest.raises(NotFound):
        asked(source, destination)


def test_what_cannot_be_read() -> None:
    with pytest.raises(InvalidArgument, match="NAMESPACE/POD"):
        asked("web", "blue/web")


def test_names_of_services_and_of_the_world() -> None:
    assert is_name(picture(), "blue", "example.org")
    for name in ("list", "list.blue", "list.blue.svc", "list.blue.svc.cluster.local", "10.0.0.1", "blue/web"):
        assert not is_name(picture(), "blue", name)


def policy(name: str, namespace: str = "plain", **spec: Any) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": {}, **spec}}


@pytest.mark.parametrize(
    ("policies", "stopped_by"),
    [
        ([policy("shut", policyTypes=["Ingress"])], "NetworkPolicy plain/shut"),
        ([policy("shut", policyTypes=["Egress"])], "NetworkPolicy plain/shut"),
        ([policy("shut", "other", policyTypes=["Ingress"])], ""),
        ([policy("others", podSelector={"matchLabels": {"app": "three"}}, policyTypes=["Ingress"])], ""),
        ([policy("in", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "one"}}}]}])], ""),
        (
            [policy("in", ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "six"}}}]}])],
            "NetworkPolicy plain/in",
        ),
        (
            [
                policy("shut", policyTypes=["Ingress"]),
                policy("in", ingress=[{"ports": [{"protocol": "TCP", "port": 70, "endPort": 90}]}]),
            ],
            "",
        ),
        (
            [policy("in", ingress=[{"ports": [{"protocol": "UDP", "port": 80}]}])],
            "NetworkPolicy plain/in",
        ),
        (
            [
                policy(
                    "out",
                    policyTypes=["Egress"],
                    egress=[{"to": [{"ipBlock": {"cidr": "10.64.0.0/16", "except": ["10.64.2.0/24"]}}]}],
                )
            ],
            "NetworkPolicy plain/out",
        ),
        (
            [
                policy(
                    "in",
                    ingress=[
                        {
                            "from": [
                                {
                                    "namespaceSelector": {
                                        "matchExpressions": [
                                            {
                                                "key": "kubernetes.io/metadata.name",
                                                "operator": "In",
                                                "values": ["plain"],
                                            },
                                            {"key": "orlop.dev/tenant", "operator": "DoesNotExist"},
                                        ]
                                    }
                                }
                            ]
                        }
                    ],
                )
            ],
            "",
        ),
    ],
)
def test_policies_of_the_clusters_own_network(policies: list[dict[str, Any]], stopped_by: str) -> None:
    answer = trace(picture(policies), "plain/one", "plain/two", "tcp", 80)
    assert answer.stopped_by == stopped_by


def test_every_guard_has_its_reason() -> None:
    ground = Ground(address="192.0.2.11", aliases="10.64.1.128/25", dns=("10.96.0.10",))
    tenant = LocalNetwork(name="blue", vni=42, cidr="10.0.0.0/16", block="10.0.1.0/24")
    every = PacketFilter(tables.text((*rules.router(tenant, ground, ()), *rules.node(ground)))).guards
    assert every | {REVERSE_PATH} == GUARDS.keys()


def test_a_rule_that_is_not_understood_is_an_error() -> None:
    text = "table ip x {\n chain c {\n type filter hook forward priority filter\n ip ttl 1 accept\n }\n}\n"
    with pytest.raises(Internal, match="ip ttl 1"):
        PacketFilter(text).passes(("ip",), "forward", Packet())
