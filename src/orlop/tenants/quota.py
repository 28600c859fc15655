"""One quota over many namespaces.

Kubernetes counts by namespace. A tenant's quota is dealt out to its namespaces, each with a ResourceQuota:
what it uses, and an even part of what is free. As one fills up, the operator takes from the others what they
do not use. At no moment may all of them together use more than the tenant has: so a part is only given once
it has been taken elsewhere, and it has been taken when the API server's own count (``status.hard``) says so.
Until then both what is asked and what is in force count, and whatever is used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import ROUND_CEILING, Decimal
from typing import Any, Final

from orlop.tenants.desired import QUOTA_NAMES
from orlop.tenants.model import Quota, quantity
from orlop.value import Value

UNITS: Final = {"pods": Decimal(1), "cpu": Decimal("0.001"), "memory": Decimal(1), "storage": Decimal(1)}
"""The smallest part of each that is dealt out: a pod, a thousandth of a CPU, a byte."""


class Allotment(Value, frozen=True):
    """One namespace's part of one resource, in units: what it was given, what is in force, what is used."""

    asked: int = 0
    in_force: int | None = 0
    """None while the API server does not count yet, which bounds nothing."""
    used: int = 0

    @property
    def committed(self) -> int:
        """The most that it may use, now or by what is under way."""
        return max(self.asked, self.in_force or 0, self.used)


def units(resource: str, text: str | int) -> int:
    """A quantity in whole units of its resource, rounded up as Kubernetes does."""
    return int((quantity(text) / UNITS[resource]).to_integral_value(ROUND_CEILING))


def written(resource: str, amount: int) -> str:
    """The same as Kubernetes writes it."""
    return (
        f"{amount}m"
        if resource == "cpu" and amount % 1000
        else str(amount // (1000 if resource == "cpu" else 1))
    )


def shown(resource: str, amount: int) -> str:
    """The same for people: the largest binary unit that says it exactly, or nearly."""
    if resource not in ("memory", "storage"):
        return written(resource, amount)
    for suffix, power in (("Ti", 4), ("Gi", 3), ("Mi", 2), ("Ki", 1)):
        if amount >= 1024**power:
            return f"{amount / 1024**power:.1f}".removesuffix(".0") + suffix
    return str(amount)


def same(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether two ResourceQuotas ask for the same: the API server writes 1000 pods as 1k."""
    return {key: quantity(text) for key, text in one.items()} == {
        key: quantity(text) for key, text in other.items()
    }


def totals(quota: Quota) -> dict[str, int]:
    """What a tenant has of each resource that its quota names, in units."""
    wanted = {"pods": quota.pods, "cpu": quota.cpu, "memory": quota.memory, "storage": quota.storage}
    return {name: units(name, amount) for name, amount in wanted.items() if amount is not None}


def share(resource: str, document: Mapping[str, Any]) -> Allotment:
    """What a ResourceQuota of the API says of one resource."""
    name = QUOTA_NAMES[resource]
    status = document.get("status", {})
    asked = document.get("spec", {}).get("hard", {}).get(name)
    in_force, used = status.get("hard", {}).get(name), status.get("used", {}).get(name)
    return Allotment(
        asked=units(resource, asked) if asked is not None else 0,
        in_force=units(resource, in_force) if in_force is not None else None,
        used=units(resource, used) if used is not None else 0,
    )


def _even(total: int, parts: int) -> list[int]:
    return [total // parts + (number < total % parts) for number in range(parts)]


def deal(total: int, shares: Sequence[Allotment], *, apart: int = 0) -> list[int]:
    """What each namespace is to be asked to keep to now.

    ``apart`` is what others, which are on their way out, may still use. Call it again when what is in force
    has changed: what had to be taken first is then free to be given.
    """
    if not shares:
        return []
    free = max(0, total - apart - sum(one.used for one in shares))
    targets = [one.used + part for one, part in zip(shares, _even(free, len(shares)), strict=True)]
    room = total - apart - sum(one.committed for one in shares)
    if room >= 0 and not _tight(free, shares) and sum(one.asked for one in shares) + apart == total:
        return [one.asked for one in shares]
    dealt = []
    for one, target in zip(shares, targets, strict=True):
        given = min(max(0, target - one.committed), max(0, room))
        room -= given
        dealt.append(min(target, one.committed + given))
    return dealt


def _tight(free: int, shares: Sequence[Allotment]) -> bool:
    """Whether one has less than half of an even part left: before that nothing is worth moving."""
    return any((one.asked - one.used) * len(shares) * 2 < free for one in shares)
