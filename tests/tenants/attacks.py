"""What a hostile pod, or somebody else who is no friend of a tenant, does to the network.

Each attack is a payload that must not arrive. It is sent as whole frames or as datagrams; who waits for it
is a socket where it would come out. The guards in its way are named from the nearest to the last.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from orlop.net.announce import frame as announcement
from orlop.tenantnet.model import BRIDGE, GATEWAY_MAC, Balanced, Frontend, router_mac
from tests.tenants.world import (
    DENIED,
    GATEWAY,
    METADATA,
    NODES,
    NOWHERE,
    OUTSIDE,
    PORT,
    SERVICE,
    TENANTS,
    World,
    frames,
    inside,
    udp,
)

PAYLOAD = b"this must not arrive"
VXLAN_PORT = 14789
IPV4, ARP, IPV6, EXPERIMENT = 0x0800, 0x0806, 0x86DD, 0x88B5

FALSE_SERVICE = "10.96.0.66"
BALANCED = "192.0.2.210"
"""Made by an attacker, whose tenant it belongs to."""

Guard = tuple[str, int, str]
"""Where it is, a tenant's name or "" for the node itself; the node's number; its name."""
REVERSE_PATH = "rp_filter"
"""No rule but a setting: a source address is taken only from the link that leads there."""


@dataclass(frozen=True)
class Attack:
    """``send`` does it in ``place``; ``listen`` makes the socket that hears what comes through.

    ``services`` are those that ``tenant`` has made for it, ``balanced`` what leads to them from the world.
    """

    place: Callable[[World], Path]
    send: Datagram | Frame
    listen: Callable[[World], socket.socket]
    guards: tuple[Guard, ...]
    services: tuple[Frontend, ...] = ()
    balanced: tuple[Balanced, ...] = ()
    tenant: str = "blue"


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071)."""
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def packet(source: str, target: str, payload: bytes = PAYLOAD, port: int = PORT) -> bytes:
    """An IPv4 packet with a UDP datagram, whose own checksum is left out as the protocol allows."""
    said = struct.pack("!HHHH", 40000, port, 8 + len(payload), 0) + payload
    ends = socket.inet_aton(source) + socket.inet_aton(target)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(said), 0, 0, 64, socket.IPPROTO_UDP, 0)
    head = head[:10] + struct.pack("!H", checksum(head + ends))
    return head + ends + said


def ethernet(target: str, source: str, kind: int, body: bytes) -> bytes:
    """A frame."""
    macs = bytes.fromhex(target.replace(":", "")) + bytes.fromhex(source.replace(":", ""))
    return macs + struct.pack("!H", kind) + body


def vxlan(vni: int, inner: bytes) -> bytes:
    """What VXLAN puts into a datagram (RFC 7348, 5)."""
    return struct.pack("!II", 1 << 27, vni << 8) + inner


@dataclass(frozen=True)
class Datagram:
    """Sends it as any program may."""

    address: str
    payload: bytes
    port: int

    def __call__(self, world: World) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.sendto(self.payload, (self.address, self.port))


@dataclass(frozen=True)
class Frame:
    """Sends a frame as it is."""

    data: bytes
    link: str

    def __call__(self, world: World) -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as client:
            client.bind((self.link, 0))
            client.send(self.data)


def datagram(address: str, payload: bytes = PAYLOAD, port: int = PORT) -> Datagram:
    return Datagram(address, payload, port)


def raw(data: bytes, link: str = "eth0") -> Frame:
    return Frame(data, link)


def blue(node: int = 1, number: int = 2) -> Callable[[World], Path]:
    return lambda world: world.pod("blue", node, number)


def at_pod(tenant: str, node: int, number: int = 2) -> Callable[[World], socket.socket]:
    return lambda world: udp(world.pod(tenant, node, number))


def at_node(node: int) -> Callable[[World], socket.socket]:
    return lambda world: udp(world.nodes[node].place)


def at_world(world: World) -> socket.socket:
    return udp(world.lan)


def at_router(world: World) -> socket.socket:
    return udp(world.nodes[1].router("blue"))


def at_bridge(kind: int) -> Callable[[World], socket.socket]:
    """What the router takes from its pods, frame by frame."""
    return lambda world: frames(world.nodes[1].router("blue"), BRIDGE, kind)


def here(name: str, tenant: str = "blue", node: int = 1) -> Guard:
    return (tenant, node, name)


def on_node(name: str, node: int = 1) -> Guard:
    return ("", node, name)


# What is known of the world: each node's block, and what Lease makes of an address.
ME, MATE, ELSEWHERE, NOBODY = "10.0.1.2", "10.0.1.3", "10.0.2.2", "10.0.1.200"
MY_MAC, MATES_MAC, NO_MAC = "06:6f:0a:00:01:02", "06:6f:0a:00:01:03", "02:00:00:00:00:01"
GREEN = {1: "10.64.1.153", 2: "10.64.2.153"}
"""The aliases of the tenant green's first pods."""


def _arp(mac: str, source: str, *, frame_from: str = MY_MAC) -> bytes:
    said = announcement(ipaddress.IPv4Address(source), bytes.fromhex(mac.replace(":", "")))
    return ethernet("ff:ff:ff:ff:ff:ff", frame_from, ARP, said[14:] + PAYLOAD)


def _to_router(source_mac: str, source: str, target: str) -> bytes:
    return ethernet(GATEWAY_MAC, source_mac, IPV4, packet(source, target))


def _inner(sender: int, source: str, target: str, receiver: int) -> bytes:
    """What a router puts into VXLAN for another."""
    return ethernet(router_mac(NODES[receiver]), router_mac(NODES[sender]), IPV4, packet(source, target))


def _tunnelled(to: int, source: str, target: str, tenant: str = "green") -> Datagram:
    inner = _inner(3 - to, source, target, to)
    return datagram(NODES[to], vxlan(TENANTS[tenant], inner), VXLAN_PORT)


_IPV6_SOLICITATION = struct.pack("!IHBB", 6 << 28, len(PAYLOAD), 59, 255) + bytes.fromhex(
    "fe800000000000000000000000000bad" + "ff020000000000000000000000000001"
)

ATTACKS: dict[str, Attack] = {
    "another MAC": Attack(
        blue(), raw(_to_router(NO_MAC, ME, ELSEWHERE)), at_pod("blue", 2), (here("own-address"),)
    ),
    "a neighbour's MAC": Attack(
        blue(), raw(_to_router(MATES_MAC, ME, ELSEWHERE)), at_pod("blue", 2), (here("own-address"),)
    ),
    "a neighbour's address": Attack(
        blue(), raw(_to_router(MY_MAC, MATE, ELSEWHERE)), at_pod("blue", 2), (here("own-address"),)
    ),
    "a neighbour's MAC and address": Attack(
        blue(), raw(_to_router(MATES_MAC, MATE, ELSEWHERE)), at_pod("blue", 2), (here("own-address"),)
    ),
    "an address of the world": Attack(
        blue(),
        raw(_to_router(MY_MAC, OUTSIDE, ELSEWHERE)),
        at_pod("blue", 2),
        (here("own-address"), here(REVERSE_PATH), here("tunnel-source", node=2), here(REVERSE_PATH, node=2)),
    ),
    "a foreign alias as the source": Attack(
        blue(),
        raw(_to_router(MY_MAC, GREEN[1], OUTSIDE)),
        at_world,
        (here("own-address"), here(REVERSE_PATH), on_node("uplink-source")),
    ),
    "a neighbour's address by ARP": Attack(
        blue(), raw(_arp(MY_MAC, MATE)), at_bridge(ARP), (here("own-arp"),)
    ),
    "the router's address by ARP": Attack(
        blue(), raw(_arp(MY_MAC, "10.0.1.1")), at_bridge(ARP), (here("own-arp"),)
    ),
    "nobody's address by ARP": Attack(blue(), raw(_arp(MY_MAC, NOBODY)), at_bridge(ARP), (here("own-arp"),)),
    "another MAC by ARP": Attack(blue(), raw(_arp(NO_MAC, ME)), at_bridge(ARP), (here("own-arp"),)),
    "ARP in a frame of another MAC": Attack(
        blue(), raw(_arp(MY_MAC, ME, frame_from=NO_MAC)), at_bridge(ARP), (here("own-arp"),)
    ),
    "IPv6 from a link-local address": Attack(
        blue(),
        raw(ethernet("33:33:00:00:00:01", MY_MAC, IPV6, _IPV6_SOLICITATION + PAYLOAD)),
        at_bridge(IPV6),
        (here("only-ipv4"),),
    ),
    "IPv6 to the router's MAC": Attack(
        blue(),
        raw(ethernet(GATEWAY_MAC, MY_MAC, IPV6, _IPV6_SOLICITATION + PAYLOAD)),
        at_bridge(IPV6),
        (here("only-ipv4"),),
    ),
    "a protocol that nobody knows": Attack(
        blue(),
        raw(ethernet(GATEWAY_MAC, MY_MAC, EXPERIMENT, PAYLOAD)),
        at_bridge(EXPERIMENT),
        (here("only-ipv4"),),
    ),
    "a port of the router": Attack(blue(), datagram("10.0.1.1"), at_router, (here("router"),)),
    "a port of the own node": Attack(
        blue(), datagram(NODES[1]), at_node(1), (here("nodes"), on_node("node"))
    ),
    "a port of another node": Attack(blue(), datagram(NODES[2]), at_node(2), (here("nodes"),)),
    "a bridge address of the node": Attack(
        blue(), datagram("10.64.1.1"), at_node(1), (here("cluster"), on_node("node"))
    ),
    "a Service of the cluster": Attack(
        blue(), datagram(SERVICE), at_node(1), (here("cluster"), on_node("node"))
    ),
    "a pod of no tenant": Attack(
        blue(), datagram("10.64.2.5"), lambda world: udp(world.nodes[2].plain), (here("cluster"),)
    ),
    "an address of the own range that no node has": Attack(
        blue(), datagram(NOWHERE), at_world, (here("own-range"),)
    ),
    "metadata of the cloud": Attack(
        blue(), datagram(METADATA), at_world, (here("link-local"), here("egress-deny"))
    ),
    "what the tenant denies": Attack(blue(), datagram(DENIED), at_world, (here("egress-deny"),)),
    "what the tenant does not allow": Attack(
        lambda world: world.pod("green", 1),
        datagram(GATEWAY),
        at_world,
        (here("egress-allow", "green"),),
    ),
    "another tenant's alias, same node": Attack(
        blue(),
        datagram(GREEN[1]),
        at_pod("green", 1),
        (here("cluster"), on_node("between-tenants"), here("foreign-pods", "green")),
    ),
    "another tenant's alias, other node": Attack(
        blue(), datagram(GREEN[2]), at_pod("green", 2), (here("cluster"), here("foreign-pods", "green", 2))
    ),
    "VXLAN made in a pod, to another node": Attack(
        blue(),
        _tunnelled(2, "10.0.1.2", "10.0.2.2"),
        at_pod("green", 2),
        (here("nodes"), on_node("vxlan-forwarded")),
    ),
    "VXLAN made in a pod, to its own node": Attack(
        blue(),
        _tunnelled(1, "10.0.2.2", "10.0.1.2"),
        at_pod("green", 1),
        (here("nodes"), on_node("node"), on_node("vxlan-peers")),
    ),
    "VXLAN made in a pod of no tenant": Attack(
        lambda world: world.nodes[1].plain,
        _tunnelled(2, "10.0.1.2", "10.0.2.2"),
        at_pod("green", 2),
        (on_node("vxlan-forwarded"), on_node("vxlan-peers", 2)),
    ),
    "VXLAN from a machine that is no node": Attack(
        lambda world: world.lan,
        _tunnelled(1, "10.0.2.2", "10.0.1.2"),
        at_pod("green", 1),
        (on_node("vxlan-peers"),),
    ),
    "a node that sends from a block that is not its own": Attack(
        lambda world: world.nodes[1].place,
        _tunnelled(2, "10.0.3.2", "10.0.2.2"),
        at_pod("green", 2),
        (here("tunnel-source", "green", 2), here(REVERSE_PATH, "green", 2)),
    ),
    "a node that sends through another to the world": Attack(
        lambda world: world.nodes[1].place,
        _tunnelled(2, "10.0.1.2", OUTSIDE),
        at_world,
        (
            here("tunnel-destination", "green", 2),
            here("closed", "green", 2),
            on_node("uplink-source", 2),
        ),
    ),
    "a pod of no tenant to an alias": Attack(
        lambda world: world.nodes[1].plain,
        datagram(GREEN[1]),
        at_pod("green", 1),
        (here("foreign-pods", "green"),),
    ),
    "a pod of no tenant to an alias on another node": Attack(
        lambda world: world.nodes[1].plain,
        datagram(GREEN[2]),
        at_pod("green", 2),
        (here("foreign-pods", "green", 2),),
    ),
}


def _by_service(
    target: str,
    listen: Callable[[World], socket.socket],
    *guards: Guard,
    tenant: str = "blue",
    port: int = PORT,
    payload: bytes = PAYLOAD,
) -> Attack:
    """A Service, with a slice that was written by hand, which leads to what a pod may not call."""
    return Attack(
        lambda world: world.pod(tenant, 1),
        datagram(FALSE_SERVICE, payload),
        listen,
        guards,
        (Frontend(address=FALSE_SERVICE, protocol="udp", port=PORT, endpoints=((target, port),)),),
        tenant=tenant,
    )


ATTACKS |= {
    "a Service to a port of the own node": _by_service(NODES[1], at_node(1), here("nodes"), on_node("node")),
    "a Service to a port of another node": _by_service(NODES[2], at_node(2), here("nodes")),
    "a Service to a Service of the cluster": _by_service(
        SERVICE, at_node(1), here("cluster"), on_node("node")
    ),
    "a Service to a pod of no tenant": _by_service(
        "10.64.2.5", lambda world: udp(world.nodes[2].plain), here("cluster")
    ),
    "a Service to another tenant's alias, same node": _by_service(
        GREEN[1],
        at_pod("green", 1),
        here("cluster"),
        on_node("between-tenants"),
        here("foreign-pods", "green"),
    ),
    "a Service to another tenant's alias, other node": _by_service(
        GREEN[2], at_pod("green", 2), here("cluster"), here("foreign-pods", "green", 2)
    ),
    "a Service to an address of the own range that no node has": _by_service(
        NOWHERE, at_world, here("own-range")
    ),
    "a Service to metadata of the cloud": _by_service(
        METADATA, at_world, here("link-local"), here("egress-deny")
    ),
    "a Service to what the tenant denies": _by_service(DENIED, at_world, here("egress-deny")),
    "a Service to what the tenant does not allow": _by_service(
        GATEWAY, at_world, here("egress-allow", "green"), tenant="green"
    ),
    "a Service to a port of the router": _by_service("10.0.1.1", at_router, here("router")),
    "a Service without endpoints at an address of the cluster's": Attack(
        blue(),
        datagram(SERVICE),
        at_node(1),
        (here("no-endpoint"), here("cluster"), on_node("node")),
        services=(Frontend(address=SERVICE, protocol="udp", port=PORT),),
    ),
    "a Service to another node's VXLAN": _by_service(
        NODES[2],
        at_pod("green", 2),
        here("nodes"),
        on_node("vxlan-forwarded"),
        port=VXLAN_PORT,
        payload=vxlan(TENANTS["green"], _inner(1, "10.0.1.2", "10.0.2.2", 2)),
    ),
}

OPEN = Frontend(address=BALANCED, protocol="udp", port=PORT, endpoints=((ME, PORT),))
ATTACKS |= {
    "the world to a Service that lets others": Attack(
        lambda world: world.lan,
        datagram(BALANCED),
        at_pod("blue", 1),
        (here("source-ranges"),),
        (OPEN,),
        (Balanced(address=BALANCED, sources=("198.51.100.0/24",)),),
    ),
    "a pod of no tenant to a Service that lets the world": Attack(
        lambda world: world.nodes[1].plain,
        datagram(BALANCED),
        at_pod("blue", 1),
        (here("foreign-pods"),),
        (OPEN,),
        (Balanced(address=BALANCED),),
    ),
}


def attempt(world: World, attack: Attack) -> None:
    inside(attack.place(world), lambda: attack.send(world))
