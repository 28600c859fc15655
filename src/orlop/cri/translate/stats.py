"""What containers and pods use, as CRI's messages.

A figure that nobody measured is left out rather than sent as 0, where CRI can tell the difference.
"""

from __future__ import annotations

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate.status import pod_metadata
from orlop.linux.usage import Pressure, Usage
from orlop.net.model import InterfaceCounters
from orlop.pods.records import ContainerRecord, ContainerUse, PodUse
from orlop.sandbox.figures import ContainerStats, LayerUse

DEFAULT_INTERFACE = "eth0"
_UNSIGNED = (1 << 64) - 1


def container_stats(use: ContainerUse) -> pb.ContainerStats:
    """One container's use."""
    return _container(use.record, use.stats)


def _container(record: ContainerRecord, stats: ContainerStats) -> pb.ContainerStats:
    usage = stats.usage
    return pb.ContainerStats(
        attributes=pb.ContainerAttributes(
            id=record.id,
            metadata=pb.ContainerMetadata(name=record.name, attempt=record.spec.attempt),
            labels=record.labels,
            annotations=record.annotations,
        ),
        cpu=_cpu(usage, stats.nano_cores),
        memory=_memory(usage, available(usage)),
        writable_layer=_layer(stats.layer),
        swap=pb.SwapUsage(timestamp=usage.timestamp, swap_usage_bytes=_figure(usage.swap)),
        io=_io(usage),
    )


def pod_stats(use: PodUse) -> pb.PodSandboxStats:
    """A pod's use, with its running containers'."""
    record, stats = use.record, use.stats
    records = {item.id: item for item in use.containers}
    usage = stats.usage
    linux = pb.LinuxPodSandboxStats(
        cpu=_cpu(usage, stats.nano_cores),
        memory=_memory(usage, stats.available),
        process=pb.ProcessUsage(timestamp=usage.timestamp, process_count=_figure(usage.processes)),
        containers=[
            _container(records[item.container_id], item)
            for item in stats.containers
            if item.container_id in records
        ],
        io=_io(usage),
    )
    if stats.interfaces:
        # Kubelets dereference the default interface of a network that is there: none without one.
        linux.network.CopyFrom(_network(stats.interfaces, usage.timestamp))
    return pb.PodSandboxStats(
        attributes=pb.PodSandboxAttributes(
            id=record.id,
            metadata=pod_metadata(record),
            labels=record.spec.labels,
            annotations=record.spec.annotations,
        ),
        linux=linux,
    )


def available(usage: Usage) -> int | None:
    """What is left of a group's memory limit, as CRI defines it; None where there is no limit."""
    return max(0, usage.memory_limit - usage.working_set) if usage.memory_limit else None


def filesystem_usage(mountpoint: str, used: int, inodes: int, timestamp: int) -> pb.FilesystemUsage:
    """Space taken on the file system that ``mountpoint`` is on."""
    return pb.FilesystemUsage(
        timestamp=timestamp,
        fs_id=pb.FilesystemIdentifier(mountpoint=mountpoint),
        used_bytes=_figure(used),
        inodes_used=_figure(inodes),
    )


def _figure(value: int) -> pb.UInt64Value:
    # Sums and rates of figures that fit need not fit themselves: what is too much is the most there can be.
    return pb.UInt64Value(value=min(max(value, 0), _UNSIGNED))


def _cpu(usage: Usage, nano_cores: int | None) -> pb.CpuUsage:
    found = pb.CpuUsage(timestamp=usage.timestamp, usage_core_nano_seconds=_figure(usage.cpu_ns))
    if nano_cores is not None:
        found.usage_nano_cores.CopyFrom(_figure(nano_cores))
    if usage.cpu_pressure is not None:
        found.psi.CopyFrom(_psi(usage.cpu_pressure))
    return found


def _memory(usage: Usage, left: int | None) -> pb.MemoryUsage:
    found = pb.MemoryUsage(
        timestamp=usage.timestamp,
        working_set_bytes=_figure(usage.working_set),
        usage_bytes=_figure(usage.memory),
        rss_bytes=_figure(usage.rss),
        page_faults=_figure(usage.page_faults),
        major_page_faults=_figure(usage.major_page_faults),
    )
    if left is not None:
        found.available_bytes.CopyFrom(_figure(left))
    if usage.memory_pressure is not None:
        found.psi.CopyFrom(_psi(usage.memory_pressure))
    return found


def _layer(value: LayerUse) -> pb.FilesystemUsage:
    return filesystem_usage(value.mountpoint, value.used, value.inodes, value.timestamp)


def _io(usage: Usage) -> pb.IoUsage:
    found = pb.IoUsage(timestamp=usage.timestamp)
    if usage.io_pressure is not None:
        found.psi.CopyFrom(_psi(usage.io_pressure))
    return found


def _psi(value: Pressure) -> pb.PsiStats:
    # The files count microseconds, CRI wants nanoseconds.
    return pb.PsiStats(
        Full=pb.PsiData(
            Total=min(value.full_total * 1000, _UNSIGNED),
            Avg10=value.full_avg10,
            Avg60=value.full_avg60,
            Avg300=value.full_avg300,
        ),
        Some=pb.PsiData(
            Total=min(value.some_total * 1000, _UNSIGNED),
            Avg10=value.some_avg10,
            Avg60=value.some_avg60,
            Avg300=value.some_avg300,
        ),
    )


def _network(interfaces: tuple[InterfaceCounters, ...], timestamp: int) -> pb.NetworkUsage:
    entries = [
        pb.NetworkInterfaceUsage(
            name=value.name,
            rx_bytes=_figure(value.rx_bytes),
            rx_errors=_figure(value.rx_errors),
            tx_bytes=_figure(value.tx_bytes),
            tx_errors=_figure(value.tx_errors),
        )
        for value in interfaces
    ]
    default = next((entry for entry in entries if entry.name == DEFAULT_INTERFACE), entries[0])
    return pb.NetworkUsage(timestamp=timestamp, default_interface=default, interfaces=entries)
