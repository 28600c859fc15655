"""What a node remembers of the objects in the API: small values, read from documents that members write.

The API server has checked the documents' shape, and nobody here relies on it: what is not as it should be is
no object. Lists are cut to a length that no honest object has.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from ipaddress import IPv4Network
from typing import Any, Final, TypeVar

import msgspec

from orlop.tenants import documents, names
from orlop.tenants.documents import Protocol
from orlop.value import Value

V = TypeVar("V")

PORTS: Final = 100
"""Ports of one Service, or of one EndpointSlice, that are looked at."""
ENDPOINTS: Final = 1000
"""Endpoints of one EndpointSlice, as Kubernetes has them at most."""
ADDRESSES: Final = 16
SOURCES: Final = 100
"""Networks that may call a Service from outside."""
FORWARDERS: Final = 3
"""Resolvers of a tenant, as many as a resolver's configuration has by custom."""

Reader = Callable[[Any], V | None]
"""Makes a value of an object's document. Raises msgspec.ValidationError for what is none."""


class NamespaceSeen(Value, frozen=True):
    """A namespace; ``tenant`` is whose it is, or "" for nobody's."""

    tenant: str = ""


class NodeSeen(Value, frozen=True):
    """A node: its own address in the cluster, all its addresses of IPv4, and its range for aliases."""

    address: str = ""
    addresses: tuple[str, ...] = ()
    aliases: str = ""


class NetworkSeen(Value, frozen=True):
    """A tenant's Network; ``blocks`` are pairs of a node's name and its block, ``dns`` the domain."""

    name: str
    vni: int
    cidr: str
    dns: str = ""
    forwarders: tuple[str, ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    namespaces: tuple[str, ...] = ()
    blocks: tuple[tuple[str, str], ...] = ()


class PodSeen(Value, frozen=True):
    """A pod. ``alias`` is what the cluster calls its address, ``address`` what its annotation says.

    Members write annotations: whoever uses ``address`` has to know how far. ``ended`` are those that have
    run and given their addresses back. ``created`` is RFC 3339, which sorts as time goes.
    """

    namespace: str
    name: str
    uid: str = ""
    node: str = ""
    alias: str = ""
    address: str = ""
    hostname: str = ""
    subdomain: str = ""
    created: str = ""
    ready: bool = False
    ended: bool = False


class ServicePort(Value, frozen=True):
    """A port of a Service."""

    port: int
    name: str = ""
    protocol: Protocol = "TCP"


class ServiceSeen(Value, frozen=True):
    """A Service. ``addresses`` are its ClusterIPs of IPv4, none when it is ``headless``.

    ``affinity`` are the seconds for which a client keeps its endpoint, 0 for none; ``unready`` says that
    endpoints which are not ready count; ``local`` that endpoints on the caller's node alone do, for calls
    from inside and from outside; ``balanced`` are the addresses in its status, ``sources`` the networks that
    may call these, None for all. ``annotations`` are Orlop's.
    """

    namespace: str
    name: str
    uid: str = ""
    type: str = "ClusterIP"
    created: str = ""
    addresses: tuple[str, ...] = ()
    headless: bool = False
    ports: tuple[ServicePort, ...] = ()
    affinity: int = 0
    external_name: str = ""
    unready: bool = False
    local_inside: bool = False
    local_outside: bool = False
    balanced: tuple[str, ...] = ()
    balancer: str = ""
    sources: tuple[str, ...] | None = None
    annotations: tuple[tuple[str, str], ...] = ()


class EndpointSeen(Value, frozen=True):
    """An endpoint by the address that the cluster knows, a pod's alias; ``pod`` is that pod's name."""

    address: str
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    hostname: str = ""
    node: str = ""
    pod: str = ""


class SliceSeen(Value, frozen=True):
    """An EndpointSlice of IPv4; ``service`` is the Service that it says to belong to."""

    namespace: str
    name: str
    service: str
    ports: tuple[ServicePort, ...] = ()
    endpoints: tuple[EndpointSeen, ...] = ()


def by_service(slices: Iterable[SliceSeen]) -> dict[tuple[str, str], list[SliceSeen]]:
    """Slices by the namespace and name of the Service that each says to belong to."""
    found: dict[tuple[str, str], list[SliceSeen]] = defaultdict(list)
    for one in slices:
        found[one.namespace, one.service].append(one)
    return found


def namespace(document: Any) -> NamespaceSeen:
    """Read a Namespace. Raises msgspec.ValidationError, as all of these do."""
    return NamespaceSeen(
        tenant=msgspec.convert(document, documents.NamespaceDocument).metadata.label(names.TENANT)
    )


def node(document: Any) -> NodeSeen:
    """Read a Node."""
    read = msgspec.convert(document, documents.NodeDocument)
    told = [one for one in read.status.addresses or () if ":" not in one.address]
    return NodeSeen(
        address=next((one.address for one in told if one.type == "InternalIP"), ""),
        addresses=tuple(one.address for one in told if one.type.endswith("IP")),
        aliases=read.metadata.annotation(names.ALIASES),
    )


def network(document: Any) -> NetworkSeen:
    """Read a Network."""
    read = msgspec.convert(document, documents.NetworkDocument)
    return NetworkSeen(
        name=read.metadata.name,
        vni=read.spec.vni,
        cidr=read.spec.cidr,
        dns=read.spec.dns,
        forwarders=read.spec.forwarders[:FORWARDERS],
        allow=read.spec.egress.allow,
        deny=read.spec.egress.deny,
        namespaces=read.spec.namespaces,
        blocks=tuple(sorted((read.status.blocks or {}).items())),
    )


def pod(document: Any) -> PodSeen:
    """Read a Pod."""
    read = msgspec.convert(document, documents.PodDocument)
    about, spec, status = read.metadata, read.spec, read.status
    return PodSeen(
        namespace=about.namespace,
        name=about.name,
        uid=about.uid,
        node=spec.node_name,
        alias="" if ":" in status.pod_ip else status.pod_ip,
        address=about.annotation(names.ADDRESS),
        hostname=spec.hostname,
        subdomain=spec.subdomain,
        created=about.creation_timestamp,
        ready=any(one.type == "Ready" and one.status == "True" for one in status.conditions or ()),
        ended=status.phase in ("Succeeded", "Failed"),
    )


def service(document: Any) -> ServiceSeen:
    """Read a Service."""
    read = msgspec.convert(document, documents.ServiceDocument)
    about, spec = read.metadata, read.spec
    addresses = spec.cluster_ips or [spec.cluster_ip]
    affinity = spec.session_affinity_config and spec.session_affinity_config.client
    seconds = (affinity.timeout_seconds if affinity else None) or 10800
    balancer = read.status.load_balancer or documents.BalancerDocument()
    own = [pair for pair in (about.annotations or {}).items() if pair[0].startswith(f"{names.GROUP}/")]
    return ServiceSeen(
        namespace=about.namespace,
        name=about.name,
        uid=about.uid,
        type=spec.type,
        created=about.creation_timestamp,
        addresses=_version_4(addresses),
        headless=spec.cluster_ip == "None",
        ports=_ports(spec.ports),
        affinity=seconds if spec.session_affinity == "ClientIP" else 0,
        external_name=spec.external_name,
        unready=spec.publish_not_ready_addresses,
        local_inside=spec.internal_traffic_policy == "Local",
        local_outside=spec.external_traffic_policy == "Local",
        balanced=_version_4([one.ip for one in balancer.ingress or ()]),
        balancer=spec.load_balancer_class,
        sources=_networks(spec.load_balancer_source_ranges) if spec.load_balancer_source_ranges else None,
        annotations=tuple(sorted(own)[:ADDRESSES]),
    )


def slice_of(document: Any) -> SliceSeen | None:
    """Read an EndpointSlice; None for one of another family, or of no Service."""
    read = msgspec.convert(document, documents.SliceDocument)
    owner = read.metadata.label("kubernetes.io/service-name")
    if read.address_type != "IPv4" or not owner:
        return None
    return SliceSeen(
        namespace=read.metadata.namespace,
        name=read.metadata.name,
        service=owner,
        ports=_ports(read.ports),
        endpoints=tuple(_endpoint(one) for one in (read.endpoints or ())[:ENDPOINTS] if one.addresses),
    )


def _endpoint(read: documents.EndpointDocument) -> EndpointSeen:
    said, target = read.conditions or documents.EndpointStateDocument(), read.target_ref
    # What is not said is the good case: those who write slices for themselves leave it out.
    ready = said.ready is not False
    return EndpointSeen(
        address=read.addresses[0],
        ready=ready,
        serving=ready if said.serving is None else said.serving,
        terminating=bool(said.terminating),
        hostname=read.hostname or "",
        node=read.node_name or "",
        pod=target.name if target and target.kind == "Pod" else "",
    )


def _ports(read: list[documents.PortDocument] | None) -> tuple[ServicePort, ...]:
    return tuple(
        ServicePort(port=one.port, name=one.name or "", protocol=one.protocol or "TCP")
        for one in (read or ())[:PORTS]
        if one.port is not None and 0 < one.port < 1 << 16
    )


def _networks(texts: list[str]) -> tuple[str, ...]:
    """Those of IPv4: who lets in others alone lets nobody in."""
    found = []
    for text in texts[:SOURCES]:
        try:
            found.append(str(IPv4Network(text.strip(), strict=False)))
        except ValueError:
            continue
    return tuple(found)


def _version_4(addresses: list[str]) -> tuple[str, ...]:
    return tuple(one for one in addresses[:ADDRESSES] if one and one != "None" and ":" not in one)
