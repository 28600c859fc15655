"""Dividing the guest's memory, so that who takes too much of it meets a limit of its own.

All containers together stay below the guest's memory: the kernel and the agent keep a reserve, the guest as a
whole never runs short, and nobody has to wait until it has found the last page. Containers without a limit
share a group that has what the limits of the others leave. So one of them that grows without end is killed
there, and not a neighbour that keeps to its limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from orlop.guest.machine import memory
from orlop.guest.machine.cgroup import OPEN, POD, GuestCgroup

_RESERVE = 64 << 20
_PLUGGED_SHARE = 64
"""Plugged memory keeps one part in so many for its own page descriptors."""

_BOOTED_WITH = 512 << 20
_LEAST = 64 << 20
_USUAL_WEIGHT = 100
_MOST_WEIGHT = 10000


@dataclass
class Portion:
    """What one container may use: ``limit`` in bytes, 0 or less for none; ``weight`` of cgroup v2, 0 for the
    usual.

    It is one of the ``open`` ones if it had no limit when it was made.
    """

    limit: int
    weight: int

    def __post_init__(self) -> None:
        """Decide for good where it belongs."""
        self.open = self.limit <= 0


def for_containers(total: int) -> int:
    """How much of ``total`` bytes of memory all containers may have together."""
    kept = _RESERVE + max(0, total - _BOOTED_WITH) // _PLUGGED_SHARE
    return total - min(kept, total // 4)


class MemoryDivision:
    """Keeps the limits of the pod's group and of the open one."""

    def __init__(self) -> None:
        self._room = 0
        self._written: dict[str, str] = {}

    def measure(self) -> None:
        """See how much memory the guest has now."""
        self._room = for_containers(memory.total())

    def apply(self, portions: Iterable[Portion]) -> None:
        """Divide it among containers that live."""
        if not self._room:
            self.measure()
        present = list(portions)
        limited = sum(one.limit for one in present if not one.open and one.limit > 0)
        self._limit(POD, self._room)
        self._limit(OPEN, max(self._room - limited, min(_LEAST, self._room)))
        if any(not one.open for one in present):
            # The group gets for its members what they would get without it.
            weight = sum(one.weight or _USUAL_WEIGHT for one in present if one.open)
            self._write(OPEN, "cpu.weight", str(min(max(weight, 1), _MOST_WEIGHT)))

    def _limit(self, group: GuestCgroup, limit: int) -> None:
        # A limit below what is used would be made true at once, by killing, while the agent waits for it.
        if str(limit) != self._written.get(f"{group.path}/memory.max"):
            self._write(group, "memory.max", str(max(limit, group.number("memory.current"))))

    def _write(self, group: GuestCgroup, name: str, value: str) -> None:
        path = f"{group.path}/{name}"
        if self._written.get(path) != value:
            group.write(name, value)
            self._written[path] = value
