"""Addresses as numbers, and whether they are in a range: asked of thousands, of which members write some."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from ipaddress import IPv4Network


class AddressRange:
    """Addresses from a first to a last: whether one is among them is asked of thousands."""

    def __init__(self, network: str) -> None:
        whole = IPv4Network(network)
        self._first, self._last = int(whole.network_address), int(whole.broadcast_address)

    def __contains__(self, address: str) -> bool:
        found = number(address)
        return found is not None and self._first < found < self._last


@functools.lru_cache(maxsize=1 << 15)
def number(address: str) -> int | None:
    """An IPv4 address as a number; None for what is none."""
    parts = address.split(".")
    if len(parts) != 4 or not all(part.isdecimal() and part.isascii() and len(part) < 4 for part in parts):
        return None
    numbers = [int(part) for part in parts]
    if any(one > 255 or str(one) != part for one, part in zip(numbers, parts, strict=True)):
        return None
    return numbers[0] << 24 | numbers[1] << 16 | numbers[2] << 8 | numbers[3]


def ranges(networks: Iterable[tuple[str, str]]) -> dict[str, AddressRange]:
    """Ranges by name; without what is none, which is somebody's mistake."""
    found = {}
    for name, network in networks:
        try:
            found[name] = AddressRange(network)
        except ValueError:
            continue
    return found
