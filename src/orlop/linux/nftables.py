"""Elements of nftables' sets and maps over netlink: what comes and goes while the tables stand.

Tables and rules are the business of nft(8), whose start costs more than everything else that a pod's network
needs. An element is a few bytes. Every change of a namespace's rules, whoever makes it, begins a new
*generation* of them, and a change may be made to depend on the generation that it was thought out for.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from ipaddress import IPv4Address
from itertools import groupby
from typing import Final, NamedTuple

from orlop.linux import netlink
from orlop.linux.netlink import Netlink, attribute, attributes, text

_SUBSYSTEM: Final = 10
_BEGIN, _END = 0x10, 0x11
_NEW_ELEMENTS, _DELETE_ELEMENTS = _SUBSYSTEM << 8 | 12, _SUBSYSTEM << 8 | 14
_GET_GENERATION: Final = _SUBSYSTEM << 8 | 16
_HEAD = struct.Struct("!BBH")
"""Family, version, and the subsystem or nothing."""
_FAMILIES: Final = {"inet": 1, "ip": 2, "bridge": 7}
_NESTED: Final = 0x8000

_BATCH_GENERATION: Final = 1
_GENERATION_ID: Final = 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ONE = 1, 2, 3 | _NESTED, 1 | _NESTED
_ELEMENT_KEY, _ELEMENT_DATA, _DATA_VALUE = 1 | _NESTED, 2 | _NESTED, 1
_AT_ONCE: Final = 200
"""Elements in one message: what is in an attribute has at most 64 KiB."""

_PROTOCOLS: Final = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP, "sctp": socket.IPPROTO_SCTP}
_BYTES: Final[Mapping[str, Callable[[str], bytes]]] = {
    "ifname": lambda word: word.encode().ljust(16, b"\0"),
    "ether_addr": lambda word: bytes.fromhex(word.replace(":", "")),
    "ipv4_addr": lambda word: IPv4Address(word).packed,
    "inet_proto": lambda word: bytes([_PROTOCOLS[word]]),
    "inet_service": lambda word: struct.pack("!H", int(word)),
    "mark": lambda word: struct.pack("=I", int(word)),
}


class ElementChange(NamedTuple):
    """One element of a set to put in or, if not ``there``, to take out; maps have a ``value``.

    ``key`` and ``value`` are as :func:`packed` makes them.
    """

    family: str
    table: str
    set: str
    key: bytes
    value: bytes = b""
    there: bool = True


def packed(types: Sequence[str], words: Sequence[str]) -> bytes:
    """Words as the kernel wants them, by nft's names of their types. Raises KeyError, ValueError."""
    parts = [_BYTES[kind](word) for kind, word in zip(types, words, strict=True)]
    # Concatenated, each begins on a boundary of four bytes.
    return parts[0] if len(parts) == 1 else b"".join(part + bytes(-len(part) % 4) for part in parts)


def generation(kernel: Netlink) -> int:
    """Which generation of rules the socket's namespace has. Raises OSError."""
    answer = kernel.get(_GET_GENERATION, _HEAD.pack(0, 0, 0))
    return int.from_bytes(attributes(answer[_HEAD.size :])[_GENERATION_ID], "big")


def change(kernel: Netlink, changes: Sequence[ElementChange], of: int) -> int:
    """Make all the changes, in one transaction, to the rules of that generation; the generation then.

    Raises OSError, with nothing changed: ERESTART when the rules are of another generation, ENOENT for a set
    or an element that is not there.
    """
    bodies = list(_bodies(changes))
    if not bodies:
        if generation(kernel) != of:
            raise OSError(errno.ERESTART, os.strerror(errno.ERESTART))
        return of
    expected = attribute(_BATCH_GENERATION, struct.pack("!I", of))
    messages = [(_BEGIN, 0, _HEAD.pack(0, 0, _SUBSYSTEM) + expected)]
    for number, (kind, body) in enumerate(bodies, start=1):
        last = netlink.ACK if number == len(bodies) else 0
        messages.append((kind, last | (netlink.CREATE if kind == _NEW_ELEMENTS else 0), body))
    kernel.together([*messages, (_END, 0, _HEAD.pack(0, 0, _SUBSYSTEM))])
    return following(of)


def following(number: int) -> int:
    """The generation after one."""
    return (number + 1) % (1 << 32) or 1


def _bodies(changes: Sequence[ElementChange]) -> Iterator[tuple[int, bytes]]:
    """Messages: elements go first, for one with the same key and another value may take the place."""
    ordered = sorted(changes, key=lambda one: (one.there, one.family, one.table, one.set))
    for (there, family, table, name), group in groupby(ordered, key=lambda one: (one.there, *one[:3])):
        elements = [_element(one) for one in group]
        for first in range(0, len(elements), _AT_ONCE):
            body = _HEAD.pack(_FAMILIES[family], 0, 0)
            body += attribute(_LIST_TABLE, text(table)) + attribute(_LIST_SET, text(name))
            body += attribute(_LIST_ELEMENTS, b"".join(elements[first : first + _AT_ONCE]))
            yield _NEW_ELEMENTS if there else _DELETE_ELEMENTS, body


def _element(one: ElementChange) -> bytes:
    body = attribute(_ELEMENT_KEY, attribute(_DATA_VALUE, one.key))
    if one.value:
        body += attribute(_ELEMENT_DATA, attribute(_DATA_VALUE, one.value))
    return attribute(_LIST_ONE, body)
