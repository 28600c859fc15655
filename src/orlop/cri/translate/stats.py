"""What containers and pods use, as CRI's messages.

A figure that nobody measured is left out rather than sent as 0, where CRI can tell the difference.
"""

from __future__ import annotations

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate.status import pod_metadata
from orlop.pods.records import ContainerRecord, ContainerUse, PodUse
from orlop.sandbox.spec import (
    ContainerStats,
    CpuStats,
    FilesystemStats,
    InterfaceStats,
    IoStats,
    MemoryStats,
    PressureStats,
)

DEFAULT_INTERFACE = "eth0"


def container_stats(use: ContainerUse) -> pb.ContainerStats:
    """One container's use."""
    return _container(use.record, use.stats)


def _container(record: ContainerRecord, stats: ContainerStats) -> pb.ContainerStats:
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=record.id,
            metadata=pb.ContainerMetadata(name=record.name, attempt=record.spec.attempt),
            labels=record.labels,
            annotations=record.annotations,
        ),
        cpu=_cpu(stats.cpu, stats.cpu_pressure),
        memory=_memory(stats.memory, stats.memory_pressure),
        writable_layer=_filesystem(stats.filesystem),
        swap=pb.SwapUsage(
            timestamp=stats.memory.timestamp, swap_usage_bytes=pb.UInt64Value(value=stats.memory.swap)
        ),
        io=_io(stats.io, stats.io_pressure),
    )


def pod_stats(use: PodUse) -> pb.PodSandboxStats:
    """A pod's use, with its running containers'."""
    record, stats = use.record, use.stats
    records = {item.id: item for item in use.containers}
    timestamp = stats.cpu.timestamp
    return pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=record.id,
            metadata=pod_metadata(record),
            labels=record.spec.labels,
            annotations=record.spec.annotations,
        ),
        linux=pb.LinuxPodSandboxStats(
            cpu=_cpu(stats.cpu, stats.cpu_pressure),
            memory=_memory(stats.memory, stats.memory_pressure),
            network=_network(stats.interfaces, timestamp),
            process=pb.ProcessUsage(timestamp=timestamp, process_count=pb.UInt64Value(value=stats.processes)),
            containers=[
                _container(records[item.container_id], item)
                for item in stats.containers
                if item.container_id in records
            ],
            io=_io(stats.io, stats.io_pressure),
        ),
    )


def filesystem_usage(mountpoint: str, used: int, inodes: int, timestamp: int) -> pb.FilesystemUsage:
    """Space taken on the file system that ``mountpoint`` is on."""
    return pb.FilesystemUsage(
        timestamp=timestamp,
        fs_id=pb.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=pb.UInt64Value(value=used),
        inodes_used=pb.UInt64Value(value=inodes),
    )


def _cpu(value: CpuStats, pressure: PressureStats | None) -> pb.CpuUsage:
    usage = pb.CpuUsage(
        timestamp=value.timestamp,
        usage_core_nano_seconds=pb.UInt64Value(value=value.usage_ns),
        usage_nano_cores=pb.UInt64Value(value=value.usage_nano_cores),
    )
    if pressure is not None:
        usage.psi.CopyFrom(_psi(pressure))
    return usage


def _memory(value: MemoryStats, pressure: PressureStats | None) -> pb.MemoryUsage:
    usage = pb.MemoryUsage(
        timestamp=value.timestamp,
        working_set_bytes=pb.UInt64Value(value=value.working_set),
        usage_bytes=pb.UInt64Value(value=value.usage),
        rss_bytes=pb.UInt64Value(value=value.rss),
        page_faults=pb.UInt64Value(value=value.page_faults),
        major_page_faults=pb.UInt64Value(value=value.major_page_faults),
    )
    if value.available:
        usage.available_bytes.value = value.available
    if pressure is not None:
        usage.psi.CopyFrom(_psi(pressure))
    return usage


def _filesystem(value: FilesystemStats) -> pb.FilesystemUsage:
    return filesystem_usage(value.mountpoint, value.used, value.inodes, value.timestamp)


def _io(value: IoStats, pressure: PressureStats | None) -> pb.IoUsage:
    usage = pb.IoUsage(timestamp=value.timestamp)
    if pressure is not None:
        usage.psi.CopyFrom(_psi(pressure))
    return usage


def _psi(value: PressureStats) -> pb.PsiStats:
    # The files count microseconds, CRI wants nanoseconds.
    return pb.PsiStats(
        Full=pb.PsiData(
            Total=value.full_total * 1000,
            Avg10=value.full_avg10,
            Avg60=value.full_avg60,
            Avg300=value.full_avg300,
        ),
        Some=pb.PsiData(
            Total=value.some_total * 1000,
            Avg10=value.some_avg10,
            Avg60=value.some_avg60,
            Avg300=value.some_avg300,
        ),
    )


def _network(interfaces: tuple[InterfaceStats, ...], timestamp: int) -> pb.NetworkUsage:
    usage = pb.NetworkUsage(timestamp=timestamp)
    for value in interfaces:
        entry = pb.NetworkInterfaceUsage(
            name=value.name,
            rx_bytes=pb.UInt64Value(value=value.rx_bytes),
            rx_errors=pb.UInt64Value(value=value.rx_errors),
            tx_bytes=pb.UInt64Value(value=value.tx_bytes),
            tx_errors=pb.UInt64Value(value=value.tx_errors),
        )
        if value.name == DEFAULT_INTERFACE:
            usage.default_interface.CopyFrom(entry)
        usage.interfaces.append(entry)
    return usage
