"""What a control group has used, whatever its version."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from pathlib import Path

from orlop.host.cgroups import Cgroup
from orlop.linux.usage import DeviceUse, Usage, number, open_files, pressure, table, unified

_UNLIMITED = 1 << 60  # version 1 shows "no limit" as a page-rounded 2**63 - 1
_TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")


def usage(group: Cgroup, *, full: bool = False, members: bool = False) -> Usage:
    """Read the group's counters; those that it lacks are 0.

    ``full`` with those that only metrics show. ``members`` with the processes in it, and what they have
    open if ``full`` as well.
    """
    tasks = number(group.read("pids.current", "pids"))
    pids = group.members("pids") if members and (full or tasks > 1) else []
    opened = open_files(pids) if full else (0, 0)
    processes = (len(pids) or tasks) if members else 0
    if group.host.version == 2:
        return unified(group.read, full=full, processes=processes, open_files=opened)
    found = _legacy(group, tasks)
    if full:
        found = _with_limits_and_disks(group, found)
    return replace(found, processes=processes, descriptors=opened[0], sockets=opened[1])


def oom_kills(group: Cgroup) -> int:
    """How many processes of the group the kernel has killed for want of memory."""
    if group.host.version == 2:
        return table(group.read("memory.events")).get("oom_kill", 0)
    return table(group.read("memory.oom_control", "memory")).get("oom_kill", 0)


def _legacy(group: Cgroup, tasks: int) -> Usage:
    memory = number(group.read("memory.usage_in_bytes", "memory"))
    both = number(group.read("memory.memsw.usage_in_bytes", "memory"))
    limit = number(group.read("memory.limit_in_bytes", "memory"))
    detail = table(group.read("memory.stat", "memory"))
    return Usage(
        timestamp=time.time_ns(),
        cpu_ns=number(group.read("cpuacct.usage", "cpuacct")),
        memory=memory,
        working_set=max(memory - detail.get("total_inactive_file", 0), 0),
        rss=detail.get("total_rss", 0),
        page_faults=detail.get("total_pgfault", 0),
        major_page_faults=detail.get("total_pgmajfault", 0),
        memory_limit=limit if limit < _UNLIMITED else 0,
        cache=detail.get("total_cache", 0),
        mapped_file=detail.get("total_mapped_file", 0),
        kernel_memory=number(group.read("memory.kmem.usage_in_bytes", "memory")),
        swap=max(both - memory, 0),
        pids=tasks,
    )


def _with_limits_and_disks(group: Cgroup, found: Usage) -> Usage:
    spent = table(group.read("cpuacct.stat", "cpuacct"))
    periods = table(group.read("cpu.stat", "cpu"))
    return replace(
        found,
        cpu_user_ns=spent.get("user", 0) * _TICK,
        cpu_system_ns=spent.get("system", 0) * _TICK,
        cpu_periods=periods.get("nr_periods", 0),
        cpu_throttled_periods=periods.get("nr_throttled", 0),
        cpu_throttled_ns=periods.get("throttled_time", 0),
        memory_peak=number(group.read("memory.max_usage_in_bytes", "memory")),
        memory_failures=number(group.read("memory.failcnt", "memory")),
        oom_kills=oom_kills(group),
        pids_limit=number(group.read("pids.max", "pids")),
        devices=_devices(
            group.read("blkio.throttle.io_service_bytes_recursive", "blkio"),
            group.read("blkio.throttle.io_serviced_recursive", "blkio"),
        ),
        # Where version 2 is mounted beside version 1, runtimes make the group there too.
        cpu_pressure=pressure(group.read_beside("cpu.pressure")),
        memory_pressure=pressure(group.read_beside("memory.pressure")),
        io_pressure=pressure(group.read_beside("io.pressure")),
    )


def _devices(moved: str, counted: str) -> tuple[DeviceUse, ...]:
    """Two ``blkio.throttle`` files: bytes and operations, by device and direction."""
    found: dict[str, dict[str, int]] = {}
    for text, names in ((moved, ("read_bytes", "write_bytes")), (counted, ("reads", "writes"))):
        for line in text.splitlines():
            row = line.split()
            if len(row) == 3 and row[1] in ("Read", "Write") and (value := number(row[2])):
                found.setdefault(row[0], {})[names[row[1] == "Write"]] = value
    return tuple(
        DeviceUse(major=number(major), minor=number(minor), **figures)
        for (major, _, minor), figures in ((device.partition(":"), one) for device, one in found.items())
    )


def process_cpu(pid: int, proc: Path = Path("/proc")) -> int:
    """Processor time a process has used so far (ns); 0 when it has ended."""
    try:
        fields = (proc / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
        user, system = fields.rpartition(")")[2].split()[11:13]
        return (int(user) + int(system)) * _TICK
    except (OSError, ValueError):
        return 0
