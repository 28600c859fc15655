"""Netlink: a socket, messages with nested attributes, and the numbers of route netlink (rtnetlink(7)).

A general netlink library costs 13 MB of the daemon's memory and a tenth of a second at start, and the
guest has none; what is needed here is little. Calls are synchronous and take microseconds. A socket
belongs to the network namespace of the thread that made it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator, Sequence

ROUTING, NETFILTER = 0, 12
"""Protocols."""

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_F_REQUEST = 0x1
ACK = 0x4
_F_DUMP = 0x300
EXCLUSIVE = 0x200
REPLACE = 0x100
CREATE = 0x400

NEWLINK, GETLINK = 16, 18
NEWADDR, DELADDR, GETADDR = 20, 21, 22
NEWROUTE, GETROUTE = 24, 26
NEWNEIGH, GETNEIGH = 28, 30
NEWQDISC, DELQDISC, GETQDISC = 36, 37, 38
NEWTFILTER = 44
"""Kinds of messages."""

IFINFO = struct.Struct("=BxHiII")
"""Family, type, index, flags, which flags to change."""
IFADDR = struct.Struct("=BBBBI")
"""Family, length of the prefix, flags, scope, index."""
ROUTE = struct.Struct("=BBBBBBBBI")
"""Family, lengths of destination and source, tos, table, protocol, scope, type, flags."""
NEIGHBOUR = struct.Struct("=BxxxiHBB")
"""Family, index, state, flags, type."""

IFLA_ADDRESS, IFLA_IFNAME, IFLA_MTU, IFLA_STATS64, IFLA_NET_NS_FD = 1, 3, 4, 23, 28
IFA_ADDRESS, IFA_LOCAL, IFA_BROADCAST = 1, 2, 4
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_TABLE = 1, 4, 5, 6, 7, 15
NDA_DST, NDA_LLADDR = 1, 2

IFF_UP = 1
IFA_F_NODAD, IFA_F_PERMANENT = 0x02, 0x80
SCOPE_UNIVERSE, SCOPE_LINK = 0, 253
TABLE_MAIN = 254
ROUTE_UNICAST = 1
PROTOCOL_KERNEL, PROTOCOL_STATIC = 2, 4
RTNH_F_ONLINK = 4
NUD_PERMANENT = 0x80

_SOL_NETLINK = 270
_EXT_ACK = 11
_ERROR_MESSAGE = 1
_BUFFER = 1 << 16
_TYPE_MASK = 0x3FFF  # without the flags "nested" and "network byte order"


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes; nest by passing packed attributes as ``value``."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def text(value: str) -> bytes:
    """A zero-terminated string, as the kernel's string attributes are."""
    return value.encode() + b"\0"


def attributes(data: bytes) -> dict[int, bytes]:
    """Unpack a run of attributes by kind; the last one of a kind wins."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


class Netlink:
    """A netlink socket of the calling thread's network namespace, route netlink's; a context manager."""

    def __init__(self, protocol: int = ROUTING) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()

    def change(self, kind: int, payload: bytes, flags: int = 0) -> None:
        """Send a request and wait for its acknowledgement; ``flags`` of CREATE, EXCLUSIVE, REPLACE.

        Raises OSError with the kernel's words.
        """
        for _ in self._ask(kind, ACK | flags, payload):
            pass

    def dump(self, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """All objects of a kind, as (message type, payload). Raises OSError."""
        return list(self._ask(kind, _F_DUMP, payload))

    def get(self, kind: int, payload: bytes) -> bytes:
        """The one object that a request names. Raises OSError with the kernel's words."""
        return b"".join(data for _, data in self._ask(kind, ACK, payload))

    def together(self, messages: Sequence[tuple[int, int, bytes]]) -> None:
        """Send requests at once, as (kind, flags, payload), one of them with ACK, and wait for its answer.

        Raises the first OSError that the kernel has about any of them.
        """
        first, data = self._sequence + 1, b""
        for kind, flags, payload in messages:
            self._sequence += 1
            header = (_HEADER.size + len(payload), kind, _F_REQUEST | flags, self._sequence, 0)
            data += _HEADER.pack(*header) + payload
        self._socket.sendto(data, (0, 0))
        while True:
            for message, number, answer in _messages(self._socket.recv(_BUFFER)):
                if number >= first and message == _NLMSG_ERROR:
                    _raise_error(answer)
                    return

    def _ask(self, kind: int, flags: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        self._sequence += 1
        sequence = self._sequence
        header = _HEADER.pack(_HEADER.size + len(payload), kind, _F_REQUEST | flags, sequence, 0)
        self._socket.sendto(header + payload, (0, 0))
        while True:
            for message, number, data in _messages(self._socket.recv(_BUFFER)):
                if number != sequence:
                    continue
                if message == _NLMSG_DONE:
                    return
                if message == _NLMSG_ERROR:
                    _raise_error(data)
                    return
                yield message, data


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _raise_error(data: bytes) -> None:
    (number,) = struct.unpack_from("=i", data)
    if number == 0:
        return
    (original,) = struct.unpack_from("=I", data, 4)
    # The request may or may not be echoed; the attributes follow whichever it is.
    words = b""
    for skip in (4 + _HEADER.size, 4 + ((original + 3) & ~3)):
        words = words or attributes(data[skip:]).get(_ERROR_MESSAGE, b"")
    said = words.rstrip(b"\0").decode(errors="replace")
    raise OSError(-number, said or os.strerror(-number))
