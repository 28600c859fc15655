"""Measuring: cgroup v2 files, PSI, /proc/net/dev, and how much a container wrote."""

from __future__ import annotations

import os
import time

from orlop.guest import paths
from orlop.guest.devices.block import Mounted
from orlop.guest.machine.cgroup import Cgroup
from orlop.wire.statistics import InterfaceCounters, Pressure, Usage


def parse_pressure(text: str) -> Pressure | None:
    """A PSI file (Documentation/accounting/psi.rst); None when the kernel keeps none."""
    values: dict[str, float] = {}
    for line in text.splitlines():
        kind, *words = line.split() or [""]
        if kind not in ("some", "full"):
            continue
        for word in words:
            key, _, value = word.partition("=")
            try:
                values[f"{kind}_{key}"] = float(value)
            except ValueError:
                continue
    if not values:
        return None
    return Pressure(
        some_avg10=values.get("some_avg10", 0.0),
        some_avg60=values.get("some_avg60", 0.0),
        some_avg300=values.get("some_avg300", 0.0),
        some_total=int(values.get("some_total", 0)),
        full_avg10=values.get("full_avg10", 0.0),
        full_avg60=values.get("full_avg60", 0.0),
        full_avg300=values.get("full_avg300", 0.0),
        full_total=int(values.get("full_total", 0)),
    )


def parse_io(text: str) -> tuple[int, int, int, int]:
    """io.stat summed over the devices: bytes read, bytes written, reads, writes."""
    sums = {"rbytes": 0, "wbytes": 0, "rios": 0, "wios": 0}
    for line in text.splitlines():
        for word in line.split()[1:]:
            key, _, value = word.partition("=")
            if key in sums and value.isdecimal():
                sums[key] += int(value)
    return sums["rbytes"], sums["wbytes"], sums["rios"], sums["wios"]


def parse_interfaces(text: str) -> tuple[InterfaceCounters, ...]:
    """/proc/net/dev without the loopback."""
    found = []
    for line in text.splitlines()[2:]:
        name, _, rest = line.partition(":")
        fields = rest.split()
        if name.strip() == "lo" or len(fields) < 12 or not all(field.isdecimal() for field in fields[:12]):
            continue
        numbers = [int(field) for field in fields]
        found.append(
            InterfaceCounters(
                name=name.strip(),
                rx_bytes=numbers[0],
                rx_packets=numbers[1],
                rx_errors=numbers[2],
                rx_dropped=numbers[3],
                tx_bytes=numbers[8],
                tx_packets=numbers[9],
                tx_errors=numbers[10],
                tx_dropped=numbers[11],
            )
        )
    return tuple(found)


def interfaces() -> tuple[InterfaceCounters, ...]:
    """The guest's interfaces without the loopback."""
    return parse_interfaces(paths.read_text("/proc/net/dev"))


def usage(group: Cgroup) -> Usage:
    """What a cgroup uses. The working set is what could not be reclaimed easily, as kubelets count it."""
    memory = group.pairs("memory.stat")
    current = group.number("memory.current")
    read_bytes, write_bytes, reads, writes = parse_io(group.read("io.stat"))
    return Usage(
        timestamp=time.time_ns(),
        cpu_ns=group.pairs("cpu.stat").get("usage_usec", 0) * 1000,
        memory=current,
        working_set=max(0, current - memory.get("inactive_file", 0)),
        rss=memory.get("anon", 0),
        swap=group.number("memory.swap.current"),
        memory_limit=group.number("memory.max"),
        page_faults=memory.get("pgfault", 0),
        major_page_faults=memory.get("pgmajfault", 0),
        oom_kills=group.pairs("memory.events").get("oom_kill", 0),
        pids=group.number("pids.current"),
        read_bytes=read_bytes,
        write_bytes=write_bytes,
        reads=reads,
        writes=writes,
        cpu_pressure=parse_pressure(group.read("cpu.pressure")),
        memory_pressure=parse_pressure(group.read("memory.pressure")),
        io_pressure=parse_pressure(group.read("io.pressure")),
    )


def written(upper: str, disk: Mounted | None) -> tuple[int, int]:
    """Bytes and inodes of a writable layer. A disk of its own is asked at once; else the tree is walked."""
    if not upper:
        return 0, 0
    if disk is not None and len(disk.users) == 1:
        use = os.statvfs(upper)
        used = (use.f_blocks - use.f_bfree) * use.f_frsize - disk.baseline[0]
        return max(0, used), max(0, use.f_files - use.f_ffree - disk.baseline[1])
    return walk(upper)


def walk(directory: str) -> tuple[int, int]:
    """Bytes on disk and inodes below ``directory``, hard links counted once."""
    size = count = 0
    seen: set[int] = set()
    pending = [directory]
    while pending:
        try:
            entries = list(os.scandir(pending.pop()))
        except OSError:
            continue
        for entry in entries:
            try:
                status = entry.stat(follow_symlinks=False)
                is_directory = entry.is_dir(follow_symlinks=False)
            except OSError:
                continue
            if status.st_ino in seen:
                continue
            if status.st_nlink > 1 and not is_directory:
                seen.add(status.st_ino)
            size += status.st_blocks * 512
            count += 1
            if is_directory:
                pending.append(entry.path)
    return size, count


def system_cpu_ns() -> int:
    """Processor time the whole guest used, by /proc/stat: all but idle and waiting."""
    fields = paths.read_text("/proc/stat").split("\n", 1)[0].split()[1:]
    ticks = [int(field) for field in fields[:8]]
    busy = sum(ticks) - ticks[3] - ticks[4]
    return busy * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
