"""One pod's life through containerd with our shim, and through our own CRI: the same daemon, in turns. With
runc as well, which has no VM: what is left without what runc does is containerd's own.

    python -m bench.shim --rounds 10 --containerd 1.7

What is printed is Markdown: medians in milliseconds with the least, which other work on the machine changes
less, and how much more each call takes through containerd, by both.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.conformance import images, tools
from tests.doors.containerd import HANDLERS, RELEASES, WITH_SANDBOXERS, containerd
from tests.node import base_config, build_guest, node

from bench import lifecycle
from bench.client import Client

SETTLE = 2.0
"""Seconds after a round in which the pool is filled again."""
OWN = "orlopd"
RUNC = "runc"
Found = dict[str, dict[str, list[float]]]


def report(found: Found) -> str:
    """The table."""
    systems = list(found)
    lines = [f"| call | {' | '.join(systems)} | more |", "|---|" + "---|" * (len(systems) + 1)]
    for call, own in found[OWN].items():
        cells = [
            f"{statistics.median(found[name][call]):.0f} / {min(found[name][call]):.0f}" for name in systems
        ]
        more = [
            f"{statistics.median(found[name][call]) - statistics.median(own):+.0f} / "
            f"{min(found[name][call]) - min(own):+.0f}"
            for name in systems
            if name != OWN
        ]
        lines.append(f"| {call} | {' | '.join(cells)} | {', '.join(more)} |")
    return "\n".join(lines)


def measure(clients: dict[str, tuple[Client, str]], rounds: int, logs: Path) -> Found:
    """Each system's pods in turns; the first round finds nothing in memory and does not count."""
    found: Found = defaultdict(lambda: defaultdict(list))
    for number in range(rounds + 1):
        for name, (client, handler) in clients.items():
            directory = logs / f"{name}-{number}"
            directory.mkdir()
            time.sleep(SETTLE)
            life = lifecycle.whole_life(client, handler, f"{name}-{number}", os.fspath(directory))
            for call, milliseconds in life.items() if number else ():
                found[name][call].append(milliseconds)
    return found


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.shim", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--containerd", choices=tuple(RELEASES), default="1.7")
    options = parser.parse_args()
    build_guest(base_config())
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        node(registry, prefix="orlop-bench-") as one,
        tempfile.TemporaryDirectory(prefix="orlop-ctr-") as name,
        containerd(Path(name), options.containerd, one.scratch / "state", registry) as theirs,
    ):
        one.wait_ready()
        own, through = Client(one.socket), Client(os.fspath(theirs.socket))
        handlers = [
            handler
            for handler, sandboxer in HANDLERS.items()
            if not sandboxer or options.containerd in WITH_SANDBOXERS
        ]
        for client in (own, through):
            lifecycle.pull(client)
        clients = {OWN: (own, "vm"), **{f"containerd, {each}": (through, each) for each in (*handlers, RUNC)}}
        logs = Path(name) / "logs"
        logs.mkdir()
        try:
            print(report(measure(clients, options.rounds, logs)))
        finally:
            own.close()
            through.close()
            theirs.remove_pods()


if __name__ == "__main__":
    main()
