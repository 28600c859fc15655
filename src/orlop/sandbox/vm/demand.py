"""What pods will come, as far as those that came tell: their shapes, and how many at once."""

from __future__ import annotations

from collections import Counter, deque

from orlop.hypervisor.base import MachineShape

_FADE = 0.9
BURST = 10.0
"""Seconds within which pods count as one burst."""

HALF_LIFE = 900.0
"""Seconds after which a burst is expected to be half as large as the last one."""

_MOST = 1024


class Demand:
    """Which shapes were asked for lately; older requests count less and less."""

    def __init__(self) -> None:
        self._weights: dict[MachineShape, float] = {}

    def note(self, shape: MachineShape) -> None:
        """A pod asked for ``shape``."""
        self._weights = {key: weight * _FADE for key, weight in self._weights.items() if weight > 0.05}
        self._weights[shape] = self._weights.get(shape, 0.0) + 1.0

    def plan(self, size: int, default: MachineShape) -> list[MachineShape]:
        """``size`` shapes to keep ready, the most wanted first."""
        weights = dict(self._weights) or {default: 1.0}
        plan: list[MachineShape] = []
        for _ in range(size):
            # Highest averages (D'Hondt): the shape with most requests per clone kept gets the next.
            kept = Counter(plan)
            plan.append(max(weights, key=lambda shape: weights[shape] / (kept[shape] + 1)))
        return plan


class Bursts:
    """How many pods came within a few seconds; a burst is expected again, less and less."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_MOST)
        self._largest = 0.0
        self._at = 0.0

    def note(self, now: float) -> None:
        """A pod came."""
        self._times.append(now)
        while self._times[0] < now - BURST:
            self._times.popleft()
        self._largest = max(self._faded(now), float(len(self._times)))
        self._at = now

    def expected(self, now: float) -> int:
        """How many may come at once."""
        return round(self._faded(now))

    def _faded(self, now: float) -> float:
        return float(self._largest * 0.5 ** (max(0.0, now - self._at) / HALF_LIFE))
