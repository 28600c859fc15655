"""Metrics of pods and containers, under the names that cAdvisor made customary.

The kubelet asks for the descriptors once and serves the values at ``/metrics/cadvisor``. A value
is a whole number (CRI has no other kind), so that seconds are rounded down. Label values stand in
the order of the descriptor's label keys. Timestamps are 0: the figures are read when asked for.

Descriptors are the same for all pods, so that only what every handler can measure has one; a name is
of the pod, of its containers, or of both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.linux.usage import DeviceUse, Pressure, Usage
from orlop.net.model import InterfaceCounters
from orlop.pods.records import ContainerRecord, PodRecord, PodUse
from orlop.sandbox.figures import ContainerStats, HostMemory, PodStats

_BASE = ("pod", "namespace", "container", "id", "image")
_COUNTER, _GAUGE = pb.COUNTER, pb.GAUGE
_NS = 1_000_000_000
_US = 1_000_000
_UNSIGNED = (1 << 64) - 1

Sample = tuple[tuple[str, ...], int]
"""Values of the labels beyond the base ones, and the figure."""


class _Metric(NamedTuple):
    name: str
    kind: pb.MetricType.ValueType
    help: str
    labels: tuple[str, ...] = ()


Read = Callable[[ContainerRecord, ContainerStats], Iterator[Sample]]


class _Container(NamedTuple):
    """A metric of each container; ``read`` yields nothing where there is no figure."""

    metric: _Metric
    read: Read


class _Pod(NamedTuple):
    """A metric of the pod as a whole."""

    metric: _Metric
    read: Callable[[PodStats], int]


def _counter(name: str, text: str, read: Callable[[Usage], int]) -> _Container:
    return _Container(_Metric(f"container_{name}_total", _COUNTER, text), _used(read))


def _gauge(name: str, text: str, read: Callable[[Usage], int]) -> _Container:
    return _Container(_Metric(f"container_{name}", _GAUGE, text), _used(read))


def _used(read: Callable[[Usage], int]) -> Read:
    def samples(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        yield (), read(stats.usage)

    return samples


def _limited(name: str, text: str, read: Callable[[Usage], int]) -> _Container:
    """The kernel counts periods for a container with a processor limit only."""

    def samples(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        if record.resources.cpu_quota > 0:
            yield (), read(stats.usage)

    return _Container(_Metric(f"container_cpu_cfs_{name}_total", _COUNTER, text), samples)


def _spec(name: str, text: str, read: Callable[[ContainerRecord], int | None]) -> _Container:
    def samples(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        value = read(record)
        if value is not None:
            yield (), value

    return _Container(_Metric(f"container_{name}", _GAUGE, text), samples)


def _faults(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
    yield ("pgfault", "container"), stats.usage.page_faults
    yield ("pgmajfault", "container"), stats.usage.major_page_faults


def _layer(
    name: str, kind: pb.MetricType.ValueType, text: str, read: Callable[[ContainerStats], int]
) -> _Container:
    """A metric of the writable layer, whose device is where the host keeps it."""

    def samples(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        yield (stats.layer.mountpoint,), read(stats)

    return _Container(_Metric(f"container_fs_{name}", kind, text, ("device",)), samples)


def _device(operation: str, read: Callable[[DeviceUse], int], stats: ContainerStats) -> Iterator[Sample]:
    for one in stats.usage.devices:
        yield (f"{one.major}:{one.minor}", str(one.major), str(one.minor), operation), read(one)


def _devices(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
    yield from _device("Read", lambda one: one.read_bytes, stats)
    yield from _device("Write", lambda one: one.write_bytes, stats)


def _pressure(which: str, read: Callable[[Usage], Pressure | None]) -> tuple[_Container, _Container]:
    def waiting(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        pressure = read(stats.usage)
        if pressure is not None:
            yield (), pressure.some_total // _US

    def stalled(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        pressure = read(stats.usage)
        if pressure is not None:
            yield (), pressure.full_total // _US

    name = f"container_pressure_{which}"
    return (
        _Container(
            _Metric(f"{name}_waiting_seconds_total", _COUNTER, f"Time some tasks waited for {which}."),
            waiting,
        ),
        _Container(
            _Metric(f"{name}_stalled_seconds_total", _COUNTER, f"Time all tasks waited for {which}."),
            stalled,
        ),
    )


_CPU = _counter("cpu_usage_seconds", "Processor time used, in seconds.", lambda usage: usage.cpu_ns // _NS)
_USAGE = _gauge("memory_usage_bytes", "Memory in use, page cache included.", lambda usage: usage.memory)
_WORKING = _gauge(
    "memory_working_set_bytes",
    "Memory in use that is not easily reclaimed.",
    lambda usage: usage.working_set,
)
_RSS = _gauge("memory_rss", "Anonymous memory in use.", lambda usage: usage.rss)
_PROCESSES = _gauge("processes", "Processes that run.", lambda usage: usage.processes)

_CONTAINER = (
    _CPU,
    _counter(
        "cpu_user_seconds",
        "Processor time used by programs, in seconds.",
        lambda usage: usage.cpu_user_ns // _NS,
    ),
    _counter(
        "cpu_system_seconds",
        "Processor time used by the kernel on behalf of programs, in seconds.",
        lambda usage: usage.cpu_system_ns // _NS,
    ),
    _limited("periods", "Periods of the processor limit that have passed.", lambda usage: usage.cpu_periods),
    _limited(
        "throttled_periods",
        "Periods in which the processor limit was reached.",
        lambda usage: usage.cpu_throttled_periods,
    ),
    _limited(
        "throttled_seconds",
        "Time held back by the processor limit, in seconds.",
        lambda usage: usage.cpu_throttled_ns // _NS,
    ),
    _USAGE,
    _WORKING,
    _RSS,
    _gauge("memory_swap", "Swap in use, in bytes.", lambda usage: usage.swap),
    _gauge("memory_cache", "Page cache, in bytes.", lambda usage: usage.cache),
    _gauge("memory_mapped_file", "Files mapped into memory, in bytes.", lambda usage: usage.mapped_file),
    _gauge(
        "memory_kernel_usage", "The kernel's own memory for it, in bytes.", lambda usage: usage.kernel_memory
    ),
    _gauge(
        "memory_max_usage_bytes", "The most memory that was in use at once.", lambda usage: usage.memory_peak
    ),
    _Container(
        _Metric("container_memory_failcnt", _COUNTER, "How often the memory limit was hit."),
        _used(lambda usage: usage.memory_failures),
    ),
    _Container(
        _Metric("container_memory_failures_total", _COUNTER, "Page faults.", ("failure_type", "scope")),
        _faults,
    ),
    _counter("oom_events", "Processes killed for lack of memory.", lambda usage: usage.oom_kills),
    _layer("usage_bytes", _GAUGE, "Size of the writable layer.", lambda stats: stats.layer.used),
    _layer(
        "limit_bytes", _GAUGE, "Size of the writable layer's file system.", lambda stats: stats.layer.size
    ),
    _layer(
        "inodes_total", _GAUGE, "Files that its file system can hold.", lambda stats: stats.layer.inodes_total
    ),
    _layer(
        "inodes_free",
        _GAUGE,
        "Files that its file system can still hold.",
        lambda stats: stats.layer.inodes_free,
    ),
    _layer("reads_bytes_total", _COUNTER, "Bytes read from disks.", lambda stats: stats.usage.read_bytes),
    _layer("reads_total", _COUNTER, "Reads from disks.", lambda stats: stats.usage.reads),
    _layer("writes_bytes_total", _COUNTER, "Bytes written to disks.", lambda stats: stats.usage.write_bytes),
    _layer("writes_total", _COUNTER, "Writes to disks.", lambda stats: stats.usage.writes),
    _Container(
        _Metric(
            "container_blkio_device_usage_total",
            _COUNTER,
            "Bytes moved from and to each disk.",
            ("device", "major", "minor", "operation"),
        ),
        _devices,
    ),
    _PROCESSES,
    _gauge("threads", "Threads that run.", lambda usage: usage.pids),
    _gauge("threads_max", "Threads that may run; 0 for no limit.", lambda usage: usage.pids_limit),
    _gauge("file_descriptors", "Files that its processes have open.", lambda usage: usage.descriptors),
    _gauge("sockets", "Sockets that its processes have open.", lambda usage: usage.sockets),
    _spec(
        "start_time_seconds",
        "When the container started, since the epoch.",
        lambda record: record.started_at // _NS,
    ),
    _spec("last_seen", "When the container was last seen, since the epoch.", lambda record: int(time.time())),
    _spec(
        "spec_cpu_period",
        "Period of the processor limit, in microseconds.",
        lambda record: record.resources.cpu_period or None,
    ),
    _spec(
        "spec_cpu_quota",
        "Processor time allowed per period, in microseconds.",
        lambda record: max(record.resources.cpu_quota, 0) or None,
    ),
    _spec(
        "spec_cpu_shares",
        "Relative share of the processor.",
        lambda record: record.resources.cpu_shares or None,
    ),
    _spec(
        "spec_memory_limit_bytes",
        "Memory limit; 0 for none.",
        lambda record: max(record.resources.memory_limit, 0),
    ),
    _spec(
        "spec_memory_swap_limit_bytes",
        "Memory and swap limit; 0 for none.",
        lambda record: max(record.resources.swap_limit, 0),
    ),
    *_pressure("cpu", lambda usage: usage.cpu_pressure),
    *_pressure("memory", lambda usage: usage.memory_pressure),
    *_pressure("io", lambda usage: usage.io_pressure),
)

_POD = (
    _Pod(_CPU.metric, lambda stats: stats.usage.cpu_ns // _NS),
    _Pod(_USAGE.metric, lambda stats: stats.usage.memory),
    _Pod(_WORKING.metric, lambda stats: stats.usage.working_set),
    _Pod(_RSS.metric, lambda stats: stats.usage.rss),
    _Pod(_PROCESSES.metric, lambda stats: stats.usage.processes),
)

_HOST: tuple[tuple[_Metric, Callable[[HostMemory], int]], ...] = tuple(
    (_Metric(f"orlop_pod_memory_{name}_bytes", _GAUGE, text), read)
    for name, text, read in (
        ("private", "Memory of the host that is this pod's alone.", lambda memory: memory.private),
        (
            "shared",
            "Memory of the host that its VM shares with others; 0 for a pod without a VM.",
            lambda memory: memory.shared,
        ),
        ("used", "Memory that the pod's own kernel cannot reclaim.", lambda memory: memory.used),
    )
)

_INTERFACE: tuple[tuple[_Metric, Callable[[InterfaceCounters], int]], ...] = tuple(
    (_Metric(f"container_network_{name}_total", _COUNTER, text, ("interface",)), read)
    for name, text, read in (
        ("receive_bytes", "Bytes received.", lambda stats: stats.rx_bytes),
        ("receive_packets", "Packets received.", lambda stats: stats.rx_packets),
        ("receive_packets_dropped", "Packets dropped on arrival.", lambda stats: stats.rx_dropped),
        ("receive_errors", "Errors on receiving.", lambda stats: stats.rx_errors),
        ("transmit_bytes", "Bytes sent.", lambda stats: stats.tx_bytes),
        ("transmit_packets", "Packets sent.", lambda stats: stats.tx_packets),
        ("transmit_packets_dropped", "Packets dropped on departure.", lambda stats: stats.tx_dropped),
        ("transmit_errors", "Errors on sending.", lambda stats: stats.tx_errors),
    )
)


def descriptors() -> list[pb.MetricDescriptor]:
    """Every metric there can be; always the same."""
    metrics = [item.metric for item in _CONTAINER]
    metrics += [metric for metric, _ in _INTERFACE] + [metric for metric, _ in _HOST]
    return [
        pb.MetricDescriptor(name=metric.name, help=metric.help, label_keys=_BASE + metric.labels)
        for metric in metrics
    ]


def pod_metrics(use: PodUse) -> pb.PodSandboxMetrics:
    """The metrics of one pod and of its running containers."""
    base = _labels(use.record, None)
    metrics = [_metric(item.metric, base, item.read(use.stats)) for item in _POD]
    metrics += [_metric(metric, base, read(use.stats.memory)) for metric, read in _HOST]
    for interface in use.stats.interfaces:
        labels = (*base, interface.name)
        metrics += [_metric(metric, labels, read(interface)) for metric, read in _INTERFACE]
    records = {record.id: record for record in use.containers}
    return pb.PodSandboxMetrics(
        pod_sandbox_id=use.record.id,
        metrics=metrics,
        container_metrics=[
            _container(use.record, records[stats.container_id], stats)
            for stats in use.stats.containers
            if stats.container_id in records
        ],
    )


def _container(pod: PodRecord, record: ContainerRecord, stats: ContainerStats) -> pb.ContainerMetrics:
    base = _labels(pod, record)
    return pb.ContainerMetrics(
        container_id=record.id,
        metrics=[
            _metric(item.metric, base + labels, value)
            for item in _CONTAINER
            for labels, value in item.read(record, stats)
        ],
    )


def _labels(pod: PodRecord, record: ContainerRecord | None) -> tuple[str, ...]:
    if record is None:
        return pod.spec.name, pod.spec.namespace, "", pod.id, ""
    return pod.spec.name, pod.spec.namespace, record.name, record.id, record.user_image or record.image


def _metric(metric: _Metric, labels: tuple[str, ...], value: int) -> pb.Metric:
    # Sums of figures that fit need not fit themselves.
    figure = pb.UInt64Value(value=min(max(value, 0), _UNSIGNED))
    return pb.Metric(name=metric.name, metric_type=metric.kind, label_values=labels, value=figure)
