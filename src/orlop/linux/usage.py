"""What Linux counts of a control group and of a writable layer, and how a group of version 2 is read.

See the kernel's Documentation/admin-guide/cgroup-v2.rst and Documentation/accounting/psi.rst.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

MOST_LINKS = 4096
"""So many open files are looked at for sockets; the others are counted alone."""

Read = Callable[[str], str]
"""The text of a group's file by its name, "" where there is none."""


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
class DeviceUse:
    """What a group moved from and to one block device."""

    major: int
    minor: int
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Use of a control group and all below it: bytes, nanoseconds, counts. A limit of 0 is none.

    ``pids`` counts tasks (threads), as the kernel's limit does; ``memory_failures`` how often the memory
    limit was hit. ``descriptors`` and ``sockets`` are what all processes have open, where that was asked for.
    """

    timestamp: int
    cpu_ns: int = 0
    cpu_user_ns: int = 0
    cpu_system_ns: int = 0
    cpu_periods: int = 0
    cpu_throttled_periods: int = 0
    cpu_throttled_ns: int = 0
    memory: int = 0
    working_set: int = 0
    rss: int = 0
    swap: int = 0
    memory_limit: int = 0
    memory_peak: int = 0
    memory_failures: int = 0
    cache: int = 0
    mapped_file: int = 0
    kernel_memory: int = 0
    page_faults: int = 0
    major_page_faults: int = 0
    oom_kills: int = 0
    pids: int = 0
    pids_limit: int = 0
    processes: int = 0
    descriptors: int = 0
    sockets: int = 0
    devices: tuple[DeviceUse, ...] = ()
    cpu_pressure: Pressure | None = None
    memory_pressure: Pressure | None = None
    io_pressure: Pressure | None = None

    @property
    def read_bytes(self) -> int:
        """Bytes read from all devices."""
        return sum(device.read_bytes for device in self.devices)

    @property
    def write_bytes(self) -> int:
        """Bytes written to all devices."""
        return sum(device.write_bytes for device in self.devices)

    @property
    def reads(self) -> int:
        """Reads from all devices."""
        return sum(device.reads for device in self.devices)

    @property
    def writes(self) -> int:
        """Writes to all devices."""
        return sum(device.writes for device in self.devices)


@dataclass(frozen=True, kw_only=True)
class LayerFill:
    """A container's writable layer: what is in it, and what its file system holds in all."""

    used: int = 0
    inodes: int = 0
    size: int = 0
    inodes_total: int = 0
    inodes_free: int = 0


NO_LAYER = LayerFill()


def unified(
    read: Read, *, full: bool = True, processes: int = 0, open_files: tuple[int, int] = (0, 0)
) -> Usage:
    """Read a group of version 2; not ``full``, without the files that tell of limits and disks.

    The working set is what is not easily reclaimed, as kubelets count it.
    """
    cpu, memory = table(read("cpu.stat")), table(read("memory.stat"))
    events = table(read("memory.events")) if full else {}
    current = number(read("memory.current"))
    return Usage(
        timestamp=time.time_ns(),
        cpu_ns=cpu.get("usage_usec", 0) * 1000,
        cpu_user_ns=cpu.get("user_usec", 0) * 1000,
        cpu_system_ns=cpu.get("system_usec", 0) * 1000,
        cpu_periods=cpu.get("nr_periods", 0),
        cpu_throttled_periods=cpu.get("nr_throttled", 0),
        cpu_throttled_ns=cpu.get("throttled_usec", 0) * 1000,
        memory=current,
        working_set=max(0, current - memory.get("inactive_file", 0)),
        rss=memory.get("anon", 0),
        swap=number(read("memory.swap.current")),
        memory_limit=number(read("memory.max")),
        # Linux before 5.19 does not tell the peak: it was at least this.
        memory_peak=max(current, number(read("memory.peak")) if full else 0),
        memory_failures=events.get("max", 0),
        cache=memory.get("file", 0),
        mapped_file=memory.get("file_mapped", 0),
        # Linux before 5.18 tells the parts alone.
        kernel_memory=memory.get("kernel", memory.get("slab", 0) + memory.get("kernel_stack", 0)),
        page_faults=memory.get("pgfault", 0),
        major_page_faults=memory.get("pgmajfault", 0),
        oom_kills=events.get("oom_kill", 0),
        pids=number(read("pids.current")),
        pids_limit=number(read("pids.max")) if full else 0,
        processes=processes,
        descriptors=open_files[0],
        sockets=open_files[1],
        devices=devices(read("io.stat")) if full else (),
        cpu_pressure=pressure(read("cpu.pressure")),
        memory_pressure=pressure(read("memory.pressure")),
        io_pressure=pressure(read("io.pressure")),
    )


def number(text: str) -> int:
    """A decimal number; anything else ("max", nothing) is 0."""
    text = text.strip()
    return int(text) if text.isdecimal() else 0


def table(text: str) -> dict[str, int]:
    """Lines of "name number"."""
    rows = (line.partition(" ") for line in text.splitlines())
    return {name: int(value) for name, _, value in rows if value.isdecimal()}


def devices(text: str) -> tuple[DeviceUse, ...]:
    """An io.stat file: a line for each device."""
    found = []
    for line in text.splitlines():
        device, _, rest = line.partition(" ")
        major, _, minor = device.partition(":")
        if not (major.isdecimal() and minor.isdecimal()):
            continue
        fields = dict(word.split("=", 1) for word in rest.split() if "=" in word)
        moved = [number(fields.get(name, "")) for name in ("rbytes", "wbytes", "rios", "wios")]
        if any(moved):
            found.append(
                DeviceUse(
                    major=int(major),
                    minor=int(minor),
                    read_bytes=moved[0],
                    write_bytes=moved[1],
                    reads=moved[2],
                    writes=moved[3],
                )
            )
    return tuple(found)


def pressure(text: str) -> Pressure | None:
    """A PSI file; None when the kernel keeps none."""
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


def open_files(pids: Iterable[int]) -> tuple[int, int]:
    """How many descriptors these processes have, and how many of them are sockets.

    A process that has ended meanwhile has none. Sockets are looked for among the first 4096.
    """
    descriptors = sockets = 0
    for pid in pids:
        directory = f"/proc/{pid}/fd"
        left = max(0, MOST_LINKS - descriptors)
        try:
            # Linux 6.2 tells how many there are; before, all have to be named to be counted.
            known = os.stat(directory).st_size
            with os.scandir(directory) as entries:
                names = [entry.name for entry in islice(entries, left if known else None)]
        except OSError:
            continue
        for name in names[:left]:
            try:
                sockets += os.readlink(f"{directory}/{name}").startswith("socket:")
            except OSError:
                continue
        descriptors += known or len(names)
    return descriptors, sockets
