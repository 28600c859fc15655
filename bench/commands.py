"""podman's commands with ``orlop-oci`` and with crun, one after the other in each round.

    python -m bench.commands --rounds 10

What is printed is Markdown: medians in milliseconds with the 95th percentiles, their ratio, and the memory of
the process that stands in for a container: its own, and its share (PSS) of what it has in common with others.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from tests.conformance import images, tools
from tests.doors.podman import Podman, podman
from tests.node import BUSYBOX, base_config, build_guest, node

from bench import peers
from bench.usage import memory

NAME = "timed"
STEPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("run --rm true", ("run", "--rm", BUSYBOX, "true")),
    ("run -d", ("run", "-d", "--name", NAME, BUSYBOX, "sleep", "600")),
    ("exec true", ("exec", NAME, "true")),
    ("stop -t 0", ("stop", "-t", "0", NAME)),
    ("rm", ("rm", NAME)),
)
SETTLE = 4.0
"""Seconds after a round in which what it left to be done is done: the pool is filled again."""


def crun(directory: Path) -> Path:
    """crun, which refuses a host with control groups of both versions: version 2 is hidden from it."""
    program = peers.debian_podman() / "usr/bin/crun"
    unified = Path("/sys/fs/cgroup/unified")
    path = directory / "crun"
    hidden = f"exec unshare --mount sh -c 'umount {unified}; exec \"$@\"' sh {program}"
    path.write_text(f'#!/bin/sh\n{hidden if unified.is_mount() else f"exec {program}"} "$@"\n')
    path.chmod(0o755)
    return path


def one_round(run: Podman, runtime: Path, times: dict[str, list[float]]) -> None:
    """Each step once, in milliseconds."""
    for name, arguments in STEPS:
        begin = time.perf_counter()
        run("--runtime", os.fspath(runtime), *arguments)
        times[name].append((time.perf_counter() - begin) * 1000)


def standing(run: Podman) -> dict[str, float]:
    """KiB of the process that stands in for a container, by their names in smaps_rollup."""
    names = [f"{NAME}{number}" for number in range(4)]
    for name in names:
        run("--runtime", os.fspath(run.runtime), "run", "-d", "--name", name, BUSYBOX, "sleep", "600")
    listed = subprocess.run([run.runtime, "list", "--format", "json"], capture_output=True, check=True).stdout
    found = [memory(state["pid"]) for state in json.loads(listed) if state["status"] == "running"]
    run("rm", "--force", "--time", "0", *names)
    return {name: statistics.median(one[name] for one in found) for name in found[0]}


def report(found: dict[str, dict[str, list[float]]], standing_in: dict[str, float]) -> str:
    """The table."""
    lines = ["| command | orlop-oci | crun | ratio |", "|---|---|---|---|"]
    for name, _ in STEPS:
        ours, theirs = found["orlop-oci"][name], found["crun"][name]
        cells = [f"{statistics.median(one):.0f} / {percentile(one):.0f}" for one in (ours, theirs)]
        ratio = statistics.median(ours) / statistics.median(theirs)
        lines.append(f"| `podman {name}` | {cells[0]} | {cells[1]} | {ratio:.2f} |")
    own, share = standing_in["Private_Clean"] + standing_in["Private_Dirty"], standing_in["Pss"]
    return "\n".join([*lines, "", f"stand-in: {own:.0f} KiB of its own, {share:.0f} KiB PSS"])


def percentile(values: list[float]) -> float:
    """The 95th."""
    return sorted(values)[min(len(values) - 1, round(0.95 * len(values)))]


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.commands", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    rounds = parser.parse_args().rounds
    build_guest(base_config())
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with (
        images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry,
        node(registry, prefix="orlop-bench-") as one,
        tempfile.TemporaryDirectory(prefix="orlop-podman-") as name,
        podman(Path(name), one) as run,
    ):
        one.wait_ready()
        run("pull", "-q", "--tls-verify=false", BUSYBOX)
        systems = {"orlop-oci": run.runtime, "crun": crun(Path(name))}
        for runtime in systems.values():
            one_round(run, runtime, defaultdict(list))  # the first finds nothing in memory
        for _ in range(rounds):
            for system, runtime in systems.items():
                time.sleep(SETTLE)
                one_round(run, runtime, found[system])
        print(report(found, standing(run)))


if __name__ == "__main__":
    main()
