"""What a tenant's DNS tells, of what the API says."""

from __future__ import annotations

from pathlib import Path

import pytest

from orlop.tenantdns.names import Around, TenantNames
from orlop.tenantdns.zone import NamedEndpoint, NamedPod, NamedPort, NamedService, TenantContents
from orlop.tenants import named, nodeagent
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

NODES = {"one": NodeSeen(address="192.0.2.11", aliases="10.64.1.128/25")}
NETWORK = NetworkSeen(name="blue", vni=42, cidr="10.0.0.0/16", blocks=(("one", "10.0.1.0/24"),))
PORT = ServicePort(port=5432, name="sql")
SLICE = SliceSeen(
    namespace="shop",
    name="db-1",
    service="db",
    ports=(PORT,),
    endpoints=(
        EndpointSeen(address="10.64.1.130", hostname="db-0", pod="db-0"),
        EndpointSeen(address="10.64.1.131", hostname="db-1", ready=False),
        EndpointSeen(address="198.51.100.7"),
    ),
)
PODS = (
    PodSeen(namespace="shop", name="db-0", node="one", alias="10.64.1.130", address="10.0.1.2"),
    # What a member wrote, and cannot be.
    PodSeen(namespace="shop", name="liar", node="one", alias="10.64.1.132", address="192.0.2.11"),
)
DB = ServiceSeen(namespace="shop", name="db", headless=True, ports=(PORT,))
WEB = ServiceSeen(namespace="shop", name="web", addresses=("10.96.7.1",), ports=(PORT,))
OUT = ServiceSeen(namespace="shop", name="out", type="ExternalName", external_name="pay.example")


def seen(*services: ServiceSeen, network: NetworkSeen = NETWORK) -> TenantSeen:
    return TenantSeen(network=network, namespaces=("shop",), pods=PODS, services=services, slices=(SLICE,))


def test_endpoints_are_told_by_their_addresses_in_the_network() -> None:
    found = named.contents(seen(DB, WEB, OUT), NODES, ("10.96.0.0/16",))
    sql = NamedPort(name="sql", number=5432)
    db, web, out = found.services
    assert db.endpoints == (
        NamedEndpoint(address="10.0.1.2", hostname="db-0", ports=(sql,)),
        NamedEndpoint(address="198.51.100.7", ports=(sql,)),
    )
    assert web == NamedService(namespace="shop", name="web", addresses=("10.96.7.1",), ports=(sql,))
    assert out.external == "pay.example"
    assert found.pods == (NamedPod(namespace="shop", address="10.0.1.2", alias="10.64.1.130"),)
    assert found.ranges == ("10.0.0.0/16", "10.96.0.0/16")


def test_endpoints_that_are_not_ready_are_told_when_the_service_says_so() -> None:
    eager = ServiceSeen(namespace="shop", name="db", headless=True, unready=True)
    (db,) = named.contents(seen(eager), NODES, ()).services
    assert [one.hostname for one in db.endpoints] == ["db-0", "db-1", ""]


class View:
    """What the API server has told."""

    def __init__(self) -> None:
        self.tenants: dict[str, TenantSeen] = {}

    def contents(self, tenant: str) -> TenantContents:
        return named.contents(self.tenants[tenant], NODES, ())


@pytest.fixture
def dns(tmp_path: Path) -> TenantNames:
    return TenantNames(Around(addresses=("10.96.0.10",), configuration=tmp_path / "none"))


def test_tenants_come_and_go_and_change(dns: TenantNames, caplog: pytest.LogCaptureFixture) -> None:
    view = View()
    view.tenants = {"blue": seen(WEB)}
    known = nodeagent.tell(view, dns, {})
    first = dns.zone("blue")
    assert first is not None
    known = nodeagent.tell(view, dns, known)
    assert dns.zone("blue") is first
    # A domain that an older schema let in is none, and names go on.
    wrong = NetworkSeen(name="blue", vni=42, cidr="10.0.0.0/16", dns="x" * 64)
    view.tenants = {"blue": seen(WEB, network=wrong)}
    known = nodeagent.tell(view, dns, known)
    assert dns.zone("blue") not in (None, first)
    assert "no domain of its own" in caplog.text
    view.tenants = {}
    nodeagent.tell(view, dns, known)
    assert dns.zone("blue") is None
