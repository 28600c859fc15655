"""What nftables' rules have counted, over netlink: those of one namespace cost one call and no process."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

from orlop.linux.netlink import Netlink, attributes

_GET_RULES: Final = 10 << 8 | 7
"""NFT_MSG_GETRULE of the subsystem nftables."""
_HEAD: Final = struct.Struct("!BBH")
_EXPRESSIONS, _USER_DATA, _ONE = 4, 7, 1
_NAME, _DATA = 1, 2
_BYTES, _PACKETS = 1, 2
_COMMENT: Final = 0
_ATTRIBUTE: Final = struct.Struct("=HH")
_KIND: Final = 0x3FFF


class Counted(NamedTuple):
    """What a rule has counted."""

    comment: str
    packets: int
    bytes: int


def counted(kernel: Netlink) -> list[Counted]:
    """All rules of the socket's namespace that count and have a comment. Raises OSError."""
    found = (_rule(data) for _, data in kernel.dump(_GET_RULES, _HEAD.pack(0, 0, 0)))
    return [one for one in found if one is not None]


def _rule(data: bytes) -> Counted | None:
    fields = attributes(data[_HEAD.size :])
    comment = _comment(fields.get(_USER_DATA, b""))
    if not comment:
        return None
    for kind, one in _each(fields.get(_EXPRESSIONS, b"")):
        parts = attributes(one)
        if kind == _ONE and parts.get(_NAME) == b"counter\0":
            counts = attributes(parts.get(_DATA, b""))
            packets, size = (int.from_bytes(counts.get(key, b""), "big") for key in (_PACKETS, _BYTES))
            return Counted(comment, packets, size)
    return None


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    """A run of attributes in which a kind may come more than once."""
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            return
        yield kind & _KIND, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3


def _comment(data: bytes) -> str:
    """The comment among what nft(8) has written about a rule: a type, a length, a value, and so on."""
    offset = 0
    while offset + 2 <= len(data):
        kind, length = data[offset], data[offset + 1]
        value = data[offset + 2 : offset + 2 + length]
        if kind == _COMMENT:
            return value.rstrip(b"\0").decode(errors="replace")
        offset += 2 + length
    return ""
