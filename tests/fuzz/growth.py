"""Which inputs take more than their share of time when they grow: ``python -m tests.fuzz --grow``.

A part of a seed is repeated until the input is a size, and four times that. What is linear takes four times
as long then; what is quadratic sixteen times, and is a way to keep everybody waiting.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator

from tests.fuzz.kit import Target

SIZE = 32 << 10
LARGER = 4
SUSPICIOUS = 9.0
LEAST = 0.15
"""Processor seconds below which nothing is measured that means anything."""

TRIES = 12


def slow(target: Target, seed: int) -> Iterator[tuple[bytes, float, float]]:
    """Inputs that grow out of proportion, with the seconds that they take at both sizes."""
    chance = random.Random(f"{target.name} {seed}")
    for begin in target.seeds:
        for _ in range(TRIES):
            start = chance.randrange(len(begin) + 1)
            end = min(len(begin), start + chance.choice((1, 2, 3, 8, 40, 200)))
            unit = begin[start:end] or b"a"
            small, large = (_grown(begin, start, end, unit, size) for size in (SIZE, LARGER * SIZE))
            later = _seconds(target, large)
            if later < LEAST:
                continue
            before, later = (
                min(_seconds(target, small) for _ in range(2)),
                min(later, _seconds(target, large)),
            )
            if later > SUSPICIOUS * before and later >= LEAST:
                yield large, before, later


def _grown(begin: bytes, start: int, end: int, unit: bytes, size: int) -> bytes:
    return begin[:start] + unit * (size // len(unit)) + begin[end:]


def _seconds(target: Target, data: bytes) -> float:
    begun = time.process_time()
    with contextlib.suppress(*target.errors):
        target.run(data)
    return time.process_time() - begun
