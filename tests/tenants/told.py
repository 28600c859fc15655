"""What the trace says of the two nodes' traffic and attacks, from what their kernels were told."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import msgspec

from orlop.tenantnet import journey
from orlop.tenantnet.journey import OUTSIDE, PLAIN, Journey, NodeNow
from orlop.tenantnet.verdicts import Packet
from tests.tenants import world as known
from tests.tenants.attacks import ARP, IPV4, PAYLOAD, Attack, Datagram, Guard
from tests.tenants.world import GATEWAY, SERVICE, TENANTS, TestNode, World

_ETHERNET = 14


def machines(world: World) -> list[NodeNow]:
    """The nodes as the trace has them."""
    return [_machine(node) for node in world.nodes.values()]


def _machine(node: TestNode) -> NodeNow:
    return NodeNow(
        name=str(node.number),
        ground=node.ground,
        networks=tuple(node.networks.values()),
        leases=tuple(node.leases),
        own=(f"10.64.{node.number}.1", SERVICE),
        plain=(known.PLAIN[node.number],),
    )


def told(world: World, place: Path, packet: Packet) -> Journey:
    """What becomes of a packet that is sent at ``place``, with that place's own address if it has none."""
    every = machines(world)
    for machine, node in zip(every, world.nodes.values(), strict=True):
        for lease in node.leases:
            if lease.netns == str(place):
                return journey.frame_from(every, machine, lease, _from(packet, lease.address))
        if place == node.place:
            return journey.from_node(every, machine, _from(packet, node.address))
        if place == node.plain:
            own = _from(packet, known.PLAIN[node.number])
            return journey.into_node(every, machine, own, PLAIN)
    assert place == world.lan
    there = journey.owner(every, packet.destination)
    assert there is not None
    return journey.into_node(every, there, _from(packet, GATEWAY), OUTSIDE)


def _from(packet: Packet, address: str) -> Packet:
    return packet if packet.source != "0.0.0.0" else msgspec.structs.replace(packet, source=address)


def guards_told(world: World, attack: Attack) -> tuple[Guard, ...]:
    """The guards in an attack's way. What comes out of VXLAN at a node goes on there."""
    send = attack.send
    if not isinstance(send, Datagram):
        return _guards(told(world, attack.place(world), decoded(send.data)))
    outer = told(world, attack.place(world), Packet(destination=send.address, port=send.port))
    if send.payload == PAYLOAD:
        return _guards(outer)
    (number,) = struct.unpack_from("!I", send.payload, 4)
    tenant = next(name for name, vni in TENANTS.items() if vni == number >> 8)
    every = machines(world)
    there = next(one for one in every if one.name == outer.end.name)
    inner = journey.into_router(every, there, tenant, decoded(send.payload[8:]))
    return _guards(outer) + _guards(inner)


def _guards(one: Journey) -> tuple[Guard, ...]:
    assert one.end.kind != "nobody", one
    return tuple((step.tenant, int(step.node), step.guard) for step in one.guards)


def decoded(frame: bytes) -> Packet:
    """A frame's packet."""
    mac, (kind,) = frame[6:12].hex(":"), struct.unpack_from("!H", frame, 12)
    body = frame[_ETHERNET:]
    if kind == ARP:
        return Packet(kind="arp", mac=mac, claims=(body[8:14].hex(":"), socket.inet_ntoa(body[14:18])))
    if kind != IPV4:
        return Packet(kind=f"{kind:#06x}", mac=mac)
    (port,) = struct.unpack_from("!H", body, 22)
    source, destination = (socket.inet_ntoa(body[at : at + 4]) for at in (12, 16))
    return Packet(source=source, destination=destination, port=port, mac=mac)
