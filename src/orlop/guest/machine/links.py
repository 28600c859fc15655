"""Links, addresses, routes and neighbours of the guest, set up by its agent over rtnetlink(7)."""

from __future__ import annotations

import errno
import socket
import struct
from contextlib import suppress

from orlop.linux import netlink
from orlop.linux.netlink import Netlink, attribute, text
from orlop.wire.values import Neighbour, Route

_SET = netlink.CREATE | netlink.REPLACE


def address_bytes(text: str) -> tuple[int, bytes]:
    """Family and bytes of an address; ValueError for anything else. (ipaddress would cost more to load.)"""
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    try:
        return family, socket.inet_pton(family, text)
    except (OSError, ValueError):
        raise ValueError(f"{text!r} is not an address") from None


def network_bytes(text: str) -> tuple[int, bytes, int]:
    """Family, bytes and prefix length of "address/length", or of an address alone."""
    address, slash, length = text.partition("/")
    family, packed = address_bytes(address)
    bits = len(packed) * 8
    if slash and not (length.isascii() and length.isdecimal() and int(length) <= bits):
        raise ValueError(f"{text!r} is not an address with the length of its prefix")
    return family, packed, int(length) if slash else bits


def masked(packed: bytes, length: int, *, fill: bool = False) -> bytes:
    """The first address of a network, or with ``fill`` the last."""
    bits = len(packed) * 8
    host = (1 << bits - length) - 1
    value = int.from_bytes(packed, "big")
    return (value | host if fill else value & ~host).to_bytes(len(packed), "big")


def mac_bytes(text: str) -> bytes:
    """The six bytes of "aa:bb:cc:dd:ee:ff"; ValueError for anything else."""
    raw = bytes(int(part, 16) for part in text.split(":"))
    if len(raw) != 6:
        raise ValueError(f"{text!r} is not a MAC address")
    return raw


def set_link(
    kernel: Netlink, index: int, *, name: str = "", mac: str = "", mtu: int = 0, up: bool | None = None
) -> None:
    """Change a link."""
    flags, change = (int(up), netlink.IFF_UP) if up is not None else (0, 0)
    body = netlink.IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, change)
    if name:
        body += attribute(netlink.IFLA_IFNAME, text(name))
    if mac:
        body += attribute(netlink.IFLA_ADDRESS, mac_bytes(mac))
    if mtu:
        body += attribute(netlink.IFLA_MTU, struct.pack("=I", mtu))
    kernel.change(netlink.NEWLINK, body)


def add_address(kernel: Netlink, index: int, address: str) -> None:
    """Add an address in CIDR form; one that is there already is no error."""
    family, packed, length = network_bytes(address)
    flags = netlink.IFA_F_PERMANENT | (netlink.IFA_F_NODAD if family == socket.AF_INET6 else 0)
    body = netlink.IFADDR.pack(family, length, flags, netlink.SCOPE_UNIVERSE, index)
    body += attribute(netlink.IFA_LOCAL, packed) + attribute(netlink.IFA_ADDRESS, packed)
    if family == socket.AF_INET and length < 31:
        body += attribute(netlink.IFA_BROADCAST, masked(packed, length, fill=True))
    _set(kernel, netlink.NEWADDR, body)


def add_route(kernel: Netlink, index: int, route: Route) -> None:
    """Add or replace a route."""
    family, packed, length = network_bytes(route.destination)
    scope = netlink.SCOPE_UNIVERSE if route.gateway else netlink.SCOPE_LINK
    flags = netlink.RTNH_F_ONLINK if route.on_link and route.gateway else 0
    body = netlink.ROUTE.pack(
        family, length, 0, 0, netlink.TABLE_MAIN, netlink.PROTOCOL_STATIC, scope, netlink.ROUTE_UNICAST, flags
    )
    if length:
        body += attribute(netlink.RTA_DST, masked(packed, length))
    if route.gateway:
        body += attribute(netlink.RTA_GATEWAY, address_bytes(route.gateway)[1])
    if route.source:
        body += attribute(netlink.RTA_PREFSRC, address_bytes(route.source)[1])
    if route.metric:
        body += attribute(netlink.RTA_PRIORITY, struct.pack("=I", route.metric))
    body += attribute(netlink.RTA_OIF, struct.pack("=i", index))
    _set(kernel, netlink.NEWROUTE, body)


def add_neighbour(kernel: Netlink, index: int, neighbour: Neighbour) -> None:
    """Add a permanent neighbour."""
    family, packed = address_bytes(neighbour.address)
    body = netlink.NEIGHBOUR.pack(family, index, netlink.NUD_PERMANENT, 0, netlink.ROUTE_UNICAST)
    body += attribute(netlink.NDA_DST, packed) + attribute(netlink.NDA_LLADDR, mac_bytes(neighbour.mac))
    _set(kernel, netlink.NEWNEIGH, body)


def remove_addresses(kernel: Netlink, index: int) -> None:
    """Remove all IPv4 addresses of a link. (IPv6 addresses go when it goes down.)"""
    for _, found in kernel.dump(netlink.GETADDR, netlink.IFADDR.pack(socket.AF_INET, 0, 0, 0, 0)):
        owner = netlink.IFADDR.unpack_from(found)[-1]
        if owner == index:
            with suppress(OSError):
                kernel.change(netlink.DELADDR, found)


def _set(kernel: Netlink, kind: int, body: bytes) -> None:
    try:
        kernel.change(kind, body, _SET)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
