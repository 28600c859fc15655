"""The values of tenants' networks, and the names and MACs that follow from them.

Nothing here is random: what a node calls a thing can be computed by every other node, so that nobody has to
learn anything from the network.
"""

from __future__ import annotations

import hashlib
from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Literal

import msgspec

from orlop.value import Value

NAMESPACE_PREFIX = "orlop-tenant-"
BRIDGE, TUNNEL, UPLINK = "pods", "vxlan", "node"
"""The links in every router: to the tenant's pods here, to the other nodes' routers, to the node."""
UPLINK_PREFIX, PORT_PREFIX = "ot-", "p-"
ROUTERS = "240.0.0.0/8"
"""The addresses of routers towards their nodes."""
GATEWAY_MAC = "02:6f:72:6c:6f:70"
"""That of every router towards its pods: they may know it before they ask."""

Vni = Annotated[int, msgspec.Meta(ge=1, le=(1 << 24) - 1)]


class Ground(Value, frozen=True):
    """The node that routers stand on.

    ``address`` is where the other nodes' VXLAN comes to. ``aliases`` is the node's own range that addresses
    for pods of tenants are taken from. ``closed`` are the ranges of the cluster, its pods and Services, which
    no tenant reaches; ``nodes`` are the addresses of all nodes. ``dns`` are those of the cluster's DNS, which
    each router has for its own pods; none when nobody answers there.
    """

    address: str
    aliases: str
    nodes: tuple[str, ...] = ()
    closed: tuple[str, ...] = ()
    port: int = 14789
    dns: tuple[str, ...] = ()


class Peer(Value, frozen=True):
    """Another node that has pods of the tenant: its own address and its block of the tenant's addresses."""

    address: str
    block: str


class Floating(Value, frozen=True):
    """An address of the world's that is the own of one pod of this node, by the pod's uid."""

    address: str
    pod: str


class Frontend(Value, frozen=True):
    """A port of a Service of the tenant: what its pods send there goes to one of ``endpoints``.

    These are addresses with ports, of pods of the tenant by their tenant's addresses, no two with the same
    address. ``affinity`` are the seconds for which a caller keeps its endpoint, 0 for none.
    """

    address: str
    protocol: Literal["tcp", "udp", "sctp"]
    port: int
    endpoints: tuple[tuple[str, int], ...] = ()
    affinity: int = 0


class Balanced(Value, frozen=True):
    """An address of the world's that leads to Services of the tenant, which are among ``services``.

    ``sources`` are the networks that may call it from outside, None for all.
    """

    address: str
    sources: tuple[str, ...] | None = None


class LocalNetwork(Value, frozen=True):
    """A tenant's network as this node has to know it.

    ``block`` are the tenant's addresses for pods of this node, ``elsewhere`` the pods on other nodes, as
    pairs of alias and address. ``allow`` and ``deny`` are where pods may go outside the network: what is in
    one of ``allow`` and in none of ``deny``. ``floating`` and ``balanced`` are addresses that this node
    answers for; ``forwarders`` are the resolvers of the tenant's choice.
    """

    name: str
    vni: Vni
    cidr: str
    block: str
    peers: tuple[Peer, ...] = ()
    elsewhere: tuple[tuple[str, str], ...] = ()
    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()
    forwarders: tuple[str, ...] = ()
    floating: tuple[Floating, ...] = ()
    balanced: tuple[Balanced, ...] = ()
    services: tuple[Frontend, ...] = ()

    @property
    def outside(self) -> tuple[str, ...]:
        """The addresses of the world's that this node answers for, and that lead to the router."""
        return (*(one.address for one in self.floating), *(one.address for one in self.balanced))

    @property
    def inside(self) -> LocalNetwork:
        """The same without addresses of the world's."""
        return msgspec.structs.replace(self, floating=(), balanced=())

    @property
    def frame(self) -> LocalNetwork:
        """What of it changes seldom, and is remembered on disk."""
        return msgspec.structs.replace(self, elsewhere=(), services=())

    @property
    def gateway(self) -> str:
        """The router's address in the block."""
        return gateway(self.block)

    @property
    def uplink(self) -> str:
        """What the node calls its link to the router."""
        return uplink(self.vni)

    @property
    def sender(self) -> str:
        """The router's own address towards the node."""
        return sender(self.vni)

    @property
    def namespace(self) -> str:
        """The name of the router's network namespace."""
        return NAMESPACE_PREFIX + self.name


class Lease(Value, frozen=True):
    """What one interface of one pod was given. ``pod`` and ``namespace`` are for people."""

    container: str
    interface: str
    netns: str
    tenant: str
    vni: int
    address: str
    alias: str
    namespace: str = ""
    pod: str = ""
    uid: str = ""

    @property
    def port(self) -> str:
        """What the router calls its end of the pod's link: at most 15 characters."""
        digest = hashlib.blake2s(f"{self.container}/{self.interface}".encode(), digest_size=6)
        return PORT_PREFIX + digest.hexdigest()

    @property
    def uplink(self) -> str:
        """What the node calls its link to the router."""
        return uplink(self.vni)

    @property
    def router(self) -> str:
        """The name of the router's network namespace."""
        return NAMESPACE_PREFIX + self.tenant

    @property
    def mac(self) -> str:
        """The MAC of the pod's interface."""
        return _mac(0x06, self.address)

    @property
    def port_mac(self) -> str:
        """The MAC of the router's end of the pod's link, which nobody speaks to."""
        return _mac(0x12, self.address)


def uplink(vni: int) -> str:
    """What the node calls its link to the router of the tenant of that number."""
    return f"{UPLINK_PREFIX}{vni:06x}"


def sender(vni: int) -> str:
    """Under which the router of the tenant of that number asks the world: never seen beyond its node.

    The range is reserved (RFC 1112, 4), so that nobody else has it, and as large as the numbers are many.
    """
    return str(IPv4Network(ROUTERS)[vni])


def gateway(block: str) -> str:
    """The first address of a block, which is its router's."""
    return str(IPv4Network(block)[1])


def router_mac(node: str) -> str:
    """The MAC with which the router on the node of that address speaks to other routers."""
    return _mac(0x0A, node)


def uplink_macs(vni: int) -> tuple[str, str]:
    """The MACs of the node's and of the router's end of the link between them."""
    number = vni.to_bytes(3, "big").hex(":")
    return f"0e:6f:00:{number}", f"0e:6f:01:{number}"


def _mac(kind: int, address: str) -> str:
    return f"{kind:02x}:6f:" + IPv4Address(address).packed.hex(":")
