"""The way of a packet through routers and nodes, computed from what these were told, and from nothing else.

Where a packet goes is decided here as :mod:`orlop.tenantnet.kernel` sets routes; what stops or changes it is
read from the packet filters themselves (:mod:`orlop.tenantnet.verdicts`).
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Final, Literal

import msgspec

from orlop.tenantnet import rules, tables
from orlop.tenantnet.model import BRIDGE, TUNNEL, UPLINK, Ground, Lease, LocalNetwork
from orlop.tenantnet.verdicts import IP, MetRule, Packet, PacketFilter
from orlop.value import Value

REVERSE_PATH: Final = "rp_filter"
"""The guard that is no rule but a setting of routers: sources must be behind the link they come from."""
OUTSIDE: Final = "outside"
"""What the link of a node is called here that leads to the other nodes and to the world."""
PLAIN: Final = "plain"
"""What the link of a node to its pods without a tenant is called here."""
_HOPS: Final = 24

Kind = Literal["pod", "plain", "router", "node", "world", "nobody"]


class NodeNow(Value, frozen=True):
    """A node with all that stands on it.

    ``own`` are its addresses besides the ground's, ``plain`` those of its pods without a tenant.
    """

    name: str
    ground: Ground
    networks: tuple[LocalNetwork, ...] = ()
    leases: tuple[Lease, ...] = ()
    own: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()

    def network(self, tenant: str) -> LocalNetwork | None:
        """A tenant's network, if it has a router here."""
        return next((one for one in self.networks if one.name == tenant), None)

    def of(self, tenant: str) -> tuple[Lease, ...]:
        """The leases of a tenant's pods."""
        return tuple(one for one in self.leases if one.tenant == tenant)

    @property
    def outside(self) -> tuple[str, ...]:
        """The addresses of the world's that the node answers for."""
        return tuple(address for one in self.networks for address in one.outside)

    def behind(self, address: str) -> LocalNetwork | None:
        """The network to whose router an alias, or an address of the world's, leads from here."""
        for network in self.networks:
            if address in network.outside:
                return network
        lease = next((one for one in self.leases if one.alias == address), None)
        return self.network(lease.tenant) if lease else None

    def has(self, address: str) -> bool:
        """Whether an address is the node's own."""
        return address == self.ground.address or address in self.own


class JourneyStep(Value, frozen=True):
    """One thing that a packet met, or where it went. ``tenant`` is empty on a node itself."""

    node: str
    tenant: str
    what: str
    guard: str = ""


class JourneyEnd(Value, frozen=True):
    """Where a packet came to: a pod by its lease, a router, a node, the world, or nobody, and why."""

    kind: Kind
    name: str = ""
    why: str = ""


class Journey(Value, frozen=True):
    """What became of a packet. With ``guards`` in its way it meets the first one, and goes no further.

    ``steps`` and ``end`` are as if there were no guards.
    """

    steps: tuple[JourneyStep, ...]
    end: JourneyEnd
    packet: Packet
    """As it is at the end."""

    @property
    def guards(self) -> tuple[JourneyStep, ...]:
        """All guards in its way, from the nearest to the last."""
        return tuple(one for one in self.steps if one.guard)

    @property
    def arrives(self) -> bool:
        """Whether it came to somebody, and nobody stopped it."""
        return not self.guards and self.end.kind != "nobody"


def frame_from(machines: Sequence[NodeNow], machine: NodeNow, lease: Lease, packet: Packet) -> Journey:
    """A pod of a tenant sends a frame to its router, with ``packet.mac`` or its own."""
    return _Way(machines).from_pod(machine, lease, packet)


def from_node(machines: Sequence[NodeNow], machine: NodeNow, packet: Packet) -> Journey:
    """A node sends a packet itself."""
    return _Way(machines).leave(machine, packet, "")


def into_node(machines: Sequence[NodeNow], machine: NodeNow, packet: Packet, link: str) -> Journey:
    """A packet comes to a node from :data:`OUTSIDE` or from a pod of no tenant (:data:`PLAIN`)."""
    return _Way(machines).node(machine, packet, link)


def into_router(machines: Sequence[NodeNow], machine: NodeNow, tenant: str, packet: Packet) -> Journey:
    """A packet comes out of a router's VXLAN."""
    network = machine.network(tenant)
    assert network is not None
    return _Way(machines).router(machine, network, packet, TUNNEL)


@functools.lru_cache(maxsize=64)
def _router_filter(network: LocalNetwork, ground: Ground, leases: tuple[Lease, ...]) -> PacketFilter:
    return PacketFilter(tables.text(rules.router(network, ground, leases)))


@functools.lru_cache(maxsize=64)
def _node_filter(ground: Ground, outside: tuple[str, ...]) -> PacketFilter:
    return PacketFilter(tables.text(rules.node(ground, outside)))


def _in(address: str, network: str) -> bool:
    return IPv4Address(address) in IPv4Network(network)


class _Way:
    """One packet, as it goes from place to place."""

    def __init__(self, machines: Sequence[NodeNow]) -> None:
        self._machines = machines
        self._steps: list[JourneyStep] = []

    def _note(self, machine: NodeNow, tenant: str, what: str, guard: str = "") -> None:
        self._steps.append(JourneyStep(node=machine.name, tenant=tenant, what=what, guard=guard))

    def _met(self, machine: NodeNow, tenant: str, packet: Packet, met: Sequence[MetRule]) -> Packet:
        for one in met:
            if one.guard:
                self._note(machine, tenant, one.rule, one.guard)
            elif one.change == "masquerade":
                packet = msgspec.structs.replace(packet, source=machine.ground.address)
                self._note(machine, tenant, f"its source becomes the node's address {packet.source}")
            elif one.change.startswith("dnat"):
                self._note(machine, tenant, f"its destination becomes {one.change.removeprefix('dnat to ')}")
            else:
                self._note(machine, tenant, f"its source becomes {one.change.removeprefix('snat to ')}")
        return packet

    def _end(self, packet: Packet, kind: Kind, name: str = "", why: str = "") -> Journey:
        return Journey(steps=tuple(self._steps), end=JourneyEnd(kind=kind, name=name, why=why), packet=packet)

    # A pod's port

    def from_pod(self, machine: NodeNow, lease: Lease, packet: Packet) -> Journey:
        network = machine.network(lease.tenant)
        if network is None:
            return self._end(
                packet, "nobody", why=f"the tenant {lease.tenant} has no router on {machine.name}"
            )
        packet = msgspec.structs.replace(packet, mac=packet.mac or lease.mac, came=lease.port)
        standing = _router_filter(network, machine.ground, machine.of(network.name))
        packet, met = standing.passes(("bridge",), "prerouting", packet)
        self._met(machine, network.name, packet, met)
        if packet.kind != IP:
            return self._end(packet, "router", network.name)
        return self.router(machine, network, packet, BRIDGE)

    # A router

    def router(self, machine: NodeNow, network: LocalNetwork, packet: Packet, came: str) -> Journey:
        if len(self._steps) > _HOPS:
            return self._end(packet, "nobody", why="it goes round in circles")
        tenant = network.name
        standing = _router_filter(network, machine.ground, machine.of(tenant))

        def hook(name: str, now: Packet) -> Packet:
            now, met = standing.passes(("ip",), name, now)
            return self._met(machine, tenant, now, met)

        packet = hook("prerouting", _fresh(packet, came))
        if _link(network, packet.source) != came:
            self._note(machine, tenant, f"{packet.source} is not behind this link", REVERSE_PATH)
        if packet.destination in (network.gateway, network.sender, *machine.ground.dns):
            hook("input", packet)
            return self._end(packet, "router", tenant)
        leaves = _link(network, packet.destination)
        packet = hook("forward", msgspec.structs.replace(packet, leaves=leaves))
        packet = hook("postrouting", packet)
        if leaves == BRIDGE:
            return self._to_pod(machine, network, packet)
        if leaves == TUNNEL:
            return self._through(machine, network, packet)
        self._note(machine, tenant, f"to the node over {network.uplink}")
        return self.node(machine, packet, network.uplink)

    def _to_pod(self, machine: NodeNow, network: LocalNetwork, packet: Packet) -> Journey:
        for lease in machine.of(network.name):
            if lease.address == packet.destination:
                return self._end(packet, "pod", f"{lease.namespace}/{lease.pod}")
        return self._end(
            packet, "nobody", why=f"no pod on {machine.name} has the address {packet.destination}"
        )

    def _through(self, machine: NodeNow, network: LocalNetwork, packet: Packet) -> Journey:
        peer = next(one for one in network.peers if _in(packet.destination, one.block))
        self._note(machine, network.name, f"by VXLAN {network.vni} to {peer.address}")
        other = next((one for one in self._machines if one.ground.address == peer.address), None)
        there = other.network(network.name) if other else None
        if other is None or there is None:
            return self._end(
                packet, "nobody", why=f"the tenant {network.name} has no router at {peer.address}"
            )
        outer = Packet(
            source=machine.ground.address,
            destination=other.ground.address,
            port=other.ground.port,
            came=OUTSIDE,
        )
        for name in ("prerouting", "input"):
            outer, met = _node_filter(other.ground, other.outside).passes(("inet",), name, outer)
            self._met(other, "", outer, met)
        return self.router(other, there, packet, TUNNEL)

    # A node

    def node(self, machine: NodeNow, packet: Packet, came: str) -> Journey:
        reverse = _behind(machine, packet.source) == came
        packet = msgspec.structs.replace(_fresh(packet, came), reverse=reverse)
        packet, met = _node_filter(machine.ground, machine.outside).passes(("inet",), "prerouting", packet)
        packet = self._met(machine, "", packet, met)
        if machine.has(packet.destination):
            _, met = _node_filter(machine.ground, machine.outside).passes(("inet",), "input", packet)
            self._met(machine, "", packet, met)
            return self._end(packet, "node", machine.name)
        return self.leave(machine, packet, "forward")

    def leave(self, machine: NodeNow, packet: Packet, hook: str) -> Journey:
        """A packet leaves a node, after the chains at ``hook``."""
        if len(self._steps) > _HOPS:
            return self._end(packet, "nobody", why="it goes round in circles")
        if not hook and machine.has(packet.destination):
            return self._end(packet, "node", machine.name)
        leaves = _behind(machine, packet.destination)
        packet = msgspec.structs.replace(packet, leaves=leaves)
        for name in filter(None, (hook, "postrouting")):
            packet, met = _node_filter(machine.ground, machine.outside).passes(("inet",), name, packet)
            packet = self._met(machine, "", packet, met)
        if leaves == PLAIN:
            return self._end(packet, "plain", packet.destination)
        network = machine.behind(packet.destination)
        if network is not None:
            self._note(machine, "", f"to the router of {network.name} over {network.uplink}")
            return self.router(machine, network, packet, UPLINK)
        if _in(packet.destination, machine.ground.aliases):
            return self._end(
                packet, "nobody", why=f"no pod on {machine.name} has the alias {packet.destination}"
            )
        return self._beyond(machine, packet)

    def _beyond(self, machine: NodeNow, packet: Packet) -> Journey:
        other = owner(self._machines, packet.destination)
        if other is None or other == machine:
            return self._end(packet, "world", packet.destination)
        self._note(machine, "", f"to the node {other.name}")
        return self.node(other, packet, OUTSIDE)


def _fresh(packet: Packet, came: str) -> Packet:
    """A packet that comes to a namespace by a link: what another one knew of it is not known there."""
    return msgspec.structs.replace(packet, came=came, leaves="", translated=False, mark=0, connection=0)


def owner(machines: Sequence[NodeNow], address: str) -> NodeNow | None:
    """The node that packets for an address are brought to."""
    for one in machines:
        own = one.has(address) or address in one.plain or address in one.outside
        if own or _in(address, one.ground.aliases):
            return one
    return None


def _link(network: LocalNetwork, address: str) -> str:
    """Which link of a router leads to an address."""
    if _in(address, network.block):
        return BRIDGE
    return TUNNEL if any(_in(address, one.block) for one in network.peers) else UPLINK


def _behind(machine: NodeNow, address: str) -> str:
    """Which link of a node leads to an address."""
    if address in machine.plain:
        return PLAIN
    network = machine.behind(address)
    return network.uplink if network else OUTSIDE
