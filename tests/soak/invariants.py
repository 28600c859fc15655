"""What must hold when all pods are gone: nothing of them is left, and the daemon has not grown."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from tests.node import Node
from tests.patience import PATIENCE

MORE_DESCRIPTORS = 24
MORE_MEMORY = 48 << 20

_KEPT = re.compile(
    r"""root/(images|hypervisor|guest|journal\.db(-wal|-shm)?$|version$)"""
    r"""|state/(orlop\.(lock|sock|pid)|jail|lock)""",
    re.VERBOSE,
)


def descriptors(pid: int) -> int:
    """How many files the daemon has open."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def memory(pid: int) -> int:
    """The daemon's own memory, in bytes."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss_Anon:"):
            return int(line.split()[1]) << 10
    return 0


def files(node: Node) -> set[str]:
    """What is below the daemon's directories, without what belongs to no pod."""
    found = set()
    for top in (node.settings.root, node.scratch / "state"):
        for directory, names, leaves in os.walk(top):
            if Path(directory).parent == node.settings.root and Path(directory).name in (
                "images",
                "guest",
                "hypervisor",
            ):
                names.clear()
                continue
            for name in leaves:
                path = Path(directory) / name
                found.add(os.fspath(path.relative_to(node.scratch)))
            found.add(os.fspath(Path(directory).relative_to(node.scratch)) + "/")
    return {path for path in found if not _KEPT.match(path)}


def wait_for(look: object, seconds: float = 30.0 * PATIENCE) -> list[str]:
    """What ``look`` still finds after a while; empty as soon as it finds nothing."""
    assert callable(look)
    limit = time.monotonic() + seconds
    while found := list(look()):
        if time.monotonic() > limit:
            return found
        time.sleep(0.3)
    return []
