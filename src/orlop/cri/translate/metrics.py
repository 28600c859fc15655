"""Metrics of pods and containers, under the names that cAdvisor made customary.

The kubelet asks for the descriptors once and serves the values at ``/metrics/cadvisor``. A value
is a whole number (CRI has no other kind), so that seconds are rounded down. Label values stand in
the order of the descriptor's label keys. Timestamps are 0: the figures are read when asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.pods.records import ContainerRecord, PodRecord, PodUse
from orlop.sandbox.spec import ContainerStats, InterfaceStats, MachineMemory, PodStats, PressureStats

_BASE = ("pod", "namespace", "container", "id", "image")
_COUNTER, _GAUGE = pb.COUNTER, pb.GAUGE
_NS = 1_000_000_000
_US = 1_000_000

Sample = tuple[tuple[str, ...], int]
"""Values of the labels beyond the base ones, and the figure."""


class _Metric(NamedTuple):
    name: str
    kind: pb.MetricType.ValueType
    help: str
    labels: tuple[str, ...] = ()


class _Container(NamedTuple):
    """A metric of each container; ``read`` yields nothing where there is no figure."""

    metric: _Metric
    read: Callable[[ContainerRecord, ContainerStats], Iterator[Sample]]


class _Pod(NamedTuple):
    """A metric of the pod as a whole."""

    metric: _Metric
    read: Callable[[PodStats], int]


def _one(
    read: Callable[[ContainerRecord, ContainerStats], int | None],
) -> Callable[[ContainerRecord, ContainerStats], Iterator[Sample]]:
    def samples(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        value = read(record, stats)
        if value is not None:
            yield (), value

    return samples


def _faults(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
    yield ("pgfault", "container"), stats.memory.page_faults
    yield ("pgmajfault", "container"), stats.memory.major_page_faults


def _disk(
    read: Callable[[ContainerStats], int],
) -> Callable[[ContainerRecord, ContainerStats], Iterator[Sample]]:
    def samples(record: ContainerRecord, stats: ContainerStats) -> Iterator[Sample]:
        yield (stats.filesystem.mountpoint,), read(stats)

    return samples


def _pressure(
    which: str, read: Callable[[ContainerStats], PressureStats | None]
) -> tuple[_Container, _Container]:
    def waiting(record: ContainerRecord, stats: ContainerStats) -> int | None:
        pressure = read(stats)
        return None if pressure is None else pressure.some_total // _US

    def stalled(record: ContainerRecord, stats: ContainerStats) -> int | None:
        pressure = read(stats)
        return None if pressure is None else pressure.full_total // _US

    name = f"container_pressure_{which}"
    return (
        _Container(
            _Metric(f"{name}_waiting_seconds_total", _COUNTER, f"Time some tasks waited for {which}."),
            _one(waiting),
        ),
        _Container(
            _Metric(f"{name}_stalled_seconds_total", _COUNTER, f"Time all tasks waited for {which}."),
            _one(stalled),
        ),
    )


_CPU = _Metric("container_cpu_usage_seconds_total", _COUNTER, "Processor time used, in seconds.")
_USAGE = _Metric("container_memory_usage_bytes", _GAUGE, "Memory in use, page cache included.")
_WORKING = _Metric(
    "container_memory_working_set_bytes", _GAUGE, "Memory in use that is not easily reclaimed."
)
_RSS = _Metric("container_memory_rss", _GAUGE, "Anonymous memory in use.")
_PROCESSES = _Metric("container_processes", _GAUGE, "Processes that run.")

_CONTAINER = (
    _Container(_CPU, _one(lambda record, stats: stats.cpu.usage_ns // _NS)),
    _Container(_USAGE, _one(lambda record, stats: stats.memory.usage)),
    _Container(_WORKING, _one(lambda record, stats: stats.memory.working_set)),
    _Container(_RSS, _one(lambda record, stats: stats.memory.rss)),
    _Container(
        _Metric("container_memory_swap", _GAUGE, "Swap in use, in bytes."),
        _one(lambda record, stats: stats.memory.swap),
    ),
    _Container(
        _Metric("container_memory_failures_total", _COUNTER, "Page faults.", ("failure_type", "scope")),
        _faults,
    ),
    _Container(
        _Metric("container_oom_events_total", _COUNTER, "Processes killed for lack of memory."),
        _one(lambda record, stats: stats.oom_events),
    ),
    _Container(
        _Metric("container_fs_usage_bytes", _GAUGE, "Size of the writable layer.", ("device",)),
        _disk(lambda stats: stats.filesystem.used),
    ),
    _Container(
        _Metric("container_fs_reads_bytes_total", _COUNTER, "Bytes read from disks.", ("device",)),
        _disk(lambda stats: stats.io.read_bytes),
    ),
    _Container(
        _Metric("container_fs_reads_total", _COUNTER, "Reads from disks.", ("device",)),
        _disk(lambda stats: stats.io.reads),
    ),
    _Container(
        _Metric("container_fs_writes_bytes_total", _COUNTER, "Bytes written to disks.", ("device",)),
        _disk(lambda stats: stats.io.write_bytes),
    ),
    _Container(
        _Metric("container_fs_writes_total", _COUNTER, "Writes to disks.", ("device",)),
        _disk(lambda stats: stats.io.writes),
    ),
    _Container(_PROCESSES, _one(lambda record, stats: stats.processes)),
    _Container(
        _Metric("container_start_time_seconds", _GAUGE, "When the container started, since the epoch."),
        _one(lambda record, stats: record.started_at // _NS),
    ),
    _Container(
        _Metric("container_last_seen", _GAUGE, "When the container was last seen, since the epoch."),
        _one(lambda record, stats: int(time.time())),
    ),
    _Container(
        _Metric("container_spec_cpu_period", _GAUGE, "Period of the processor limit, in microseconds."),
        _one(lambda record, stats: record.resources.cpu_period or None),
    ),
    _Container(
        _Metric("container_spec_cpu_quota", _GAUGE, "Processor time allowed per period, in microseconds."),
        _one(lambda record, stats: max(record.resources.cpu_quota, 0) or None),
    ),
    _Container(
        _Metric("container_spec_cpu_shares", _GAUGE, "Relative share of the processor."),
        _one(lambda record, stats: record.resources.cpu_shares or None),
    ),
    _Container(
        _Metric("container_spec_memory_limit_bytes", _GAUGE, "Memory limit; 0 for none."),
        _one(lambda record, stats: max(record.resources.memory_limit, 0)),
    ),
    _Container(
        _Metric("container_spec_memory_swap_limit_bytes", _GAUGE, "Memory and swap limit; 0 for none."),
        _one(lambda record, stats: max(record.resources.swap_limit, 0)),
    ),
    *_pressure("cpu", lambda stats: stats.cpu_pressure),
    *_pressure("memory", lambda stats: stats.memory_pressure),
    *_pressure("io", lambda stats: stats.io_pressure),
)

_POD = (
    _Pod(_CPU, lambda stats: stats.cpu.usage_ns // _NS),
    _Pod(_USAGE, lambda stats: stats.memory.usage),
    _Pod(_WORKING, lambda stats: stats.memory.working_set),
    _Pod(_RSS, lambda stats: stats.memory.rss),
    _Pod(_PROCESSES, lambda stats: stats.processes),
)

_MACHINE: tuple[tuple[_Metric, Callable[[MachineMemory], int]], ...] = tuple(
    (_Metric(f"orlop_vm_memory_{name}_bytes", _GAUGE, text), read)
    for name, text, read in (
        ("private", "Memory of the host that is this VM's alone.", lambda memory: memory.private),
        ("shared", "Memory of the host that this VM shares with others.", lambda memory: memory.shared),
        ("guest_used", "Memory that the guest uses and cannot reclaim.", lambda memory: memory.guest_used),
    )
)

_INTERFACE: tuple[tuple[_Metric, Callable[[InterfaceStats], int]], ...] = tuple(
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
    metrics += [metric for metric, _ in _INTERFACE] + [metric for metric, _ in _MACHINE]
    return [
        pb.MetricDescriptor(name=metric.name, help=metric.help, label_keys=_BASE + metric.labels)
        for metric in metrics
    ]


def pod_metrics(use: PodUse) -> pb.PodSandboxMetrics:
    """The metrics of one pod and of its running containers."""
    base = _labels(use.record, None)
    metrics = [_metric(item.metric, base, item.read(use.stats)) for item in _POD]
    if use.stats.machine is not None:
        metrics += [_metric(metric, base, read(use.stats.machine)) for metric, read in _MACHINE]
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
    return pb.Metric(
        name=metric.name, metric_type=metric.kind, label_values=labels, value=pb.UInt64Value(value=value)
    )
