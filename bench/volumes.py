"""What each kind of volume can do, system by system: ``python -m bench.volumes``. Needs root.

One pod of each system has every kind of volume that a kubelet makes, and one program tries in it all that a
file system is asked for. The table has a line for each trial that is not the same everywhere. Then how fast a
log is written; and, the systems in turn: a change on the host until the container sees it, the start of a pod
with a container and of a later container without and with small volumes, reading small volumes, names and
data in the root, an emptyDir and a directory of the host. There are as many rounds as ``--minutes`` allow
for, and a system that fails is left out of those that follow.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
from tests.conformance import images, tools
from tests.volumes.kubelet import PodDirectory, judge, pod_directory, verdicts

from bench import disk, lifecycle, systems
from bench.client import Client, container_config, pod_config
from bench.systems import REGISTRY
from bench.words import reason, say
from orlop.cri.api import runtime_v1_pb2 as pb

KINDS = ("root", "emptyDir", "emptyDir, Memory", "emptyDir, subPath", "hostPath")
PLACES = {
    "root": "/root",
    "emptyDir": "/empty",
    "emptyDir, Memory": "/memory",
    "emptyDir, subPath": "/sub",
    "hostPath": "/host",
}
SMALL = 8
SEEN, FIRST, LATER = "a change seen", "pod with a container", "one more container"
WORKED_IN = {"root": "/bench", "emptyDir": "/empty/bench", "hostPath": "/host/bench"}
READ = {"root": "/copies", "small volumes": "/small"}
LOOKING = 1.0
"""Seconds after which a container surely looks for a change."""
LOG_MB = 40
FAILURES = (RuntimeError, OSError, tools.ToolError, grpc.RpcError)

Figures = dict[str, dict[str, list[float]]]
"""Milliseconds, by what was done and by system."""


@dataclass(frozen=True)
class Place:
    """A running container of a system, and its pod's directory."""

    system: systems.System
    daemon: int
    client: Client
    scratch: Path
    pod: str
    config: pb.PodSandboxConfig
    container: str
    directory: PodDirectory

    def run(self, *command: str) -> str:
        """What a command in the container says."""
        request = pb.ExecSyncRequest(container_id=self.container, cmd=command, timeout=120)
        done = self.client.call("ExecSync", request, timeout=150)
        return str(done.stdout.decode(errors="replace"))


def start(stack: ExitStack, system: systems.System, number: int, scratch: Path) -> Place:
    """The system, a pod on it, a container with a volume of each kind."""
    conf = images.registries_conf(REGISTRY)
    running = stack.enter_context(systems.running(system, scratch / system.name, number, REGISTRY, conf))
    client = Client(running.socket)
    stack.callback(client.close)
    lifecycle.pull(client)
    pod = pod_config("volumes", f"{scratch}/logs-{system.name}")
    directory = stack.enter_context(pod_directory(scratch / f"kubelet-{system.name}", pod.metadata.uid))
    request = pb.RunPodSandboxRequest(config=pod, runtime_handler=system.handler)
    pod_id = client.call("RunPodSandbox", request).pod_sandbox_id
    stack.callback(lifecycle.end_pod, client, pod_id, {})
    container = container_config("main", *lifecycle.SLEEP)
    empty = directory.empty_dir("empty")
    host = scratch / f"host-{system.name}"
    host.mkdir()
    for target, path, read_only in (
        ("/empty", empty, False),
        ("/memory", directory.empty_dir("memory", memory=64 << 20), False),
        ("/sub", directory.sub_path(empty, "main", 0, "below"), False),
        ("/host", host, False),
        ("/config", directory.atomic("configmap", "config", {"key": b"0\n"}), True),
        ("/judge", judge(), True),
    ):
        container.mounts.append(
            pb.Mount(container_path=target, host_path=os.fspath(path), readonly=read_only)
        )
    small_volumes(directory, container, SMALL)
    create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=pod)
    container_id = client.call("CreateContainer", create).container_id
    client.call("StartContainer", pb.StartContainerRequest(container_id=container_id))
    place = Place(system, running.pid, client, scratch, pod_id, pod, container_id, directory)
    disk.run(on_disk(place), "cp -rL /small /copies")
    return place


def seen_after(place: Place, number: int) -> float:
    """Milliseconds from the swap of a ConfigMap on the host to the end of an exec that waits for it."""
    # The shell reads by itself: under emulation a process for each look would be most of what is timed.
    script = f'until [ "$x" = {number} ]; do read x </config/key; done'
    request = pb.ExecSyncRequest(container_id=place.container, cmd=["sh", "-c", script], timeout=30)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(place.client.call, "ExecSync", request, timeout=60)
        time.sleep(LOOKING)
        begin = time.perf_counter()
        place.directory.atomic("configmap", "config", {"key": f"{number}\n".encode()})
        done = waiting.result()
        spent = (time.perf_counter() - begin) * 1000
    if done.exit_code != 0:
        raise RuntimeError(f"{place.system.name}: the change was not seen: {done.stderr!r}")
    return spent


def small_volumes(directory: PodDirectory, container: pb.ContainerConfig, count: int) -> None:
    """Give a container so many small volumes of three files."""
    for index in range(count):
        files = {key: os.urandom(200) for key in ("ca.crt", "namespace", "token")}
        path = directory.atomic("configmap", f"{container.metadata.name}-{index}", files)
        target = f"/small/{index}"
        container.mounts.append(pb.Mount(container_path=target, host_path=os.fspath(path), readonly=True))


def pod_with(place: Place, number: int, volumes: int) -> float:
    """Milliseconds from RunPodSandbox until a container with so many small volumes runs."""
    pod = pod_config(f"small-{number}-{volumes}", f"{place.scratch}/logs-{place.system.name}")
    with pod_directory(place.scratch / f"kubelet-{place.system.name}", pod.metadata.uid) as directory:
        container = container_config("main", *lifecycle.SLEEP)
        small_volumes(directory, container, volumes)
        begin = time.perf_counter()
        request = pb.RunPodSandboxRequest(config=pod, runtime_handler=place.system.handler)
        pod_id = place.client.call("RunPodSandbox", request).pod_sandbox_id
        try:
            create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=pod)
            made = place.client.call("CreateContainer", create).container_id
            place.client.call("StartContainer", pb.StartContainerRequest(container_id=made))
            return (time.perf_counter() - begin) * 1000
        finally:
            lifecycle.end_pod(place.client, pod_id, {})


def started_in(place: Place, number: int, volumes: int) -> float:
    """Milliseconds of CreateContainer and StartContainer with so many small volumes."""
    container = container_config(f"small-{number}-{volumes}", *lifecycle.SLEEP)
    small_volumes(place.directory, container, volumes)
    create = pb.CreateContainerRequest(
        pod_sandbox_id=place.pod, config=container, sandbox_config=place.config
    )
    begin = time.perf_counter()
    made = place.client.call("CreateContainer", create).container_id
    place.client.call("StartContainer", pb.StartContainerRequest(container_id=made))
    spent = (time.perf_counter() - begin) * 1000
    place.client.call("StopContainer", pb.StopContainerRequest(container_id=made, timeout=0))
    place.client.call("RemoveContainer", pb.RemoveContainerRequest(container_id=made))
    return spent


def table(found: dict[tuple[str, str], dict[str, str]], names: list[str]) -> None:
    """A line for each trial that is not "ok" everywhere."""
    columns = [(kind, name) for kind in KINDS for name in names if (kind, name) in found]
    trials = dict.fromkeys(trial for verdict in found.values() for trial in verdict)
    print("| trial | " + " | ".join(f"{kind}: {name}" for kind, name in columns) + " |")
    print("|---" * (len(columns) + 1) + "|")
    for trial in trials:
        cells = [found[column].get(trial, "-") for column in columns]
        if any(cell != "ok" for cell in cells):
            print(f"| {trial} | " + " | ".join(cells) + " |")
    same = sum(all(found[column].get(trial) == "ok" for column in columns) for trial in trials)
    print(f"{same} of {len(trials)} trials succeed everywhere.")


def one_round(place: Place, number: int, figures: Figures) -> None:
    """Everything once that is timed."""

    def add(what: str, milliseconds: float) -> None:
        figures.setdefault(what, {}).setdefault(place.system.name, []).append(milliseconds)

    add(SEEN, seen_after(place, number))
    # Each goes first in every other round: what a start leaves behind is not one kind's alone.
    kinds = (0, SMALL) if number % 2 else (SMALL, 0)
    for volumes in kinds:
        # The pool makes another VM, which would be counted as well.
        time.sleep(place.system.settle)
        add(f"{FIRST}, {volumes} small volumes", pod_with(place, number, volumes))
    time.sleep(place.system.settle)
    for volumes in kinds:
        add(f"{LATER}, {volumes} small volumes", started_in(place, number, volumes))
    shared = on_disk(place)
    empty = min(disk.run(shared, ":") for _ in range(3))
    for where, directory in READ.items():
        script = f"for i in $(seq 50); do for f in {directory}/*/*; do read -n 1 x <$f; done; done"
        add(f"{where}: read 24 files 50 times", disk.run(shared, script) - empty)
    for where, directory in WORKED_IN.items():
        disk.run(shared, f"mkdir {directory}")
        for name, script in disk.WORK.items():
            add(f"{where}: {name}", disk.run(shared, script.format(d=directory)) - empty)
        disk.run(shared, f"rm -r {directory}")


def rounds(places: list[Place], most: int, until: float) -> tuple[int, Figures]:
    """So many rounds, or as many as end before the moment ``until``; how many there were."""
    figures: Figures = {}
    longest = 0.0
    for number in range(1, most + 1):
        begin = time.monotonic()
        if begin + longest > until:
            return number - 1, figures
        for place in tuple(places):
            try:
                one_round(place, number, figures)
            except FAILURES as error:
                say(f"{place.system.name}: left out from round {number} on, {reason(error)}")
                places.remove(place)
        longest = max(longest, time.monotonic() - begin)
        say(f"round {number} of {most}, {longest:.0f} s at most")
    return most, figures


def on_disk(place: Place) -> disk.Place:
    """The place as :mod:`bench.disk` has it."""
    return disk.Place(place.system, place.daemon, place.client, place.pod, place.container, Path())


def timed(figures: Figures, names: list[str], yardstick: str) -> None:
    """A line for each thing that was timed: medians and the slowest, and the ratio to the yardstick."""
    print("| milliseconds, median / most | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for what, columns in figures.items():
        cells = []
        for name in names:
            values = columns.get(name)
            if not values:
                cells.append("-")
                continue
            text = f"{statistics.median(values):.0f} / {max(values):.0f}"
            if name != yardstick and columns.get(yardstick):
                text += f" ({statistics.median(values) / statistics.median(columns[yardstick]):.1f})"
            cells.append(text)
        print(f"| {what} | " + " | ".join(cells) + " |")


def logs(places: list[Place]) -> None:
    """How fast each system writes a container's log."""
    for width in disk.LOG_LINES:
        for place in places:
            try:
                found = disk.stream_log(on_disk(place), place.scratch, LOG_MB, width)
            except FAILURES as error:
                say(f"{place.system.name}: log not measured, {reason(error)}")
                continue
            print(f"log, lines of {width} bytes: {place.system.name} {found.speed:.1f} MB/s")


def trials(places: list[Place], names: list[str]) -> None:
    """What the program finds that tries everything."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for place in places:
        for kind in KINDS:
            found[kind, place.system.name] = verdicts(place.run("/judge", "try", PLACES[kind]))
        say(f"{place.system.name}: tried")
    table(found, names)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(prog="bench.volumes", description=__doc__)
    parser.add_argument("--systems", default="orlop-vm-pool,orlop-process,containerd-runc")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--minutes", type=float, default=10, help="begin no round that would end later")
    parser.add_argument("--no-trials", action="store_true", help="only what is timed")
    parser.add_argument("--before", type=Path, help="another checkout of Orlop, measured beside this one")
    options = parser.parse_args()
    until = time.monotonic() + options.minutes * 60
    known = systems.known(options.before)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = Path(tempfile.mkdtemp(prefix="orlop-bench-", dir="/var/tmp"))
    places: list[Place] = []
    try:
        with images.serve(images.storage(), REGISTRY), ExitStack() as stack:
            for number, name in enumerate(options.systems.split(",")):
                try:
                    places.append(start(stack, known[name], number, scratch))
                except FAILURES as error:
                    say(f"{name}: not measured, {reason(error)}")
            names = [place.system.name for place in places]
            if not options.no_trials:
                trials(places, names)
            logs(places)
            done, figures = rounds(places, options.rounds, until)
            timed(figures, names, "containerd-runc")
            print(f"{done} rounds, load average {os.getloadavg()[1]:.1f}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
