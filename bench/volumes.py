"""What each kind of volume can do, system by system: ``python -m bench.volumes``. Needs root; takes minutes.

One pod of each system has every kind of volume that a kubelet makes, and one program tries in it all that a
file system is asked for. The table has a line for each trial that is not the same everywhere. Then changes on
the host are timed until the container sees them, and starts of containers without and with small volumes.
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
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
from tests.conformance import images, tools
from tests.volumes.kubelet import PodDirectory, judge, pod_directory, verdicts

from bench import lifecycle, systems
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
CHANGES = 10
STARTS = 7
SMALL = 8


@dataclass(frozen=True)
class Place:
    """A running container of a system, and its pod's directory."""

    system: systems.System
    client: Client
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
        ("/config", directory.atomic("configmap", "config", {"key": b"0"}), True),
        ("/judge", judge(), True),
    ):
        container.mounts.append(
            pb.Mount(container_path=target, host_path=os.fspath(path), readonly=read_only)
        )
    create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=pod)
    container_id = client.call("CreateContainer", create).container_id
    client.call("StartContainer", pb.StartContainerRequest(container_id=container_id))
    return Place(system, client, pod_id, pod, container_id, directory)


def seen_after(place: Place, number: int) -> float:
    """Milliseconds from the swap of a ConfigMap on the host to the end of an exec that waits to see it."""
    script = f'while [ "$(cat /config/key)" != {number} ]; do :; done'
    request = pb.ExecSyncRequest(container_id=place.container, cmd=["sh", "-c", script], timeout=60)
    begin = time.perf_counter()
    place.directory.atomic("configmap", "config", {"key": str(number).encode()})
    done = place.client.call("ExecSync", request, timeout=90)
    if done.exit_code != 0:
        raise RuntimeError(f"{place.system.name}: the change was not seen: {done.stderr!r}")
    return (time.perf_counter() - begin) * 1000


def started_in(place: Place, number: int, volumes: int) -> float:
    """Milliseconds of CreateContainer and StartContainer with so many small volumes of three files."""
    container = container_config(f"small-{number}", *lifecycle.SLEEP)
    for index in range(volumes):
        files = {key: os.urandom(200) for key in ("ca.crt", "namespace", "token")}
        path = place.directory.atomic("configmap", f"small-{number}-{index}", files)
        target = f"/small/{index}"
        container.mounts.append(pb.Mount(container_path=target, host_path=os.fspath(path), readonly=True))
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


def main() -> int:
    """Run and print."""
    known = systems.known()
    parser = argparse.ArgumentParser(prog="bench.volumes", description=__doc__)
    parser.add_argument("--systems", default="orlop-vm-pool,orlop-process,containerd-runc")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = Path(tempfile.mkdtemp(prefix="orlop-bench-", dir="/var/tmp"))
    found: dict[tuple[str, str], dict[str, str]] = {}
    changes: dict[str, list[float]] = {}
    starts: dict[str, dict[int, list[float]]] = {}
    try:
        with images.serve(images.storage(), REGISTRY), ExitStack() as stack:
            for number, name in enumerate(options.systems.split(",")):
                try:
                    place = start(stack, known[name], number, scratch)
                except (RuntimeError, OSError, tools.ToolError, grpc.RpcError) as error:
                    say(f"{name}: not measured, {reason(error)}")
                    continue
                for kind in KINDS:
                    found[kind, name] = verdicts(place.run("/judge", "try", PLACES[kind]))
                    say(f"{name}: {kind}")
                changes[name] = [seen_after(place, number) for number in range(1, CHANGES + 1)]
                starts[name] = {0: [], SMALL: []}
                for turn in range(STARTS * 2):
                    volumes = SMALL * (turn % 2)
                    starts[name][volumes].append(started_in(place, turn, volumes))
        table(found, list(changes))
        for name, times in changes.items():
            print(
                f"{name}: a change is seen after {statistics.median(times):.0f} ms, {max(times):.0f} at most"
            )
        for name, found_in in starts.items():
            without, with_them = (statistics.median(found_in[volumes]) for volumes in (0, SMALL))
            text = f"{name}: a container starts in {without:.0f} ms"
            print(f"{text}, with {SMALL} small volumes in {with_them:.0f}")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
