"""What the agent measures: figures of one cgroup, of a container, of the pod."""

from __future__ import annotations

from dataclasses import dataclass

from orlop.wire.values import Id


@dataclass(frozen=True, kw_only=True)
class Pressure:
    """A PSI file: averages in percent, totals in microseconds."""

    some_avg10: float = 0.0
    some_avg60: float = 0.0
    some_avg300: float = 0.0
    some_total: int = 0
    full_avg10: float = 0.0
    full_avg60: float = 0.0
    full_avg300: float = 0.0
    full_total: int = 0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Use of one cgroup at ``timestamp``; ``memory_limit`` 0 for none."""

    timestamp: int
    cpu_ns: int = 0
    memory: int = 0
    working_set: int = 0
    rss: int = 0
    swap: int = 0
    memory_limit: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    oom_kills: int = 0
    pids: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


@dataclass(frozen=True, kw_only=True)
class ContainerUsage:
    """Use of a container; ``fs_used`` and ``fs_inodes`` are its writable layer's."""

    id: Id
    usage: Usage
    fs_used: int = 0
    fs_inodes: int = 0


@dataclass(frozen=True, kw_only=True)
class InterfaceCounters:
    """Counters of a guest interface."""

    name: str
    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0
