"""What a container uses, in the form of the events that runc shows."""

from __future__ import annotations

from typing import Any

from orlop.sandbox.figures import ContainerStats


def statistics(use: ContainerStats) -> dict[str, Any]:
    """The ``data`` of a "stats" event: nanoseconds, bytes, counts. A limit of 0 is none."""
    usage = use.usage
    return {
        "cpu": {
            "usage": {
                "total": usage.cpu_ns,
                "kernel": usage.cpu_system_ns,
                "user": usage.cpu_user_ns,
            },
            "throttling": {
                "periods": usage.cpu_periods,
                "throttledPeriods": usage.cpu_throttled_periods,
                "throttledTime": usage.cpu_throttled_ns,
            },
        },
        "memory": {
            "cache": usage.cache,
            "usage": {
                "limit": usage.memory_limit,
                "usage": usage.memory,
                "max": usage.memory_peak,
                "failcnt": usage.memory_failures,
            },
            "swap": {"usage": usage.swap},
            "kernel": {"usage": usage.kernel_memory},
            "raw": {
                "rss": usage.rss,
                "mapped_file": usage.mapped_file,
                "pgfault": usage.page_faults,
                "pgmajfault": usage.major_page_faults,
            },
        },
        "pids": {"current": usage.pids, "limit": usage.pids_limit},
    }
