"""What a control group has used, whatever its version."""

from __future__ import annotations

import time

import msgspec

from orlop.host.cgroups import Cgroup

_UNLIMITED = 1 << 60  # version 1 shows "no limit" as a page-rounded 2**63 - 1
_READ, _WRITE = ("Read", "Write")


class Pressure(msgspec.Struct, frozen=True):
    """A PSI file: (10 s, 60 s, 300 s averages in percent, total microseconds), some and full."""

    some: tuple[float, float, float, int]
    full: tuple[float, float, float, int] = (0.0, 0.0, 0.0, 0)


class Usage(msgspec.Struct, frozen=True, kw_only=True):
    """Use of a group and all below it: bytes, nanoseconds, counts. ``memory_limit`` 0 means none."""

    timestamp: int
    cpu_ns: int = 0
    memory: int = 0
    working_set: int = 0
    rss: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    memory_limit: int = 0
    swap: int = 0
    processes: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0
    oom_kills: int = 0
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None


def usage(group: Cgroup) -> Usage:
    """Read the group's counters; those that it lacks are 0."""
    return _unified(group) if group.host.version == 2 else _legacy(group)


def oom_kills(group: Cgroup) -> int:
    """How many processes of the group the kernel has killed for want of memory."""
    if group.host.version == 2:
        return _table(group.read("memory.events")).get("oom_kill", 0)
    return _table(group.read("memory.oom_control", "memory")).get("oom_kill", 0)


def _unified(group: Cgroup) -> Usage:
    memory = _number(group.read("memory.current"))
    detail = _table(group.read("memory.stat"))
    moved = [0, 0, 0, 0]
    for line in group.read("io.stat").splitlines():
        fields = dict(part.split("=", 1) for part in line.split()[1:] if "=" in part)
        for position, name in enumerate(("rbytes", "wbytes", "rios", "wios")):
            moved[position] += _number(fields.get(name, "0"))
    return Usage(
        timestamp=time.time_ns(),
        cpu_ns=_table(group.read("cpu.stat")).get("usage_usec", 0) * 1000,
        memory=memory,
        working_set=max(memory - detail.get("inactive_file", 0), 0),
        rss=detail.get("anon", 0),
        page_faults=detail.get("pgfault", 0),
        major_page_faults=detail.get("pgmajfault", 0),
        memory_limit=_number(group.read("memory.max")),
        swap=_number(group.read("memory.swap.current")),
        processes=_number(group.read("pids.current")),
        read_bytes=moved[0],
        write_bytes=moved[1],
        reads=moved[2],
        writes=moved[3],
        oom_kills=oom_kills(group),
        cpu_pressure=_pressure(group.read("cpu.pressure")),
        memory_pressure=_pressure(group.read("memory.pressure")),
        io_pressure=_pressure(group.read("io.pressure")),
    )


def _legacy(group: Cgroup) -> Usage:
    memory = _number(group.read("memory.usage_in_bytes", "memory"))
    both = _number(group.read("memory.memsw.usage_in_bytes", "memory"))
    limit = _number(group.read("memory.limit_in_bytes", "memory"))
    detail = _table(group.read("memory.stat", "memory"))
    moved = _operations(group.read("blkio.throttle.io_service_bytes_recursive", "blkio"))
    counted = _operations(group.read("blkio.throttle.io_serviced_recursive", "blkio"))
    return Usage(
        timestamp=time.time_ns(),
        cpu_ns=_number(group.read("cpuacct.usage", "cpuacct")),
        memory=memory,
        working_set=max(memory - detail.get("total_inactive_file", 0), 0),
        rss=detail.get("total_rss", 0),
        page_faults=detail.get("total_pgfault", 0),
        major_page_faults=detail.get("total_pgmajfault", 0),
        memory_limit=limit if limit < _UNLIMITED else 0,
        swap=max(both - memory, 0),
        processes=_number(group.read("pids.current", "pids")),
        read_bytes=moved[0],
        write_bytes=moved[1],
        reads=counted[0],
        writes=counted[1],
        oom_kills=oom_kills(group),
    )


def _number(text: str) -> int:
    """A decimal number; anything else ("max", nothing) is 0."""
    text = text.strip()
    return int(text) if text.isascii() and text.isdigit() else 0


def _table(text: str) -> dict[str, int]:
    """Lines of "name number"."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: _number(row[1]) for row in rows if len(row) == 2}


def _operations(text: str) -> tuple[int, int]:
    """Sums over the devices of a ``blkio.throttle`` file: reads and writes."""
    rows = [line.split() for line in text.splitlines()]
    sums = [
        sum(_number(row[2]) for row in rows if len(row) == 3 and row[1] == kind) for kind in (_READ, _WRITE)
    ]
    return sums[0], sums[1]


def _pressure(text: str) -> Pressure | None:
    rows: dict[str, tuple[float, float, float, int]] = {}
    for line in text.splitlines():
        kind, *parts = line.split()
        try:
            values = dict(part.split("=", 1) for part in parts)
            averages = [float(values[name]) for name in ("avg10", "avg60", "avg300")]
            rows[kind] = (averages[0], averages[1], averages[2], int(values["total"]))
        except (KeyError, ValueError):
            return None
    if "some" not in rows:
        return None
    return Pressure(rows["some"], rows.get("full", (0.0, 0.0, 0.0, 0)))
