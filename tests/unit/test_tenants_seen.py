"""What a node remembers of the API's objects, and what a member's annotation is good for."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orlop.tenantnet.model import Balanced, Floating
from orlop.tenants import following, seen
from orlop.tenants.allocation import Book, GivenAddress, Kind
from orlop.tenants.following import TenantSeen
from orlop.tenants.seen import (
    EndpointSeen,
    NetworkSeen,
    NodeSeen,
    PodSeen,
    ServicePort,
    ServiceSeen,
    SliceSeen,
)

NODES = {
    "one": NodeSeen(address="192.0.2.11", aliases="10.64.1.128/25"),
    "two": NodeSeen(address="192.0.2.12", aliases="10.64.2.128/25"),
}
NETWORK = NetworkSeen(
    name="blue", vni=42, cidr="10.0.0.0/16", blocks=(("one", "10.0.1.0/24"), ("two", "10.0.2.0/24"))
)


def pod(name: str, alias: str, address: str, node: str = "two", **more: Any) -> PodSeen:
    return PodSeen(namespace="blue", name=name, alias=alias, address=address, node=node, **more)


def elsewhere(*pods: PodSeen) -> tuple[tuple[str, str], ...]:
    found = following.local(TenantSeen(network=NETWORK, pods=pods), NODES, "one")
    assert found is not None
    return found.elsewhere


def test_a_node_is_told_of_the_addresses_that_it_answers_for() -> None:
    """By the book alone, and of its own tenant; pods elsewhere are reached inside the network."""
    here, far = (
        pod("mine", "10.64.1.130", "10.0.1.2", "one", uid="m"),
        pod("a", "10.64.2.130", "10.0.2.2", uid="a"),
    )
    web = ServiceSeen(namespace="blue", name="web", uid="w", sources=("192.0.2.0/24",))

    def given(kind: Kind, uid: str, node: str, tenant: str = "blue", pod: str = "") -> GivenAddress:
        about = {"tenant": tenant, "namespace": "blue", "name": uid, "uid": uid}
        return GivenAddress(kind=kind, node=node, pod=pod, **about)

    book = Book(
        given={
            "203.0.113.1": given("FloatingAddress", "f", "one", pod="m"),
            "203.0.113.2": given("FloatingAddress", "g", "two", pod="a"),
            "203.0.113.3": given("FloatingAddress", "h", "one", pod="m", tenant="green"),
            "203.0.113.4": given("FloatingAddress", "i", "one"),
            "203.0.113.5": given("Service", "w", "one"),
            "203.0.113.6": given("Service", "x", "one"),
            "203.0.113.7": given("Service", "w", "one", tenant="green"),
        }
    )
    tenant = TenantSeen(network=NETWORK, pods=(here, far), services=(web,))
    found = following.local(tenant, NODES, "one", book)
    assert found is not None
    assert found.floating == (Floating(address="203.0.113.1", pod="m"),)
    assert found.balanced == (Balanced(address="203.0.113.5", sources=("192.0.2.0/24",)),)
    assert found.outside == ("203.0.113.1", "203.0.113.5")
    assert found.elsewhere == (("10.64.2.130", "10.0.2.2"), ("203.0.113.2", "10.0.2.2"))
    assert found.inside.outside == ()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (None, None),
        ([], None),
        ([" 10.0.0.1/8 "], ("10.0.0.0/8",)),
        (["fd00::/64"], ()),
        (["all", "0.0.0.0/0"], ("0.0.0.0/0",)),
    ],
)
def test_who_may_call_from_outside(written: list[str] | None, meant: tuple[str, ...] | None) -> None:
    about = {"name": "web", "namespace": "blue"}
    found = seen.service({"metadata": about, "spec": {"loadBalancerSourceRanges": written}})
    assert found.sources == meant


def test_pods_of_other_nodes_are_known_by_their_aliases() -> None:
    mine = pod("mine", "10.64.1.130", "10.0.1.2", "one")
    assert elsewhere(pod("a", "10.64.2.130", "10.0.2.2"), mine) == (("10.64.2.130", "10.0.2.2"),)


@pytest.mark.parametrize(
    ("alias", "address"),
    [
        ("10.64.2.130", "10.0.1.2"),  # in the network, and on another node than the pod
        ("10.64.2.130", "10.0.2.0"),
        ("10.64.2.130", "10.0.2.255"),
        ("10.64.2.130", "192.0.2.11"),
        ("10.64.2.130", "169.254.169.254"),
        ("10.64.2.130", "10.64.2.153"),
        ("10.64.2.130", "10.0.2.2/8"),
        ("10.64.2.130", "10.0.2.02"),
        ("10.64.2.130", "10.0.2.\u0662"),
        ("10.64.2.130", ""),
        ("10.64.1.130", "10.0.2.2"),  # an alias of another node
        ("10.96.0.1", "10.0.2.2"),
        ("", "10.0.2.2"),
    ],
)
def test_an_annotation_that_cannot_be_true_is_none(alias: str, address: str) -> None:
    assert elsewhere(pod("a", alias, address)) == ()


def test_an_alias_is_the_newest_pods() -> None:
    old = pod("old", "10.64.2.130", "10.0.2.2", created="2026-01-01T00:00:00Z")
    new = pod("new", "10.64.2.130", "10.0.2.3", created="2026-01-01T00:00:01Z")
    done = pod("done", "10.64.2.130", "10.0.2.4", created="2026-01-01T00:00:02Z", ended=True)
    assert elsewhere(new, done, old) == (("10.64.2.130", "10.0.2.3"),)


def test_a_service() -> None:
    read = seen.service(
        {
            "metadata": {"name": "web", "namespace": "blue", "annotations": {"orlop.dev/a": "b", "c": "d"}},
            "spec": {
                "clusterIP": "10.96.7.7",
                "clusterIPs": ["10.96.7.7", "fd00::1"],
                "ports": [{"port": 80, "targetPort": "http"}, {"port": 70000}],
                "sessionAffinity": "ClientIP",
                "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "internalTrafficPolicy": "Local",
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.99"}]}},
        }
    )
    assert (read.addresses, read.ports) == (("10.96.7.7",), (ServicePort(port=80),))
    assert (read.affinity, read.local_inside, read.balanced) == (60, True, ("192.0.2.99",))
    assert read.annotations == (("orlop.dev/a", "b"),)
    none = {"clusterIP": "None", "clusterIPs": ["None"]}
    headless = seen.service({"metadata": {"name": "db"}, "spec": none})
    assert (headless.headless, headless.addresses) == (True, ())


def test_a_slice() -> None:
    document = {
        "metadata": {"name": "web-1", "namespace": "blue", "labels": {"kubernetes.io/service-name": "web"}},
        "addressType": "IPv4",
        "ports": None,
        "endpoints": [
            {"addresses": ["10.64.2.130"], "targetRef": {"kind": "Pod", "name": "a"}},
            {"addresses": ["10.64.2.131"], "conditions": {"ready": False, "serving": True}},
            {"addresses": []},
        ],
    }
    read = seen.slice_of(document)
    assert read is not None
    assert read.endpoints == (
        EndpointSeen(address="10.64.2.130", pod="a"),
        EndpointSeen(address="10.64.2.131", ready=False, serving=True),
    )
    assert seen.slice_of({**document, "addressType": "IPv6"}) is None


@pytest.mark.parametrize("spec", [None, {"ports": "80"}, {"clusterIPs": [1]}, {"ports": [{"protocol": "x"}]}])
def test_what_is_no_service_is_refused(spec: Any) -> None:
    with pytest.raises(msgspec.ValidationError):
        seen.service({"metadata": {"name": "web"}, "spec": spec})


def service(name: str = "web", **spec: Any) -> ServiceSeen:
    ports = (ServicePort(port=80, name="http"), ServicePort(port=53, name="dns", protocol="UDP"))
    return ServiceSeen(
        namespace="blue", name=name, uid=name, **{"addresses": ("10.96.7.7",), "ports": ports, **spec}
    )


def endpoint(address: str, node: str = "two", **state: bool) -> EndpointSeen:
    return EndpointSeen(address=address, node=node, **state)


def slices(*endpoints: EndpointSeen, name: str = "web") -> SliceSeen:
    ports = (ServicePort(port=8080, name="http"), ServicePort(port=5353, name="dns", protocol="UDP"))
    return SliceSeen(namespace="blue", name=f"{name}-1", service=name, ports=ports, endpoints=endpoints)


PODS = (
    pod("near", "10.64.1.130", "10.0.1.2", "one"),
    pod("far", "10.64.2.130", "10.0.2.2"),
    pod("other", "10.64.2.131", "10.0.2.3"),
)
NEAR, FAR, OTHER = (one.alias for one in PODS)


def leads(one: ServiceSeen, *found: EndpointSeen, here: str = "one") -> list[tuple[str, int]]:
    """Where the Service's first port leads on a node."""
    tenant = TenantSeen(network=NETWORK, pods=PODS, services=(one,), slices=(slices(*found),))
    local = following.local(tenant, NODES, here)
    assert local is not None
    assert {(each.address, each.protocol, each.port) for each in local.services} == {
        ("10.96.7.7", "tcp", 80),
        ("10.96.7.7", "udp", 53),
    }
    return list(local.services[0].endpoints)


def test_a_service_leads_to_its_pods_by_their_addresses_in_the_network() -> None:
    found = (endpoint(FAR), endpoint(NEAR, "one"))
    assert leads(service(), *found) == [("10.0.1.2", 8080), ("10.0.2.2", 8080)]
    assert leads(service(local_inside=True), *found) == [("10.0.1.2", 8080)]
    assert leads(service(local_inside=True), endpoint(FAR)) == []


def test_endpoints_that_are_not_ready_or_end() -> None:
    waiting = endpoint(FAR, ready=False, serving=False)
    ending = endpoint(OTHER, ready=False, serving=True, terminating=True)
    assert leads(service(), endpoint(NEAR, "one"), waiting, ending) == [("10.0.1.2", 8080)]
    assert leads(service(), waiting, ending) == [("10.0.2.3", 8080)]
    assert leads(service(unready=True), waiting) == [("10.0.2.2", 8080)]


@pytest.mark.parametrize(
    "address",
    ["10.64.2.200", "10.64.1.200", "10.64.2.130 }", "nobody", "fe80::1", "10.64.2.0130", ""],
)
def test_addresses_that_are_none_of_the_tenants_pods_lead_nowhere(address: str) -> None:
    assert leads(service(), endpoint(address)) == []


def test_an_address_outside_is_for_the_guards_to_judge() -> None:
    assert leads(service(), endpoint("198.51.100.7")) == [("198.51.100.7", 8080)]


def test_other_kinds_of_services_have_no_address_in_the_router() -> None:
    tenant = TenantSeen(
        network=NETWORK,
        services=(
            service(headless=True, addresses=()),
            service(type="ExternalName", addresses=("10.96.7.8",)),
            service(addresses=("fd00::1",)),
        ),
    )
    found = following.local(tenant, NODES, "one")
    assert found is not None
    assert found.services == ()


def test_the_oldest_services_have_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orlop.tenants.frontends.ELEMENTS", 4)
    every = [
        service(f"s{number}", addresses=(f"10.96.7.{number}",), created=f"2026-01-0{9 - number}T00:00:00Z")
        for number in range(1, 5)
    ]
    found = following.local(TenantSeen(network=NETWORK, services=tuple(every)), NODES, "one")
    assert found is not None
    assert {one.address for one in found.services} == {"10.96.7.4", "10.96.7.3"}
