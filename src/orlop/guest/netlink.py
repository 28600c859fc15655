"""Network configuration over rtnetlink(7): links, addresses, routes, neighbours."""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct

_REQUEST, _ACK, _CREATE, _REPLACE = 0x1, 0x4, 0x400, 0x100
_NEWLINK, _NEWADDR, _NEWROUTE, _NEWNEIGH = 16, 20, 24, 28
_NLMSG_ERROR = 2
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU = 1, 3, 4
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST = 1, 2, 4
_IFA_F_NODAD, _IFA_F_PERMANENT = 0x02, 0x80
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_PREFSRC = 1, 4, 5, 6, 7
_NDA_DST, _NDA_LLADDR = 1, 2
_NUD_PERMANENT = 0x80
_RTNH_F_ONLINK = 4
_IFF_UP = 1

Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface


def attribute(kind: int, value: bytes) -> bytes:
    """One ``struct rtattr`` with its padding."""
    return struct.pack("=HH", len(value) + 4, kind) + value + b"\0" * (-len(value) % 4)


def _family(version: int) -> int:
    return socket.AF_INET if version == 4 else socket.AF_INET6


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
        parsed: Interface = ipaddress.ip_interface(address)
        flags = _IFA_F_PERMANENT | (_IFA_F_NODAD if parsed.version == 6 else 0)
        body = struct.pack("=BBBBi", _family(parsed.version), parsed.network.prefixlen, flags, 0, index)
        body += attribute(_IFA_LOCAL, parsed.ip.packed) + attribute(_IFA_ADDRESS, parsed.ip.packed)
        if parsed.version == 4 and parsed.network.prefixlen < 31:
            body += attribute(_IFA_BROADCAST, parsed.network.broadcast_address.packed)
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
        network = ipaddress.ip_network(destination, strict=False)
        scope = 0 if gateway else 253  # universe, link
        flags = _RTNH_F_ONLINK if on_link and gateway else 0
        family = _family(network.version)
        body = struct.pack("=BBBBBBBBI", family, network.prefixlen, 0, 0, 254, 4, scope, 1, flags)
        if network.prefixlen:
            body += attribute(_RTA_DST, network.network_address.packed)
        if gateway:
            body += attribute(_RTA_GATEWAY, ipaddress.ip_address(gateway).packed)
        if source:
            body += attribute(_RTA_PREFSRC, ipaddress.ip_address(source).packed)
        if metric:
            body += attribute(_RTA_PRIORITY, struct.pack("=I", metric))
        body += attribute(_RTA_OIF, struct.pack("=i", index))
        self._request(_NEWROUTE, _CREATE | _REPLACE, body)

    def add_neighbour(self, index: int, address: str, mac: str) -> None:
        """Add a permanent neighbour."""
        parsed = ipaddress.ip_address(address)
        body = struct.pack("=BxHiHBB", _family(parsed.version), 0, index, _NUD_PERMANENT, 0, 1)
        body += attribute(_NDA_DST, parsed.packed) + attribute(_NDA_LLADDR, mac_bytes(mac))
        self._request(_NEWNEIGH, _CREATE | _REPLACE, body)

    def _request(self, kind: int, flags: int, body: bytes) -> None:
        self._sequence += 1
        header = struct.pack("=IHHII", 16 + len(body), kind, _REQUEST | _ACK | flags, self._sequence, 0)
        self._socket.send(header + body)
        while True:
            answer = self._socket.recv(65536)
            _, answered, _, sequence, _ = struct.unpack_from("=IHHII", answer)
            if sequence != self._sequence or answered != _NLMSG_ERROR:
                continue
            (code,) = struct.unpack_from("=i", answer, 16)
            if code in (0, -errno.EEXIST):
                return
            raise OSError(-code, os.strerror(-code))
