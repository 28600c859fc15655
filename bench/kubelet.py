"""Pods at one moment, as a kubelet sees their starts: ``python -m bench.kubelet``. Needs root; takes minutes.

A cluster of two nodes, one with Orlop and one with containerd and runc. In each round every system gets 1, 10
and 30 pods of one busybox container at one moment, one system after the other; ``--busy 2`` lets two loops
run beside it. What is printed is Markdown: seconds until the first, half and all of them were ready as the
API server says it, and the mean of the kubelet's ``pod_start_duration_seconds``.

``kubelet_pod_start_sli_duration_seconds`` is no measure here: the kubelet of 1.36 counts a pod when its watch
shows it the first change after it has written that the pod runs. A pod that only waits has none until it is
deleted.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.cluster.room import Cluster, cluster
from tests.conformance.images import E2E

from bench.words import say

IMAGE = f"{E2E}/busybox:1.37.0-1"
START = "kubelet_pod_start_duration_seconds"
"""From when the kubelet first saw a pod to when it runs. Each pod counts twice, first with nothing."""
READY = '.status.conditions[?(@.type=="Ready")].status'
SETTLE = 8.0
"""Seconds after a burst: pods are gone, the pool is filled again."""


@dataclass(frozen=True)
class System:
    """A node of the cluster with a RuntimeClass, or none for what the node's runtime does by itself."""

    name: str
    node: str
    runtime_class: str = ""


SYSTEMS = (
    System("Orlop `vm`", "node1"),
    System("Orlop `process`", "node1", "process"),
    System("containerd + runc", "node2"),
)


@dataclass
class Found:
    """Of a system and a number of pods: seconds, round by round."""

    first: list[float] = field(default_factory=list)
    half: list[float] = field(default_factory=list)
    last: list[float] = field(default_factory=list)
    restarts: int = 0
    started: list[float] = field(default_factory=list)

    def cells(self) -> list[float]:
        """What the table shows of it, in seconds."""
        return [statistics.median(times) for times in (self.first, self.half, self.last, self.started)]


def pod(name: str, system: System, probed: bool) -> dict[str, Any]:
    """One container that waits; with ``probed``, a liveness probe that allows a second."""
    container: dict[str, Any] = {"name": "main", "image": IMAGE, "command": ["sleep", "3600"]}
    if probed:
        container["livenessProbe"] = {"exec": {"command": ["true"]}, "periodSeconds": 2, "timeoutSeconds": 1}
    spec: dict[str, Any] = {
        "nodeName": system.node,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": True,
        "containers": [container],
    }
    if system.runtime_class:
        spec["runtimeClassName"] = system.runtime_class
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"timed": "yes"}},
        "spec": spec,
    }


def started(one: Cluster, node: str) -> float:
    """The sum of the kubelet's histogram, in seconds."""
    text = one.kubectl("get", "--raw", f"/api/v1/nodes/{node}/proxy/metrics").out
    return sum(float(line.split()[1]) for line in text.splitlines() if line.startswith(f"{START}_sum"))


def burst(one: Cluster, system: System, count: int, probed: bool, found: Found) -> None:
    """``count`` pods at one moment, until all are ready; then they are removed."""
    pods = [pod(f"timed-{number}", system, probed) for number in range(count)]
    before = started(one, system.node)
    columns = f"custom-columns=NAME:.metadata.name,READY:{READY}"
    ready: dict[str, float] = {}
    options = ("get", "pods", "--selector=timed", "--watch", "--no-headers", "--output", columns)
    with one.watching(*options) as lines:
        begin = time.monotonic()
        one.apply({"apiVersion": "v1", "kind": "List", "items": pods})
        for line in lines:
            name, state = line.split()
            if state == "True":
                ready.setdefault(name, time.monotonic() - begin)
            if len(ready) == count:
                break
    times = sorted(ready.values())
    found.first.append(times[0])
    found.half.append(times[(count - 1) // 2])
    found.last.append(times[-1])
    found.started.append((started(one, system.node) - before) / count)
    listed = one.json("get", "pods", "--selector=timed")["items"]
    states = [state for entry in listed for state in entry["status"]["containerStatuses"]]
    found.restarts += sum(state["restartCount"] for state in states)
    one.kubectl("delete", "pods", "--selector=timed", "--wait", timeout=300.0)
    time.sleep(SETTLE)


@contextmanager
def loops(count: int) -> Iterator[None]:
    """So many processes that want a processor each."""
    with ExitStack() as stack:
        for _ in range(count):
            child = stack.enter_context(subprocess.Popen([sys.executable, "-c", "while True: pass"]))
            stack.callback(child.kill)
        yield


def report(found: dict[tuple[str, int], Found]) -> str:
    """The table, with ratios to containerd."""
    heads = "| pods | system | first | half | all | mean | restarts |"
    lines = [heads, "|---|---|---|---|---|---|---|"]
    for (name, count), entry in found.items():
        base = found[(SYSTEMS[-1].name, count)].cells()
        pairs = zip(entry.cells(), base, strict=True)
        cells = [f"{value:.2f} ({value / peer:.2f})" for value, peer in pairs]
        lines.append(f"| {count} | {name} | {' | '.join(cells)} | {entry.restarts} |")
    return "\n".join(lines)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(prog="python -m bench.kubelet", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pods", default="1,10,30", help="numbers of pods at one moment")
    parser.add_argument("--busy", type=int, default=0, help="loops that run beside it")
    parser.add_argument("--probes", action="store_true", help="each pod has a liveness probe of a second")
    options = parser.parse_args()
    counts = [int(count) for count in options.pods.split(",")]
    found = {(system.name, count): Found() for count in counts for system in SYSTEMS}
    with cluster(2, peers=["node2"]) as one:
        for system in SYSTEMS:  # the first finds neither image nor template in memory
            burst(one, system, 1, False, Found())
        with loops(options.busy):
            for number in range(options.rounds):
                say(f"round {number + 1} of {options.rounds}")
                for count in counts:
                    for system in SYSTEMS:
                        burst(one, system, count, options.probes, found[(system.name, count)])
        print(report(found))


if __name__ == "__main__":
    main()
