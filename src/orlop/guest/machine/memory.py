"""The guest's own memory and processors: getting small before a save, growing after a hot-plug."""

from __future__ import annotations

import gc
import os
from contextlib import suppress

from orlop.guest.paths import read_text, write_text

_MEMORY = "/sys/devices/system/memory"
_CPUS = "/sys/devices/system/cpu"


def total() -> int:
    """The guest's memory in bytes. The kernel tells it for less than the text of :func:`figures`."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def figures() -> tuple[int, int]:
    """The guest's memory in bytes: (total, available)."""
    found = {}
    for line in read_text("/proc/meminfo").splitlines():
        name, _, rest = line.partition(":")
        if name in ("MemTotal", "MemAvailable"):
            found[name] = int(rest.split()[0]) * 1024
    return found.get("MemTotal", 0), found.get("MemAvailable", 0)


def online() -> int:
    """Use memory blocks and processors that were plugged in; returns how many processors there are now."""
    for name in os.listdir(_MEMORY) if os.path.isdir(_MEMORY) else []:
        if name.startswith("memory") and name[6:].isdigit():
            state = f"{_MEMORY}/{name}/state"
            with suppress(OSError):
                if read_text(state).strip() == "offline":
                    write_text(state, "online_movable")
    for name in os.listdir(_CPUS):
        if name.startswith("cpu") and name[3:].isdigit():
            with suppress(OSError):
                if read_text(f"{_CPUS}/{name}/online").strip() == "0":
                    write_text(f"{_CPUS}/{name}/online", "1")
    return os.cpu_count() or 1


def freeze() -> None:
    """Put all that lives now out of the collector's sight, so that it does not write to those pages.

    Caches are not dropped: in clones of a template they are shared, and used.
    """
    os.sync()
    gc.collect()
    gc.freeze()
