"""How a process fares at the processors: whether it may run at all, before whom, and how long it waited."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

_NANO = 1e9
_STOPPED = "Tt"


def is_stopped(pid: int) -> bool:
    """Whether it was stopped by a signal or a debugger; proc_pid_stat(5)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return text.rpartition(") ")[2][:1] in _STOPPED


def be_nice(pid: int, level: int) -> None:
    """Let all its threads, and those that they begin, give way to others (10) or not (0)."""
    for task in Path(f"/proc/{pid}/task").glob("*"):
        with suppress(OSError):  # a thread that has just ended, or no right to go back
            os.setpriority(os.PRIO_PROCESS, int(task.name), level)


def waited(pid: int) -> float:
    """Seconds that its threads could have run and had no processor, together, since they began.

    From /proc/PID/task/TID/schedstat (Documentation/scheduler/sched-stats.rst); 0.0 where the kernel
    does not tell.
    """
    total = 0
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            total += int(task.read_text(encoding="ascii").split()[1])
    return total / _NANO


def free_processors(proc: Path = Path("/proc")) -> int:
    """How many of the processors that this process may use nobody uses at this moment; proc_stat(5)."""
    own = len(os.sched_getaffinity(0))
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "stat").read_text(encoding="ascii").splitlines():
            if line.startswith("procs_running "):
                # The one that asks is among them.
                return max(0, own - max(0, int(line.split()[1]) - 1))
    return own
