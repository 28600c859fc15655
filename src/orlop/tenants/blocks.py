"""Which part of a tenant's addresses a node hands out: claimed once in the Network's status, then its own."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Final

from orlop.errors import ResourceExhausted

LARGEST: Final = 24
SMALLEST: Final = 28
"""Lengths of blocks' prefixes: 253 pods of a tenant on a node, and 13 where its range is small."""


def prefix(cidr: IPv4Network) -> int:
    """The length of the prefix of blocks of a range: sixteen of them at least, if it is large enough."""
    return max(min(max(LARGEST, cidr.prefixlen + 4), SMALLEST), cidr.prefixlen)


def free(cidr: str, taken: Iterable[str]) -> str:
    """The first block that overlaps with none of those taken. Raises ResourceExhausted."""
    whole = IPv4Network(cidr)
    others = [IPv4Network(one) for one in taken]
    for block in whole.subnets(new_prefix=prefix(whole)):
        if not any(block.overlaps(other) for other in others):
            return str(block)
    raise ResourceExhausted(f"all {len(others)} blocks of {cidr} are taken: the tenant needs a larger range")
