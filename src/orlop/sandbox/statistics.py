"""What both handlers do with counters: rates, and the values that the room above wants."""

from __future__ import annotations

from orlop.host import cgroupstats
from orlop.sandbox.spec import CpuStats, IoStats, MemoryStats
from orlop.wire import statistics

_NS = 1_000_000_000


Usage = cgroupstats.Usage | statistics.Usage
"""Figures of one control group, read on the host or in the guest."""


class Rates:
    """Turns counters of processor time into rates: nanoseconds of a core used per second."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int, int]] = {}

    def cpu(self, key: str, timestamp: int, usage_ns: int) -> CpuStats:
        """The counter of ``key`` with its rate."""
        rate = self.rate(key, timestamp, usage_ns)
        return CpuStats(timestamp=timestamp, usage_ns=usage_ns, usage_nano_cores=rate)

    def rate(self, key: str, timestamp: int, usage_ns: int) -> int:
        """The rate since an earlier call for ``key``; 0 the first time."""
        before = self._last.get(key)
        if before is None:
            self._last[key] = (timestamp, usage_ns, 0)
            return 0
        elapsed = timestamp - before[0]
        if elapsed < _NS // 10:
            return before[2]  # too short a time to tell
        rate = max(0, usage_ns - before[1]) * _NS // elapsed
        self._last[key] = (timestamp, usage_ns, rate)
        return rate

    def forget(self, key: str) -> None:
        """No more is asked of ``key``."""
        self._last.pop(key, None)


def memory(usage: Usage) -> MemoryStats:
    """Memory of a group; ``available`` is 0 where no limit says how much that is."""
    available = max(0, usage.memory_limit - usage.working_set) if usage.memory_limit else 0
    return MemoryStats(
        timestamp=usage.timestamp,
        usage=usage.memory,
        working_set=usage.working_set,
        rss=usage.rss,
        page_faults=usage.page_faults,
        major_page_faults=usage.major_page_faults,
        available=available,
        swap=usage.swap,
    )


def io(usage: Usage) -> IoStats:
    """Block I/O of a group."""
    return IoStats(
        timestamp=usage.timestamp,
        read_bytes=usage.read_bytes,
        write_bytes=usage.write_bytes,
        reads=usage.reads,
        writes=usage.writes,
    )
