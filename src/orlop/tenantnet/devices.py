"""Links, routes and neighbours of routers, over netlink: made as they are wanted, found as they are.

Every function takes the socket of the namespace it is about, is synchronous, and raises OSError.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from orlop.linux import netlink
from orlop.linux.netlink import Netlink, attribute, attributes, text
from orlop.net import links
from orlop.net.links import Link
from orlop.value import Value

OURS = 111
"""The routing protocol that marks our routes (rtnetlink(7)): what others have made is left alone."""

_DELLINK, _DELROUTE, _DELNEIGH = 17, 25, 29
_AF_BRIDGE = 7
_IFLA_MASTER, _IFLA_LINKINFO, _IFLA_ALIAS = 10, 18, 20
_INFO_KIND, _INFO_DATA, _INFO_SLAVE_KIND, _INFO_SLAVE_DATA, _VETH_PEER = 1, 2, 4, 5, 1
_VXLAN_ID, _VXLAN_LOCAL, _VXLAN_LEARNING, _VXLAN_PORT = 1, 4, 7, 15
_PORT_LEARNING, _PORT_FLOOD, _PORT_MULTICAST, _PORT_BROADCAST, _PORT_ISOLATED = 8, 9, 27, 30, 33
_NTF_SELF, _NTF_MASTER = 2, 4
_NUD_STATIC = 0x40
HOST = 254
"""The scope of an address that is for this host alone (rtnetlink(7))."""
_NEW = netlink.CREATE | netlink.EXCLUSIVE
_PUT = netlink.CREATE | netlink.REPLACE
_GONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH)


class End(Value, frozen=True):
    """One end of a link: in the network namespace of that descriptor, or where the socket is."""

    name: str
    mac: str
    mtu: int
    namespace: int | None = None


class Way(Value, frozen=True):
    """A route: over ``link`` by its index, by way of ``gateway`` if there is one, which is next to it."""

    destination: str
    link: int
    gateway: str = ""
    source: str = ""


def _end(end: End, *more: bytes) -> bytes:
    body = attribute(netlink.IFLA_IFNAME, text(end.name))
    body += attribute(netlink.IFLA_ADDRESS, bytes.fromhex(end.mac.replace(":", "")))
    body += attribute(netlink.IFLA_MTU, struct.pack("=I", end.mtu))
    if end.namespace is not None:
        body += attribute(netlink.IFLA_NET_NS_FD, struct.pack("=I", end.namespace))
    return netlink.IFINFO.pack(0, 0, 0, 0, 0) + body + b"".join(more)


def _make(kernel: Netlink, end: End, kind: str, data: bytes = b"") -> None:
    info = attribute(_INFO_KIND, text(kind)) + (attribute(_INFO_DATA, data) if data else b"")
    kernel.change(netlink.NEWLINK, _end(end, attribute(_IFLA_LINKINFO, info)), _NEW)


def make_bridge(kernel: Netlink, end: End) -> None:
    """Make a bridge."""
    _make(kernel, end, "bridge")


def make_pair(kernel: Netlink, one: End, other: End) -> None:
    """Make two ends of one cable, each where it belongs: it has never been anywhere else."""
    _make(kernel, one, "veth", attribute(_VETH_PEER, _end(other)))


def make_tunnel(kernel: Netlink, end: End, *, vni: int, local: str, port: int) -> None:
    """Make a VXLAN whose packets leave from the socket's namespace, wherever the link itself is.

    It learns nothing and has no group: it knows what :func:`forward` says.
    """
    data = attribute(_VXLAN_ID, struct.pack("=I", vni))
    data += attribute(_VXLAN_LOCAL, IPv4Address(local).packed)
    data += attribute(_VXLAN_LEARNING, b"\0")
    data += attribute(_VXLAN_PORT, struct.pack("!H", port))
    _make(kernel, end, "vxlan", data)


def look(kernel: Netlink, name: str) -> Link | None:
    """The link of that name, or None."""
    try:
        return links.find(kernel, name)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def remove(kernel: Netlink, name: str) -> None:
    """Remove a link by its name. Idempotent."""
    _forget(kernel, _DELLINK, netlink.IFINFO.pack(0, 0, 0, 0, 0) + attribute(netlink.IFLA_IFNAME, text(name)))


def _forget(kernel: Netlink, kind: int, body: bytes) -> None:
    try:
        kernel.change(kind, body)
    except OSError as error:
        if error.errno not in _GONE:
            raise


def describe(kernel: Netlink, index: int, about: str) -> None:
    """Say what a link is for, to whoever lists links."""
    body = attribute(_IFLA_ALIAS, about.encode())
    kernel.change(netlink.NEWLINK, netlink.IFINFO.pack(0, 0, index, 0, 0) + body)


def plug(kernel: Netlink, index: int, bridge: int, mac: str) -> None:
    """Make a link a port of a bridge that speaks with nobody but the bridge itself, under one MAC.

    It learns no others, is sent what is for that MAC and nothing else, and never what other ports sent.
    """
    flags = {
        _PORT_LEARNING: 0,
        _PORT_FLOOD: 0,
        _PORT_MULTICAST: 0,
        _PORT_BROADCAST: 0,
        _PORT_ISOLATED: 1,
    }
    head = netlink.IFINFO.pack(0, 0, index, 0, 0)
    kernel.change(netlink.NEWLINK, head + attribute(_IFLA_MASTER, struct.pack("=I", bridge)))
    port = b"".join(attribute(flag, bytes([value])) for flag, value in flags.items())
    info = attribute(_INFO_SLAVE_KIND, text("bridge")) + attribute(_INFO_SLAVE_DATA, port)
    kernel.change(netlink.NEWLINK, head + attribute(_IFLA_LINKINFO, info))
    entry = netlink.NEIGHBOUR.pack(_AF_BRIDGE, index, _NUD_STATIC, _NTF_MASTER, 0)
    kernel.change(netlink.NEWNEIGH, entry + _hardware(mac), _PUT)


def _hardware(mac: str) -> bytes:
    return attribute(netlink.NDA_LLADDR, bytes.fromhex(mac.replace(":", "")))


def assign(kernel: Netlink, index: int, address: str, *, scope: int = netlink.SCOPE_UNIVERSE) -> None:
    """Give a link an address with the length of its prefix."""
    kernel.change(netlink.NEWADDR, _assignment(index, address, scope), _PUT)


def withdraw(kernel: Netlink, index: int, address: str) -> None:
    """Take an address from a link. Raises OSError EADDRNOTAVAIL when it has not."""
    kernel.change(netlink.DELADDR, _assignment(index, address))


def _assignment(index: int, address: str, scope: int = netlink.SCOPE_UNIVERSE) -> bytes:
    interface = IPv4Interface(address)
    body = netlink.IFADDR.pack(socket.AF_INET, interface.network.prefixlen, 0, scope, index)
    body += attribute(netlink.IFA_LOCAL, interface.ip.packed)
    return body + attribute(netlink.IFA_ADDRESS, interface.ip.packed)


def routes(kernel: Netlink) -> set[Way]:
    """Our own routes of the namespace."""
    found = set()
    for _, data in kernel.dump(netlink.GETROUTE, netlink.ROUTE.pack(socket.AF_INET, 0, 0, 0, 0, 0, 0, 0, 0)):
        _family, bits, _src, _tos, _table, protocol, _scope, _kind, _flags = netlink.ROUTE.unpack_from(data)
        if protocol != OURS:
            continue
        fields = attributes(data[netlink.ROUTE.size :])
        found.add(
            Way(
                destination=f"{_ip(fields, netlink.RTA_DST) or '0.0.0.0'}/{bits}",
                link=int.from_bytes(fields.get(netlink.RTA_OIF, b""), "little"),
                gateway=_ip(fields, netlink.RTA_GATEWAY),
                source=_ip(fields, netlink.RTA_PREFSRC),
            )
        )
    return found


def _ip(fields: Mapping[int, bytes], kind: int) -> str:
    raw = fields.get(kind, b"")
    return str(IPv4Address(raw)) if len(raw) == 4 else ""


def add_route(kernel: Netlink, path: Way) -> None:
    """Add a route, or put it in the place of another to that destination."""
    kernel.change(netlink.NEWROUTE, _route(path), _PUT)


def remove_route(kernel: Netlink, path: Way) -> None:
    """Remove a route of ours; one without a source stands for that with any. Idempotent."""
    _forget(kernel, _DELROUTE, _route(path))


def _route(path: Way) -> bytes:
    network = IPv4Network(path.destination)
    scope = netlink.SCOPE_UNIVERSE if path.gateway else netlink.SCOPE_LINK
    flags = netlink.RTNH_F_ONLINK if path.gateway else 0
    head = netlink.ROUTE.pack(
        socket.AF_INET,
        network.prefixlen,
        0,
        0,
        netlink.TABLE_MAIN,
        OURS,
        scope,
        netlink.ROUTE_UNICAST,
        flags,
    )
    body = attribute(netlink.RTA_DST, network.network_address.packed) if network.prefixlen else b""
    body += attribute(netlink.RTA_OIF, struct.pack("=I", path.link))
    if path.gateway:
        body += attribute(netlink.RTA_GATEWAY, IPv4Address(path.gateway).packed)
    if path.source:
        body += attribute(netlink.RTA_PREFSRC, IPv4Address(path.source).packed)
    return head + body


def set_routes(kernel: Netlink, wanted: Iterable[Way], over: Iterable[int]) -> None:
    """Have these routes of ours over the links of these indices, and no others over them."""
    kept, indices = set(wanted), set(over)
    found = {path for path in routes(kernel) if path.link in indices}
    for path in found - kept:
        remove_route(kernel, path)
    for path in kept - found:
        add_route(kernel, path)


def set_neighbours(kernel: Netlink, index: int, wanted: Mapping[str, str]) -> None:
    """Have these neighbours of a link, as MACs by address, and no others that are permanent."""
    found = {one.address: one.mac for one in links.neighbours(kernel, index)}
    for address in found.keys() - wanted.keys():
        forget_neighbour(kernel, index, address)
    for address, mac in wanted.items():
        if found.get(address) != mac:
            add_neighbour(kernel, index, address, mac)


def add_neighbour(kernel: Netlink, index: int, address: str, mac: str) -> None:
    """Say which MAC an address has on a link; nobody will be asked."""
    kernel.change(netlink.NEWNEIGH, _neighbour(index, address) + _hardware(mac), _PUT)


def forget_neighbour(kernel: Netlink, index: int, address: str) -> None:
    """Forget it. Idempotent."""
    _forget(kernel, _DELNEIGH, _neighbour(index, address))


def _neighbour(index: int, address: str) -> bytes:
    head = netlink.NEIGHBOUR.pack(socket.AF_INET, index, netlink.NUD_PERMANENT, 0, 0)
    return head + attribute(netlink.NDA_DST, IPv4Address(address).packed)


def set_forwarding(kernel: Netlink, index: int, wanted: Mapping[str, str]) -> None:
    """Have a tunnel send to these nodes, as addresses by the MAC that is behind them, and to no others."""
    found: set[tuple[str, str]] = set()
    query = netlink.NEIGHBOUR.pack(_AF_BRIDGE, index, 0, 0, 0)
    for _, data in kernel.dump(netlink.GETNEIGH, query):
        _family, owner, _state, _flags, _kind = netlink.NEIGHBOUR.unpack_from(data)
        fields = attributes(data[netlink.NEIGHBOUR.size :])
        if owner == index and (node := _ip(fields, netlink.NDA_DST)):
            found.add((fields[netlink.NDA_LLADDR].hex(":"), node))
    for entry in found - set(wanted.items()):
        _forget(kernel, _DELNEIGH, _entry(index, *entry))
    for entry in set(wanted.items()) - found:
        kernel.change(netlink.NEWNEIGH, _entry(index, *entry), _NEW)


def _entry(index: int, mac: str, node: str) -> bytes:
    head = netlink.NEIGHBOUR.pack(_AF_BRIDGE, index, netlink.NUD_PERMANENT, _NTF_SELF, 0)
    return head + _hardware(mac) + attribute(netlink.NDA_DST, IPv4Address(node).packed)
