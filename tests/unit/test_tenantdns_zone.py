"""What a tenant's names stand for."""

from __future__ import annotations

import dns.name
import dns.reversename
import pytest
from dns.name import Name
from dns.rdatatype import CNAME, NS, PTR, SOA, SRV, TXT, A, RdataType
from hypothesis import given
from hypothesis import strategies as st

from orlop.errors import InvalidArgument
from orlop.tenantdns.zone import (
    LONGEST,
    NamedEndpoint,
    NamedPod,
    NamedPort,
    NamedService,
    TenantContents,
    Zone,
)

HTTP, METRICS = NamedPort(name="http", number=80), NamedPort(name="metrics", number=9100, protocol="UDP")
SHOP = TenantContents(
    namespaces=("shop", "shop-test"),
    services=(
        NamedService(namespace="shop", name="web", addresses=("10.96.7.1",), ports=(HTTP, METRICS)),
        NamedService(
            namespace="shop",
            name="db",
            endpoints=(
                NamedEndpoint(address="10.0.1.2", hostname="db-0", ports=(HTTP,)),
                NamedEndpoint(
                    address="10.0.2.2", hostname="db-1", ports=(NamedPort(name="http", number=81),)
                ),
                NamedEndpoint(address="10.0.2.3"),
            ),
        ),
        NamedService(namespace="shop", name="empty"),
        NamedService(namespace="shop", name="pay", external="pay.example"),
        NamedService(namespace="shop", name="odd", external="a..b"),
        NamedService(namespace="bank", name="web", addresses=("10.96.7.9",), ports=(HTTP,)),
    ),
    pods=(
        NamedPod(namespace="shop", address="10.0.1.2", alias="10.64.1.130"),
        NamedPod(namespace="shop", address="10.0.2.3"),
        NamedPod(namespace="bank", address="10.0.1.9", alias="10.64.1.139"),
    ),
    ranges=("10.0.0.0/16", "10.96.0.0/16", "10.64.0.0/16"),
)
ZONE = Zone(SHOP, own="blue.example", server=("10.96.0.10",))


def found(name: str, kind: RdataType = A, zone: Zone = ZONE) -> set[str] | None:
    """The records of a name as text; None when there is no such name."""
    there = zone.find(dns.name.from_text(name))
    assert there is not None, f"others are asked about {name}"
    if there.records is None:
        return None
    return {one.to_text() for one in there.records.get(kind, ())}


def reverse(address: str) -> str:
    return dns.reversename.from_address(address).to_text()


@pytest.mark.parametrize(
    ("name", "kind", "records"),
    [
        ("web.shop.svc.cluster.local", A, {"10.96.7.1"}),
        ("WEB.Shop.svc.CLUSTER.local", A, {"10.96.7.1"}),
        ("db.shop.svc.cluster.local", A, {"10.0.1.2", "10.0.2.2", "10.0.2.3"}),
        ("db-1.db.shop.svc.cluster.local", A, {"10.0.2.2"}),
        ("10-0-2-3.db.shop.svc.cluster.local", A, {"10.0.2.3"}),
        ("_http._tcp.web.shop.svc.cluster.local", SRV, {"0 100 80 web.shop.svc.cluster.local."}),
        ("_metrics._udp.web.shop.svc.cluster.local", SRV, {"0 100 9100 web.shop.svc.cluster.local."}),
        (
            "_http._tcp.db.shop.svc.cluster.local",
            SRV,
            {"0 50 80 db-0.db.shop.svc.cluster.local.", "0 50 81 db-1.db.shop.svc.cluster.local."},
        ),
        ("pay.shop.svc.cluster.local", CNAME, {"pay.example."}),
        ("10-0-1-2.shop.pod.cluster.local", A, {"10.0.1.2"}),
        ("10-64-1-130.shop.pod.cluster.local", A, {"10.0.1.2"}),
        ("dns-version.cluster.local", TXT, {'"1.1.0"'}),
        ("cluster.local", NS, {"ns.dns.cluster.local."}),
        ("ns.dns.cluster.local", A, {"10.96.0.10"}),
        (reverse("10.96.7.1"), PTR, {"web.shop.svc.cluster.local."}),
        (reverse("10.0.1.2"), PTR, {"db-0.db.shop.svc.cluster.local."}),
        (reverse("10.64.1.130"), PTR, {"db-0.db.shop.svc.cluster.local."}),
        (reverse("10.0.2.3"), PTR, {"10-0-2-3.db.shop.svc.cluster.local."}),
        ("web.shop.blue.example", A, {"10.96.7.1"}),
        ("_http._tcp.web.shop.blue.example", SRV, {"0 100 80 web.shop.blue.example."}),
    ],
)
def test_names_that_are_there(name: str, kind: RdataType, records: set[str]) -> None:
    assert found(name, kind) == records


@pytest.mark.parametrize(
    "name",
    [
        "svc.cluster.local",
        "pod.cluster.local",
        "dns.cluster.local",
        "shop.svc.cluster.local",
        "shop-test.pod.cluster.local",
        "shop.blue.example",
        "_tcp.web.shop.svc.cluster.local",
        "empty.shop.svc.cluster.local",
        "odd.shop.svc.cluster.local",
    ],
)
def test_names_with_nothing(name: str) -> None:
    assert found(name) == set()


@pytest.mark.parametrize(
    "name",
    [
        "web.bank.svc.cluster.local",
        "bank.svc.cluster.local",
        "_http._tcp.web.bank.svc.cluster.local",
        "10-0-1-9.bank.pod.cluster.local",
        "10-0-1-9.shop.pod.cluster.local",
        "web.bank.blue.example",
        "kubernetes.default.svc.cluster.local",
        "web.shop-test.svc.cluster.local",
        "none.web.shop.svc.cluster.local",
        "_ftp._tcp.web.shop.svc.cluster.local",
        "_http._udp.web.shop.svc.cluster.local",
        "a._http._tcp.web.shop.svc.cluster.local",
        "web.shop.cluster.local",
        "1-2-3-4.shop.pod.cluster.local",
        reverse("10.96.7.9"),
        reverse("10.96.0.1"),
        reverse("10.0.1.9"),
        reverse("10.64.1.139"),
    ],
)
def test_names_that_are_not_there(name: str) -> None:
    assert found(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "example",
        "local",
        ".",
        "xcluster.local",
        "blue.example.org",
        reverse("192.0.2.1"),
        "2.10.in-addr.arpa",
    ],
)
def test_names_that_others_know(name: str) -> None:
    assert ZONE.find(dns.name.from_text(name)) is None


def test_what_objects_say_wrongly_has_no_address() -> None:
    wrong = NamedService(
        namespace="shop", name="web", addresses=("fd00::1", "10.96.7.1", "no", "10.96.7.256")
    )
    zone = Zone(TenantContents(namespaces=("shop",), services=(wrong,)))
    assert found("web.shop.svc.cluster.local", zone=zone) == {"10.96.7.1"}


@pytest.mark.parametrize("domain", [".", "a..b", "a" * 64, "a." * 30])
def test_what_is_no_domain(domain: str) -> None:
    with pytest.raises(InvalidArgument):
        Zone(SHOP, own=domain)


def test_the_longest_names_there_can_be() -> None:
    label, own = "a" * 63, f"{'b' * 28}.{'c' * 28}"
    assert len(own) == LONGEST
    service = NamedService(
        namespace=label,
        name=label,
        endpoints=(NamedEndpoint(address="10.0.1.2", hostname=label, ports=(HTTP,)),),
    )
    contents = TenantContents(namespaces=(label,), services=(service,))
    for zone, domain in ((Zone(contents, domain=own), f"svc.{own}"), (Zone(contents, own=own), own)):
        assert found(f"{label}.{label}.{label}.{domain}", zone=zone) == {"10.0.1.2"}
        (target,) = found(f"_http._tcp.{label}.{label}.{domain}", SRV, zone) or ("",)
        assert target.split()[-1] == f"{label}.{label}.{label}.{domain}."


labels = st.text("abc-_.109", min_size=1, max_size=5).map(str.encode)


@given(
    st.lists(labels, max_size=6), st.sampled_from(["cluster.local", "svc.cluster.local", "pod.cluster.local"])
)
def test_no_name_is_of_a_namespace_that_is_not_the_tenants(inner: list[bytes], origin: str) -> None:
    """Whatever is asked: what has records is in one of the tenant's namespaces, or of the zone itself."""
    end = dns.name.from_text(origin).labels
    there = ZONE.find(Name((*inner, *end)))
    assert there is not None
    if there.records:
        kept = [label.lower() for label in (*inner, *end[:-3])]
        assert {b"shop", b"shop-test"} & set(kept) or len(kept) <= 2
    assert there.origin == dns.name.from_text("cluster.local")


names = st.from_regex("[a-z]([a-z0-9-]{0,4}[a-z0-9])?", fullmatch=True)
addresses = st.integers(1, 254).map("10.0.1.{}".format)
services = st.builds(
    NamedService,
    namespace=names,
    name=names,
    endpoints=st.lists(
        st.builds(NamedEndpoint, address=addresses, hostname=names | st.just(""), ports=st.just((HTTP,))),
        max_size=4,
    ).map(tuple),
)


@given(st.lists(services, max_size=5), st.lists(names, max_size=3))
def test_every_record_leads_to_an_address(made: list[NamedService], spaces: list[str]) -> None:
    """Each endpoint of a Service has its name; targets of SRV and PTR records are names with that address."""
    # As in the API, one name is one Service.
    unique = {(one.namespace, one.name): one for one in made}.values()
    zone = Zone(TenantContents(namespaces=tuple(spaces), services=tuple(unique)))
    for one in unique:
        name = f"{one.name}.{one.namespace}.svc.cluster.local"
        if one.namespace not in spaces:
            assert found(name, zone=zone) is None
            continue
        assert found(name, zone=zone) == {each.address for each in one.endpoints}
        for target in found(f"_http._tcp.{name}", SRV, zone) or ():
            assert found(target.split()[-1], zone=zone)
        for each in one.endpoints:
            (pointer,) = found(reverse(each.address), PTR, zone) or ("",)
            assert each.address in (found(pointer, zone=zone) or ())


def test_the_start_of_authority_is_above_the_name() -> None:
    for name in ("x.cluster.local", "x.blue.example", reverse("10.0.1.9")):
        there = ZONE.find(dns.name.from_text(name))
        assert there is not None
        assert there.records is None
        assert dns.name.from_text(name).is_subdomain(there.origin)
        assert ZONE.soa(there.origin).rdtype == SOA
