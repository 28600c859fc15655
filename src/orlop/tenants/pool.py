"""The addresses that the cluster has for its tenants: ranges, and which one is next."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError

from orlop.errors import InvalidArgument
from orlop.tenants.places import number
from orlop.value import Value


def bounds(text: str) -> tuple[int, int]:
    """The first and last address of ``192.0.2.0/28`` or ``192.0.2.5-192.0.2.9``. Raises InvalidArgument."""
    first, dash, last = text.partition("-")
    try:
        if dash:
            low, high = int(IPv4Address(first.strip())), int(IPv4Address(last.strip()))
        else:
            network = IPv4Network(text.strip())
            low, high = int(network[0]), int(network[-1])
    except (AddressValueError, NetmaskValueError, ValueError) as error:
        raise InvalidArgument(f"{text!r} is no range of addresses: {error}") from error
    if low > high:
        raise InvalidArgument(f"{text!r} is no range of addresses: its end comes before its beginning")
    return low, high


class AddressRanges(Value, frozen=True):
    """Addresses as ranges in order, none of which touches another."""

    ranges: tuple[tuple[int, int], ...] = ()

    @property
    def size(self) -> int:
        """How many addresses it has."""
        return sum(last - first + 1 for first, last in self.ranges)

    def __contains__(self, address: str) -> bool:
        found = number(address)  # None: members write what they like into a Service's loadBalancerIP
        return found is not None and any(first <= found <= last for first, last in self.ranges)

    def after(self, latest: str, taken: Collection[str]) -> str | None:
        """The first free address after the one that was given last; None when all are taken."""
        begin = int(IPv4Address(latest)) + 1 if latest else 0
        parts = [(max(first, begin), last) for first, last in self.ranges]
        parts += [(first, min(last, begin - 1)) for first, last in self.ranges]
        for first, last in parts:
            # Among one more than are taken one is free, in a range that has so many.
            for one in range(first, min(last, first + len(taken)) + 1):
                address = str(IPv4Address(one))
                if address not in taken:
                    return address
        return None


def merged(texts: Iterable[str]) -> AddressRanges:
    """What several ranges have together. Raises InvalidArgument."""
    found: list[tuple[int, int]] = []
    for first, last in sorted(bounds(text) for text in texts):
        if found and first <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(found[-1][1], last))
        else:
            found.append((first, last))
    return AddressRanges(ranges=tuple(found))
