"""Is the host short of memory? Then ready-made VMs are a luxury."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

_MIN_AVAILABLE_SHARE = 0.08
_MAX_STALLED_PERCENT = 10.0


def memory_pressure(proc: Path = Path("/proc")) -> str:
    """Why memory is short, or "": little is available, or tasks wait for it (PSI)."""
    figures: dict[str, int] = {}
    with suppress(OSError, ValueError):
        for line in (proc / "meminfo").read_text(encoding="ascii").splitlines():
            name, _, rest = line.partition(":")
            figures[name] = int(rest.split()[0])
    total, available = figures.get("MemTotal", 0), figures.get("MemAvailable", 0)
    if total and available < total * _MIN_AVAILABLE_SHARE:
        return f"only {available >> 10} of {total >> 10} MiB are available"
    with suppress(OSError, ValueError, IndexError):
        some = (proc / "pressure/memory").read_text(encoding="ascii").splitlines()[0]
        stalled = float(some.split("avg10=")[1].split()[0])
        if stalled > _MAX_STALLED_PERCENT:
            return f"tasks waited for memory {stalled:.0f} % of the last 10 seconds"
    return ""
