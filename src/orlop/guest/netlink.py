"""Network configuration over rtnetlink(7): links, addresses, routes, neighbours."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import suppress

_REQUEST, _ACK, _CREATE, _REPLACE = 0x1, 0x4, 0x400, 0x100
_DUMP = 0x300
_NEWLINK, _NEWADDR, _DELADDR, _GETADDR, _NEWROUTE, _NEWNEIGH = 16, 20, 21, 22, 24, 28
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_RTNH_F_ONLINK = 4
_IFF_UP = 1


def attribute(kind: int, value: bytes) -> bytes:
    """One ``struct rtattr`` with its padding."""
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


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


class Netlink:
    """A socket to rtnetlink. Raises OSError with what the kernel said."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def set_link(
        self, index: int, *, name: str = "", mac: str = "", mtu: int = 0, up: bool | None = None
    ) -> None:
        """Change a link."""
        flags, change = (int(up), _IFF_UP) if up is not None else (0, 0)
        body = struct.pack("=BxHiII", socket.AF_UNSPEC, 0, index, flags, change)
        if name:
            body += attribute(_IFLA_IFNAME, name.encode() + b"\0")
        if mac:
            body += attribute(_IFLA_ADDRESS, mac_bytes(mac))
        if mtu:
            body += attribute(_IFLA_MTU, struct.pack("=I", mtu))
        self._request(_NEWLINK, 0, body)

    def add_address(self, index: int, address: str) -> None:
        """Add an address in CIDR form; one that is there already is no error."""
        family, packed, length = network_bytes(address)
        flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if family == socket.AF_INET6 else 0)
        body = struct.pack("=BBBBi", family, length, flags, 0, index)
        body += attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
        if family == socket.AF_INET and length < 31:
            body += attribute(_IFA_BROADCAST, masked(packed, length, fill=True))
        self._request(_NEWADDR, _CREATE | _REPLACE, body)

    def add_route(
        self,
        index: int,
        destination: str,
        *,
        gateway: str = "",
        source: str = "",
        on_link: bool = False,
        metric: int = 0,
    ) -> None:
        """Add or replace a route."""
        family, packed, length = network_bytes(destination)
        scope = 0 if gateway else 253  # universe, link
        flags = _RTNH_F_ONLINK if on_link and gateway else 0
        body = struct.pack("=BBBBBBBBI", family, length, 0, 0, 254, 4, scope, 1, flags)
        if length:
            body += attribute(_RTA_DST, masked(packed, length))
        if gateway:
            body += attribute(_RTA_GATEWAY, address_bytes(gateway)[1])
        if source:
            body += attribute(_RTA_PREFSRC, address_bytes(source)[1])
        if metric:
            body += attribute(_RTA_PRIORITY, struct.pack("=I", metric))
        body += attribute(_RTA_OIF, struct.pack("=i", index))
        self._request(_NEWROUTE, _CREATE | _REPLACE, body)

    def add_neighbour(self, index: int, address: str, mac: str) -> None:
        """Add a permanent neighbour."""
        family, packed = address_bytes(address)
        body = struct.pack("=BxHiHBB", family, 0, index, _NUD_PERMANENT, 0, 1)
        body += attribute(_NDA_DST, packed) + attribute(_NDA_LLADDR, mac_bytes(mac))
        self._request(_NEWNEIGH, _CREATE | _REPLACE, body)

    def remove_addresses(self, index: int) -> None:
        """Remove all IPv4 addresses of a link. (IPv6 addresses go when it goes down.)"""
        found = []
        for message in self._dump(_GETADDR, struct.pack("=BBBBi", socket.AF_INET, 0, 0, 0, 0)):
            owner = struct.unpack_from("=BBBBi", message)[4]
            if owner == index:
                found.append(message)
        for message in found:
            with suppress(OSError):
                self._request(_DELADDR, 0, message)

    def _dump(self, kind: int, body: bytes) -> Iterator[bytes]:
        """The bodies of all messages that answer a dump."""
        self._send(kind, _DUMP, body)
        while True:
            data = self._socket.recv(1 << 20)
            position = 0
            while position + 16 <= len(data):
                length, answered, _, _, _ = struct.unpack_from("=IHHII", data, position)
                if answered in (_NLMSG_DONE, _NLMSG_ERROR) or length < 16:
                    return
                yield data[position + 16 : position + length]
                position += length + 3 & ~3

    def _send(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | flags, self._sequence, 0)
        self._socket.send(header + body)

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        self._send(kind, _ACK | flags, body)
        while True:
            answer = self._socket.recv(65536)
            _, answered, _, sequence, _ = struct.unpack_from("=IHHII", answer)
            if sequence != self._sequence or answered != _NLMSG_ERROR:
                continue
            (code,) = struct.unpack_from("=i", answer, 16)
            if code in (0, -errno.EEXIST):
                return
            raise OSError(-code, os.strerror(-code))
