"""What a process costs in memory, from /proc/PID/smaps_rollup (proc_pid_smaps(5))."""

from __future__ import annotations

from pathlib import Path

from orlop.errors import Unavailable
from orlop.hypervisor.base import MemoryUse


def of_process(pid: int) -> MemoryUse:
    """Raises Unavailable when there is no such process."""
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError as error:
        raise Unavailable(f"the memory of process {pid} cannot be read: {error.strerror}") from error
    return parse(text)


def parse(text: str) -> MemoryUse:
    """The totals in the text of such a file."""
    sizes: dict[str, int] = {}
    for line in text.splitlines()[1:]:
        name, _, rest = line.partition(":")
        words = rest.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            sizes[name] = int(words[0]) << 10
    return MemoryUse(
        pss=sizes.get("Pss", 0),
        private=sizes.get("Private_Clean", 0) + sizes.get("Private_Dirty", 0),
        shared=sizes.get("Shared_Clean", 0) + sizes.get("Shared_Dirty", 0),
    )
