"""The guest's figures as the pods' room wants them, and the host's for the VM around them."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from orlop.hypervisor.base import MemoryUse
from orlop.sandbox import statistics
from orlop.sandbox.spec import (
    ContainerStats,
    CpuStats,
    FilesystemStats,
    InterfaceStats,
    MachineMemory,
    MemoryStats,
    PodStats,
    PressureStats,
)
from orlop.wire.messages import StatsReply
from orlop.wire.statistics import ContainerUsage, Pressure

_NS = 1_000_000_000


def container_stats(use: ContainerUsage, mountpoint: str) -> ContainerStats:
    """One container's figures. ``mountpoint`` is where the host keeps its writable layer."""
    usage = use.usage
    return ContainerStats(
        container_id=use.id,
        cpu=CpuStats(timestamp=usage.timestamp, usage_ns=usage.cpu_ns),
        memory=statistics.memory(usage),
        filesystem=FilesystemStats(
            timestamp=usage.timestamp, mountpoint=mountpoint, used=use.fs_used, inodes=use.fs_inodes
        ),
        io=statistics.io(usage),
        processes=usage.pids,
        cpu_pressure=_pressure(usage.cpu_pressure),
        memory_pressure=_pressure(usage.memory_pressure),
        io_pressure=_pressure(usage.io_pressure),
        oom_events=usage.oom_kills,
    )


def pod_stats(
    reply: StatsReply,
    interfaces: tuple[InterfaceStats, ...],
    *,
    cpu_ns: int,
    use: MemoryUse,
    mountpoint: str,
) -> PodStats:
    """The pod's figures: processor time and memory are the VM process's, which include the guest's.

    ``cpu_ns`` and ``use`` are the host's figures for that process.
    """
    now = time.time_ns()
    memory = statistics.memory(reply.pod)
    overhead = max(0, use.pss - reply.pod.memory)
    return PodStats(
        cpu=CpuStats(timestamp=now, usage_ns=cpu_ns),
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
        interfaces=interfaces,
        processes=reply.pod.pids,
        containers=tuple(container_stats(item, mountpoint) for item in reply.containers),
        machine=MachineMemory(
            private=use.private,
            shared=use.shared,
            guest_used=max(0, reply.system_memory_total - reply.system_memory_available),
        ),
        io=statistics.io(reply.pod),
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
