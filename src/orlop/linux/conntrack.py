"""Connection tracking over netlink (ctnetlink): flows of datagrams, and how they are forgotten.

A flow that was led to an address stays led there for as long as somebody sends into it, whatever the rules
say meanwhile.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from orlop.linux.netlink import Netlink, attribute, attributes

_SUBSYSTEM: Final = 1
_GET, _DELETE = _SUBSYSTEM << 8 | 1, _SUBSYSTEM << 8 | 2
_HEAD = struct.Struct("!BBH")
"""Family, version, nothing."""
_NESTED: Final = 0x8000
_ORIGINAL, _REPLY, _MARK, _ID = 1, 2, 8, 12
_IP, _PROTOCOL = 1, 2
_SOURCE, _DESTINATION = 1, 2
_NUMBER, _SOURCE_PORT, _DESTINATION_PORT = 1, 2, 3


class Flow(NamedTuple):
    """Datagrams of UDP from somebody to ``called``, led to ``led``; both are addresses with ports."""

    called: tuple[str, int]
    led: tuple[str, int]
    mark: int
    original: bytes
    number: bytes


def datagrams(kernel: Netlink) -> Iterator[Flow]:
    """All flows of UDP over IPv4 in the socket's namespace, which is one of netfilter's. Raises OSError."""
    for _, data in kernel.dump(_GET, _HEAD.pack(socket.AF_INET, 0, 0)):
        fields = attributes(data[_HEAD.size :])
        try:
            original, reply = _end(fields[_ORIGINAL]), _end(fields[_REPLY])
        except (KeyError, struct.error, ValueError):
            continue
        if original[0] == socket.IPPROTO_UDP:
            mark = int.from_bytes(fields.get(_MARK, b""), "big")
            number = fields.get(_ID, b"")
            yield Flow(original[2], reply[1], mark, fields[_ORIGINAL], number)


def forget(kernel: Netlink, flow: Flow) -> None:
    """Have the next datagram begin anew. Idempotent. Raises OSError."""
    body = attribute(_ORIGINAL | _NESTED, flow.original)
    body += attribute(_ID, flow.number) if flow.number else b""
    try:
        kernel.change(_DELETE, _HEAD.pack(socket.AF_INET, 0, 0) + body)
    except OSError as error:
        if error.errno != errno.ENOENT:
            raise


def _end(data: bytes) -> tuple[int, tuple[str, int], tuple[str, int]]:
    """The protocol, source and destination of one direction."""
    fields = attributes(data)
    ip, protocol = attributes(fields[_IP]), attributes(fields[_PROTOCOL])
    ports = [struct.unpack("!H", protocol[kind])[0] for kind in (_SOURCE_PORT, _DESTINATION_PORT)]
    source, destination = (str(IPv4Address(ip[kind])) for kind in (_SOURCE, _DESTINATION))
    return protocol[_NUMBER][0], (source, ports[0]), (destination, ports[1])
