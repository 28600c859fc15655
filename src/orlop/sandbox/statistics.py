"""The figures of a control group as the room above wants them, for both handlers."""

from __future__ import annotations

from orlop.host import cgroupstats
from orlop.sandbox.spec import IoStats, MemoryStats
from orlop.wire import statistics

Usage = cgroupstats.Usage | statistics.Usage
"""Figures of one control group, read on the host or in the guest."""


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
