"""Interfaces, addresses, routes and traffic redirection of one network namespace, over netlink.

Every function takes the socket of the namespace it is about and is synchronous.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import struct
from collections.abc import Iterator

from orlop.linux import netlink
from orlop.linux.netlink import Netlink, attribute, attributes, text
from orlop.net.model import InterfaceCounters
from orlop.value import Value
from orlop.wire.values import Neighbour, Route

_TC = struct.Struct("=BxxxiIII")
_STATS64 = struct.Struct("=12Q")
_MIRRED = struct.Struct("=IIiiiiI")
_TCA_KIND, _TCA_OPTIONS = 1, 2
_PARENT_INGRESS = 0xFFFFFFF1
_HANDLE_INGRESS = 0xFFFF0000
_ALL_PROTOCOLS = socket.htons(3)
_STOLEN = 4
_NEW = netlink.CREATE | netlink.EXCLUSIVE
_EGRESS_REDIRECT = 1


class Link(Value, frozen=True):
    """An interface; ``mac`` is empty for one that has none."""

    index: int
    name: str
    mac: str
    mtu: int
    up: bool
    counters: InterfaceCounters


def links(kernel: Netlink) -> list[Link]:
    """All interfaces. Raises OSError."""
    return [_link(data) for _, data in kernel.dump(netlink.GETLINK, netlink.IFINFO.pack(0, 0, 0, 0, 0))]


def _link(data: bytes) -> Link:
    _family, _kind, index, flags, _change = netlink.IFINFO.unpack_from(data)
    fields = attributes(data[netlink.IFINFO.size :])
    name = fields[netlink.IFLA_IFNAME].rstrip(b"\0").decode()
    return Link(
        index=index,
        name=name,
        mac=":".join(f"{byte:02x}" for byte in fields.get(netlink.IFLA_ADDRESS, b"")),
        mtu=int.from_bytes(fields.get(netlink.IFLA_MTU, b""), "little"),
        up=bool(flags & netlink.IFF_UP),
        counters=_counters(name, fields.get(netlink.IFLA_STATS64, b"")),
    )


def _counters(name: str, data: bytes) -> InterfaceCounters:
    if len(data) < _STATS64.size:
        return InterfaceCounters(name=name)
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = (
        _STATS64.unpack_from(data)[:8]
    )
    return InterfaceCounters(
        name=name,
        rx_bytes=rx_bytes,
        rx_errors=rx_errors,
        tx_bytes=tx_bytes,
        tx_errors=tx_errors,
        rx_packets=rx_packets,
        rx_dropped=rx_dropped,
        tx_packets=tx_packets,
        tx_dropped=tx_dropped,
    )


def find(kernel: Netlink, name: str) -> Link:
    """The interface of that name. Raises OSError ENODEV."""
    asked = netlink.IFINFO.pack(0, 0, 0, 0, 0) + attribute(netlink.IFLA_IFNAME, text(name))
    try:
        return _link(kernel.get(netlink.GETLINK, asked))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        raise OSError(errno.ENODEV, "no such interface", name) from error


def set_up(kernel: Netlink, index: int, *, mtu: int = 0) -> None:
    """Switch an interface on, with another MTU first if one is given. Raises OSError."""
    body = attribute(netlink.IFLA_MTU, struct.pack("=I", mtu)) if mtu else b""
    kernel.change(netlink.NEWLINK, netlink.IFINFO.pack(0, 0, index, netlink.IFF_UP, netlink.IFF_UP) + body)


def addresses(kernel: Netlink, index: int) -> tuple[str, ...]:
    """The interface's own addresses in CIDR form, IPv4 first, without link-local ones. Raises OSError."""
    found: dict[int, list[str]] = {4: [], 6: []}
    for _, data in kernel.dump(netlink.GETADDR, netlink.IFADDR.pack(0, 0, 0, 0, 0)):
        _family, prefix, _flags, scope, owner = netlink.IFADDR.unpack_from(data)
        if owner != index or scope == netlink.SCOPE_LINK:
            continue
        fields = attributes(data[netlink.IFADDR.size :])
        address = ipaddress.ip_address(fields.get(netlink.IFA_LOCAL, fields[netlink.IFA_ADDRESS]))
        found[address.version].append(f"{address}/{prefix}")
    return (*found[4], *found[6])


def routes(kernel: Netlink, index: int) -> tuple[Route, ...]:
    """The routes that lead through the interface, those on the link first. Raises OSError.

    Routes that the kernel makes by itself from an address are left out.
    """
    found = []
    for _, data in kernel.dump(netlink.GETROUTE, netlink.ROUTE.pack(0, 0, 0, 0, 0, 0, 0, 0, 0)):
        family, bits, _src, _tos, table, protocol, _scope, kind, flags = netlink.ROUTE.unpack_from(data)
        fields = attributes(data[netlink.ROUTE.size :])
        table = _integer(fields, netlink.RTA_TABLE) or table
        if (
            table != netlink.TABLE_MAIN
            or kind != netlink.ROUTE_UNICAST
            or protocol == netlink.PROTOCOL_KERNEL
        ):
            continue
        if _integer(fields, netlink.RTA_OIF) != index:
            continue
        nothing = "0.0.0.0" if family == socket.AF_INET else "::"
        destination = _address(fields, netlink.RTA_DST) or nothing
        found.append(
            Route(
                destination=f"{destination}/{bits}",
                gateway=_address(fields, netlink.RTA_GATEWAY),
                metric=_integer(fields, netlink.RTA_PRIORITY),
                source=_address(fields, netlink.RTA_PREFSRC),
                on_link=bool(flags & netlink.RTNH_F_ONLINK),
            )
        )
    found.sort(key=lambda route: bool(route.gateway))
    return tuple(found)


def _integer(fields: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(fields.get(kind, b""), "little")


def _address(fields: dict[int, bytes], kind: int) -> str:
    raw = fields.get(kind, b"")
    return str(ipaddress.ip_address(raw)) if len(raw) in (4, 16) else ""


def neighbours(kernel: Netlink, index: int) -> tuple[Neighbour, ...]:
    """The permanent neighbours of the interface, which some networks set up by hand. Raises OSError."""
    found = []
    for _, data in kernel.dump(netlink.GETNEIGH, netlink.NEIGHBOUR.pack(0, 0, 0, 0, 0)):
        _family, owner, state, _flags, _kind = netlink.NEIGHBOUR.unpack_from(data)
        fields = attributes(data[netlink.NEIGHBOUR.size :])
        if owner == index and state & netlink.NUD_PERMANENT and netlink.NDA_LLADDR in fields:
            mac = ":".join(f"{byte:02x}" for byte in fields[netlink.NDA_LLADDR])
            found.append(Neighbour(address=_address(fields, netlink.NDA_DST), mac=mac))
    return tuple(found)


def redirect(kernel: Netlink, source: int, target: int) -> None:
    """Send every frame that arrives at interface ``source`` out of interface ``target``. Raises OSError.

    That is ``tc filter ... match all action mirred egress redirect``; the classifier is u32
    where the kernel has it, otherwise matchall.
    """
    qdisc = _TC.pack(0, source, _HANDLE_INGRESS, _PARENT_INGRESS, 0)
    kernel.change(netlink.NEWQDISC, qdisc + attribute(_TCA_KIND, text("ingress")), _NEW)
    filters = list(_match_all(target))
    for position, (kind, options) in enumerate(filters):
        head = _TC.pack(0, source, 0, _HANDLE_INGRESS, 1 << 16 | _ALL_PROTOCOLS)
        body = attribute(_TCA_KIND, text(kind)) + attribute(_TCA_OPTIONS, options)
        try:
            kernel.change(netlink.NEWTFILTER, head + body, _NEW)
        except OSError as error:
            if error.errno != errno.ENOENT or position == len(filters) - 1:
                raise
        else:
            return


def has_ingress(kernel: Netlink, index: int) -> bool:
    """Whether somebody handles what arrives at the interface before its own stack does. Raises OSError."""
    for _, data in kernel.dump(netlink.GETQDISC, _TC.pack(0, index, 0, 0, 0)):
        _family, owner, handle, _parent, _info = _TC.unpack_from(data)
        if owner == index and handle == _HANDLE_INGRESS:
            return True
    return False


def unredirect(kernel: Netlink, source: int) -> None:
    """Undo :func:`redirect`. Raises OSError, ENOENT or EINVAL when there is nothing to undo."""
    kernel.change(netlink.DELQDISC, _TC.pack(0, source, _HANDLE_INGRESS, _PARENT_INGRESS, 0))


def move(kernel: Netlink, index: int, namespace: int) -> None:
    """Move an interface into the network namespace of that descriptor. Raises OSError."""
    body = attribute(netlink.IFLA_NET_NS_FD, struct.pack("=I", namespace))
    kernel.change(netlink.NEWLINK, netlink.IFINFO.pack(0, 0, index, 0, 0) + body)


def _match_all(target: int) -> Iterator[tuple[str, bytes]]:
    parameters = attribute(2, _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, target))
    action = attribute(1, attribute(1, text("mirred")) + attribute(2, parameters))
    terminal_with_one_empty_key = struct.pack("=BBBxHHhhI", 1, 0, 1, 0, 0, 0, 0, 0) + bytes(16)
    yield "u32", attribute(5, terminal_with_one_empty_key) + attribute(7, action)
    yield "matchall", attribute(2, action)
