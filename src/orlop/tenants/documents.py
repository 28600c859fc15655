"""The parts of the API's documents that a node's agent reads, in the API's own words.

Null stands for what is left out in some of them, and so it does here.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Protocol = Literal["TCP", "UDP", "SCTP"]


class AboutDocument(msgspec.Struct, rename="camel"):
    """An object's metadata."""

    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: str = ""
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None

    def label(self, name: str) -> str:
        """The value of a label, "" for none."""
        return (self.labels or {}).get(name, "")

    def annotation(self, name: str) -> str:
        """The value of an annotation, "" for none."""
        return (self.annotations or {}).get(name, "")


class NamespaceDocument(msgspec.Struct):
    """A Namespace."""

    metadata: AboutDocument


class NodeAddressDocument(msgspec.Struct):
    """One of a Node's addresses."""

    type: str
    address: str


class NodeStatusDocument(msgspec.Struct):
    """What is known of a Node."""

    addresses: list[NodeAddressDocument] | None = None


class NodeDocument(msgspec.Struct):
    """A Node."""

    metadata: AboutDocument
    status: NodeStatusDocument = msgspec.field(default_factory=NodeStatusDocument)


class EgressDocument(msgspec.Struct):
    """Where a network's pods may go outside."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()


class NetworkSpecDocument(msgspec.Struct):
    """What a Network shall be."""

    vni: int
    cidr: str
    dns: str = ""
    forwarders: tuple[str, ...] = ()
    egress: EgressDocument = msgspec.field(default_factory=EgressDocument)
    namespaces: tuple[str, ...] = ()


class NetworkStatusDocument(msgspec.Struct):
    """What the nodes have made of a Network."""

    blocks: dict[str, str] | None = None


class NetworkDocument(msgspec.Struct):
    """A tenant's Network."""

    metadata: AboutDocument
    spec: NetworkSpecDocument
    status: NetworkStatusDocument = msgspec.field(default_factory=NetworkStatusDocument)


class ConditionDocument(msgspec.Struct):
    """One thing that is so, or is not."""

    type: str
    status: str


class PodSpecDocument(msgspec.Struct, rename="camel"):
    """What a Pod shall be."""

    node_name: str = ""
    hostname: str = ""
    subdomain: str = ""


class PodStatusDocument(msgspec.Struct, rename="camel"):
    """What its kubelet says of a Pod."""

    phase: str = ""
    pod_ip: str = msgspec.field(name="podIP", default="")
    conditions: list[ConditionDocument] | None = None


class PodDocument(msgspec.Struct):
    """A Pod."""

    metadata: AboutDocument
    spec: PodSpecDocument
    status: PodStatusDocument = msgspec.field(default_factory=PodStatusDocument)


class PortDocument(msgspec.Struct):
    """A port of a Service or of an EndpointSlice."""

    port: int | None = None
    name: str | None = None
    protocol: Protocol | None = None


class ClientAffinityDocument(msgspec.Struct, rename="camel"):
    """How long a client keeps its endpoint."""

    timeout_seconds: int | None = None


class AffinityDocument(msgspec.Struct):
    """How clients keep endpoints."""

    client: ClientAffinityDocument | None = msgspec.field(name="clientIP", default=None)


class ServiceSpecDocument(msgspec.Struct, rename="camel"):
    """What a Service shall be."""

    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: list[str] | None = msgspec.field(name="clusterIPs", default=None)
    ports: list[PortDocument] | None = None
    session_affinity: str = ""
    session_affinity_config: AffinityDocument | None = None
    external_name: str = ""
    publish_not_ready_addresses: bool = False
    internal_traffic_policy: str = ""
    external_traffic_policy: str = ""
    load_balancer_class: str = ""
    load_balancer_source_ranges: list[str] | None = None


class IngressDocument(msgspec.Struct):
    """An address by which a load balancer is reached."""

    ip: str = ""


class BalancerDocument(msgspec.Struct):
    """The load balancer of a Service."""

    ingress: list[IngressDocument] | None = None


class ServiceStatusDocument(msgspec.Struct, rename="camel"):
    """What has become of a Service."""

    load_balancer: BalancerDocument | None = None


class ServiceDocument(msgspec.Struct):
    """A Service."""

    metadata: AboutDocument
    spec: ServiceSpecDocument
    status: ServiceStatusDocument = msgspec.field(default_factory=ServiceStatusDocument)


class EndpointStateDocument(msgspec.Struct):
    """Whether an endpoint is to be called."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class EndpointTargetDocument(msgspec.Struct):
    """What an endpoint is an endpoint of."""

    kind: str = ""
    name: str = ""


class EndpointDocument(msgspec.Struct, rename="camel"):
    """One endpoint."""

    addresses: list[str]
    conditions: EndpointStateDocument | None = None
    hostname: str | None = None
    node_name: str | None = None
    target_ref: EndpointTargetDocument | None = None


class SliceDocument(msgspec.Struct, rename="camel"):
    """An EndpointSlice."""

    metadata: AboutDocument
    address_type: str
    ports: list[PortDocument] | None = None
    endpoints: list[EndpointDocument] | None = None
