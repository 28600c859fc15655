"""Waits for the end of its input, then takes away a run's cgroups, with who is in them, and directory.

``python -m tests.node_e2e.janitor DIRECTORY``. It lives in a session of its own, so that it outlives a
run that was interrupted or killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

PATIENCE = 60.0


def groups(name: str) -> Iterator[Path]:
    """The run's group in each hierarchy: it may be some levels down."""
    from tests.node_e2e.enclosure import hierarchies

    for hierarchy in hierarchies():
        group = hierarchy.group(name)
        if group.is_dir():
            yield group


def below(top: Path) -> list[Path]:
    """A group and those below it, the lowest first."""
    return [Path(place) for place, _, _ in os.walk(top, topdown=False)]


def clear(top: Path) -> bool:
    """Kill who is in a group and remove what can be removed; whether all is gone."""
    for place in below(top):
        with contextlib.suppress(OSError):
            for pid in (place / "cgroup.procs").read_text().split():
                # A process of another PID namespace reads as 0.
                if int(pid) > 1:
                    os.kill(int(pid), signal.SIGKILL)
        with contextlib.suppress(OSError):
            place.rmdir()
    return not top.exists()


def main() -> int:
    """Wait, then clear; 1 when something stays."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    directory = Path(sys.argv[1])
    sys.stdin.buffer.read()
    limit = time.monotonic() + PATIENCE
    tops = list(groups(directory.name))
    while left := [top for top in tops if not clear(top)]:
        if time.monotonic() > limit:
            print(f"node suite: these groups stay: {', '.join(map(str, left))}", file=sys.stderr)
            break
        time.sleep(0.1)
    subprocess.run(["rm", "-rf", "--one-file-system", directory], check=False)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main())
