"""What containers of this handler use, from their cgroups."""

from __future__ import annotations

import os
import time
from pathlib import Path

from orlop.errors import NotFound
from orlop.host import cgroupstats, threads
from orlop.host.cgroups import Cgroup
from orlop.host.cgroupstats import Pressure
from orlop.net import tap
from orlop.sandbox import statistics
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
from orlop.storage import rootfs

_DISK_INTERVAL = 10.0


class DiskUse:
    """Space taken by a container's writable layer; counted again after 10 seconds at the earliest."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._taken = FilesystemStats()
        self._next = 0.0

    async def get(self) -> FilesystemStats:
        """The latest count."""
        now = time.monotonic()
        if now >= self._next:
            used, inodes = await rootfs.usage(self._directory)
            self._taken = FilesystemStats(
                timestamp=time.time_ns(), mountpoint=os.fspath(self._directory), used=used, inodes=inodes
            )
            self._next = now + _DISK_INTERVAL
        return self._taken


async def container_stats(container_id: str, group: Cgroup, disk: DiskUse) -> ContainerStats:
    """Use of one container."""
    used = await threads.call(cgroupstats.usage, group)
    return ContainerStats(
        container_id=container_id,
        cpu=CpuStats(timestamp=used.timestamp, usage_ns=used.cpu_ns),
        memory=statistics.memory(used),
        filesystem=await disk.get(),
        io=statistics.io(used),
        processes=used.processes,
        cpu_pressure=_pressure(used.cpu_pressure),
        memory_pressure=_pressure(used.memory_pressure),
        io_pressure=_pressure(used.io_pressure),
        oom_events=used.oom_kills,
    )


def _pressure(found: Pressure | None) -> PressureStats | None:
    if found is None:
        return None
    some, full = found.some, found.full
    return PressureStats(
        some_avg10=some[0],
        some_avg60=some[1],
        some_avg300=some[2],
        some_total=some[3],
        full_avg10=full[0],
        full_avg60=full[1],
        full_avg300=full[2],
        full_total=full[3],
    )


async def interfaces(netns: Path) -> tuple[InterfaceStats, ...]:
    """Counters of the pod's interfaces; none when the namespace is gone."""
    try:
        return await tap.interface_stats(netns)
    except (NotFound, OSError):
        return ()


def pod_stats(members: list[ContainerStats], found: tuple[InterfaceStats, ...]) -> PodStats:
    """Use of a pod: the sum of its containers, for nothing else runs in it."""
    now = time.time_ns()
    return PodStats(
        cpu=CpuStats(timestamp=now, usage_ns=sum(item.cpu.usage_ns for item in members)),
        memory=MemoryStats(
            timestamp=now,
            usage=sum(item.memory.usage for item in members),
            working_set=sum(item.memory.working_set for item in members),
            rss=sum(item.memory.rss for item in members),
            page_faults=sum(item.memory.page_faults for item in members),
            major_page_faults=sum(item.memory.major_page_faults for item in members),
            available=sum(item.memory.available for item in members),
            swap=sum(item.memory.swap for item in members),
        ),
        interfaces=found,
        processes=sum(item.processes for item in members),
        containers=tuple(members),
        io=IoStats(
            timestamp=now,
            read_bytes=sum(item.io.read_bytes for item in members),
            write_bytes=sum(item.io.write_bytes for item in members),
            reads=sum(item.io.reads for item in members),
            writes=sum(item.io.writes for item in members),
        ),
    )
