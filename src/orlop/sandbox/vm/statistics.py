"""The guest's figures as the pods' room wants them, and the host's for the VM around them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from orlop.net.model import InterfaceCounters
from orlop.sandbox.spec import (
    ContainerStats,
    CpuStats,
    FilesystemStats,
    InterfaceStats,
    IoStats,
    MemoryStats,
    PodStats,
    PressureStats,
)
from orlop.wire.messages import StatsReply
from orlop.wire.statistics import ContainerUsage, Pressure, Usage

_NS = 1_000_000_000


class Rates:
    """Turns counters of processor time into rates: nanoseconds of a core used per second."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[int, int, int]] = {}

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


def container_stats(use: ContainerUsage, rates: Rates, mountpoint: str) -> ContainerStats:
    """One container's figures. ``mountpoint`` is where the host keeps its writable layer."""
    usage = use.usage
    return ContainerStats(
        container_id=use.id,
        cpu=CpuStats(
            timestamp=usage.timestamp,
            usage_ns=usage.cpu_ns,
            usage_nano_cores=rates.rate(use.id, usage.timestamp, usage.cpu_ns),
        ),
        memory=_memory(usage),
        filesystem=FilesystemStats(
            timestamp=usage.timestamp, mountpoint=mountpoint, used=use.fs_used, inodes=use.fs_inodes
        ),
        io=_io(usage),
        processes=usage.pids,
        cpu_pressure=_pressure(usage.cpu_pressure),
        memory_pressure=_pressure(usage.memory_pressure),
        io_pressure=_pressure(usage.io_pressure),
        oom_events=usage.oom_kills,
    )


def pod_stats(
    pod_id: str,
    reply: StatsReply,
    interfaces: tuple[InterfaceCounters, ...],
    *,
    cpu_ns: int,
    resident: int,
    rates: Rates,
    mountpoint: str,
) -> PodStats:
    """The pod's figures: processor time and memory are the VM process's, which include the guest's.

    ``cpu_ns`` and ``resident`` (bytes) are the host's figures for that process.
    """
    now = time.time_ns()
    memory = _memory(reply.pod)
    overhead = max(0, resident - reply.pod.memory)
    return PodStats(
        cpu=CpuStats(timestamp=now, usage_ns=cpu_ns, usage_nano_cores=rates.rate(pod_id, now, cpu_ns)),
        memory=MemoryStats(
            timestamp=now,
            usage=reply.pod.memory + overhead,
            working_set=memory.working_set + overhead,
            rss=memory.rss + overhead,
            page_faults=memory.page_faults,
            major_page_faults=memory.major_page_faults,
            available=reply.system_memory_available,
            swap=memory.swap,
        ),
        interfaces=tuple(_interface(counters) for counters in interfaces),
        processes=reply.pod.pids,
        containers=tuple(container_stats(use, rates, mountpoint) for use in reply.containers),
        overhead_memory=overhead,
        io=_io(reply.pod),
        cpu_pressure=_pressure(reply.pod.cpu_pressure),
        memory_pressure=_pressure(reply.pod.memory_pressure),
        io_pressure=_pressure(reply.pod.io_pressure),
    )


def process_cpu_ns(pid: int, proc: Path = Path("/proc")) -> int:
    """Processor time a process has used so far; 0 when it has ended."""
    with suppress(OSError, ValueError, IndexError):
        fields = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        user, system = fields.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) * (_NS // os.sysconf("SC_CLK_TCK"))
    return 0


def _memory(usage: Usage) -> MemoryStats:
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


def _io(usage: Usage) -> IoStats:
    return IoStats(
        timestamp=usage.timestamp,
        read_bytes=usage.read_bytes,
        write_bytes=usage.write_bytes,
        reads=usage.reads,
        writes=usage.writes,
    )


def _pressure(pressure: Pressure | None) -> PressureStats | None:
    if pressure is None:
        return None
    return PressureStats(
        some_avg10=pressure.some_avg10,
        some_avg60=pressure.some_avg60,
        some_avg300=pressure.some_avg300,
        some_total=pressure.some_total,
        full_avg10=pressure.full_avg10,
        full_avg60=pressure.full_avg60,
        full_avg300=pressure.full_avg300,
        full_total=pressure.full_total,
    )


def _interface(counters: InterfaceCounters) -> InterfaceStats:
    return InterfaceStats(
        name=counters.name,
        rx_bytes=counters.rx_bytes,
        rx_errors=counters.rx_errors,
        tx_bytes=counters.tx_bytes,
        tx_errors=counters.tx_errors,
        rx_packets=counters.rx_packets,
        rx_dropped=counters.rx_dropped,
        tx_packets=counters.tx_packets,
        tx_dropped=counters.tx_dropped,
    )
