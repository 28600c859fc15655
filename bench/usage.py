"""Memory and processor time of a system: of its daemon, and of whatever runs because of it.

What belongs to a system is found without knowing how it works: every process that came into being
since it was started and is not a descendant of this program other than the daemon. So a helper that
re-parents itself is counted as well.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Usage:
    """PSS in MiB and seconds of processor time, of the daemon and of all the others."""

    daemon_mib: float
    others_mib: float
    seconds: float
    processes: int


def processes() -> set[int]:
    """All processes of users' making (kernel threads have no command line)."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if (entry / "cmdline").read_bytes():
                    found.add(int(entry.name))
            except OSError:
                continue
    return found


def memory(pid: int) -> dict[str, int]:
    """What smaps_rollup has of a process, in KiB. Raises OSError if it is gone."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return {words[0].rstrip(":"): int(words[1]) for words in map(str.split, lines[1:])}


def pss_mib(pid: int) -> float:
    """Proportional set size of a process in MiB; 0 if it is gone."""
    try:
        return memory(pid).get("Pss", 0) / 1024
    except OSError:
        return 0.0


def cpu_seconds(pid: int) -> float:
    """User and system time of a process; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICK


def measure(daemon: int, before: set[int]) -> Usage:
    """The use of the daemon and of every process that is not in ``before``."""
    others = processes() - before - {daemon, os.getpid()}
    return Usage(
        daemon_mib=pss_mib(daemon),
        others_mib=sum(map(pss_mib, others)),
        seconds=cpu_seconds(daemon) + sum(map(cpu_seconds, others)),
        processes=len(others),
    )
