"""Root file system, volumes and logs: ``python -m bench.disk``. Needs root; takes minutes.

Each system runs one pod with the same container and does the same work with the same busybox, in the
root file system, in an emptyDir and in a volume from the host; the rounds are interleaved. Then a container
writes 500 MB to its log while the daemon's memory is watched: blocks of a file that it has made before, since
under emulation a program that makes its lines is slower than what takes them.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import grpc
from tests.conformance import images, tools
from tests.volumes.kubelet import pod_directory

from bench import lifecycle, systems, usage
from bench.client import Client, container_config, pod_config
from bench.systems import REGISTRY
from bench.words import reason, say
from orlop.cri.api import runtime_v1_pb2 as pb

# {d} is the directory worked in. Each is timed as one ExecSync less the time of an empty one.
WORK = {
    "write 64 MiB + sync": "dd if=/dev/zero of={d}/big bs=1M count=64 conv=fsync",
    "read 64 MiB again": "dd if={d}/big of=/dev/null bs=1M",
    "make 1000 files": "mkdir {d}/m && cd {d}/m && for i in $(seq 1000); do : > f$i; done",
    "stat 1000 files": "ls -l {d}/m",
    "remove 1000 files": "rm -r {d}/m",
}
LOG_MB = 500
LOG_LINES = (100, 100_000)
"""Bytes of a line of the log, with its newline: shorter and longer than a line of the log's file may be."""
LOG_FILE_MB = 20


@dataclass(frozen=True)
class Place:
    """A running container of a system."""

    system: systems.System
    daemon: int
    client: Client
    pod: str
    container: str
    volume: Path


def start(stack: ExitStack, system: systems.System, number: int, scratch: Path) -> Place:
    """The system, a pod on it, a container with a volume."""
    conf = images.registries_conf(REGISTRY)
    running = stack.enter_context(systems.running(system, scratch / system.name, number, REGISTRY, conf))
    client = Client(running.socket)
    stack.callback(client.close)
    lifecycle.pull(client)
    volume = scratch / f"volume-{system.name}"
    volume.mkdir()
    logs = f"{scratch}/logs-{system.name}"
    pod = pod_config("disk", logs)
    request = pb.RunPodSandboxRequest(config=pod, runtime_handler=system.handler)
    pod_id = client.call("RunPodSandbox", request).pod_sandbox_id
    stack.callback(lifecycle.end_pod, client, pod_id, {})
    container = container_config("main", *lifecycle.SLEEP)
    kubelet = stack.enter_context(pod_directory(scratch / f"kubelet-{system.name}", pod.metadata.uid))
    for target, path in (("/volume", volume), ("/empty", kubelet.empty_dir("empty"))):
        container.mounts.append(pb.Mount(container_path=target, host_path=os.fspath(path)))
    create = pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=container, sandbox_config=pod)
    container_id = client.call("CreateContainer", create).container_id
    client.call("StartContainer", pb.StartContainerRequest(container_id=container_id))
    return Place(system, running.pid, client, pod_id, container_id, volume)


def run(place: Place, script: str) -> float:
    """Milliseconds of one ExecSync of a shell script; raises RuntimeError when it fails."""
    begin = time.perf_counter()
    request = pb.ExecSyncRequest(container_id=place.container, cmd=["sh", "-c", script], timeout=300)
    done = place.client.call("ExecSync", request, timeout=330)
    if done.exit_code != 0:
        raise RuntimeError(f"{place.system.name}: {script!r} ended with {done.exit_code}: {done.stderr!r}")
    return (time.perf_counter() - begin) * 1000


def one_round(place: Place, results: dict[str, dict[str, list[float]]]) -> None:
    """All the work, in the root file system and in the volumes."""
    empty = min(run(place, ":") for _ in range(3))
    places = (("root", "/bench"), ("emptyDir", "/empty/bench"), ("volume", "/volume/bench"))
    for where, directory in places:
        run(place, f"mkdir {directory}")
        for name, script in WORK.items():
            spent = run(place, script.format(d=directory)) - empty
            results.setdefault(f"{where}: {name}", {}).setdefault(place.system.name, []).append(spent)
        run(place, f"rm -r {directory}")


@dataclass(frozen=True)
class Logged:
    """Output that came into a container's log, MB/s, and the daemon's MiB before, at most and after."""

    speed: float
    before: float
    highest: float
    after: float


def stream_log(place: Place, scratch: Path, megabytes: int, width: int = LOG_LINES[0]) -> Logged:
    """Let a container log so much in lines of ``width`` bytes, and time it from the first to the last.

    Raises RuntimeError when it is not all in the file.
    """
    logs = Path(f"{scratch}/logs-{place.system.name}")
    logs.mkdir(exist_ok=True)
    name = f"talker-{width}"
    pod = pod_config("disk", os.fspath(logs))
    copies = megabytes // LOG_FILE_MB
    script = (
        f"yes $(head -c {width - 1} /dev/zero | tr '\\0' x) | head -c {LOG_FILE_MB}000000 >/lines; "
        f"for i in $(seq {copies}); do dd if=/lines bs=64k 2>/dev/null; done"
    )
    container = container_config(name, "sh", "-c", script)
    before = usage.pss_mib(place.daemon)
    highest, ended = before, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not ended.wait(0.2):
            highest = max(highest, usage.pss_mib(place.daemon))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        create = pb.CreateContainerRequest(pod_sandbox_id=place.pod, config=container, sandbox_config=pod)
        container_id = place.client.call("CreateContainer", create).container_id
        place.client.call("StartContainer", pb.StartContainerRequest(container_id=container_id))
        status = pb.ContainerStatusRequest(container_id=container_id)
        while place.client.call("ContainerStatus", status).status.state != pb.CONTAINER_EXITED:
            time.sleep(0.1)
        place.client.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container_id))
    finally:
        ended.set()
        watcher.join()
    size, seconds = _logged(logs / f"{name}.log")
    (logs / f"{name}.log").unlink()
    if size != copies * LOG_FILE_MB * 1_000_000:
        raise RuntimeError(f"{place.system.name}: the log holds {size} bytes of {megabytes} MB")
    # What the daemon only had in hand, it has let go by now.
    time.sleep(5)
    return Logged(size / 1e6 / seconds, before, highest, usage.pss_mib(place.daemon))


def _logged(path: Path) -> tuple[int, float]:
    """Bytes of output that a log holds, and the seconds between its first line and its last."""
    size, first, last = 0, b"", b""
    with path.open("rb") as file:
        for line in file:
            last, _, tag, text = line.split(b" ", 3)
            first = first or last
            size += len(text) - (tag == b"P")
    begin, end = (datetime.fromisoformat(stamp.decode()) for stamp in (first, last))
    return size, (end - begin).total_seconds()


def main() -> int:
    """Run and print."""
    known = systems.known()
    parser = argparse.ArgumentParser(prog="bench.disk", description=__doc__)
    parser.add_argument("--systems", default="orlop-vm-pool,orlop-process,containerd-runc,containerd-gvisor")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    results: dict[str, dict[str, list[float]]] = {}
    scratch = Path(tempfile.mkdtemp(prefix="orlop-bench-", dir="/var/tmp"))
    try:
        with images.serve(images.storage(), REGISTRY), ExitStack() as stack:
            places = []
            for number, name in enumerate(options.systems.split(",")):
                try:
                    places.append(start(stack, known[name], number, scratch))
                except (RuntimeError, OSError, tools.ToolError, grpc.RpcError) as error:
                    say(f"{name}: not measured, {reason(error)}")
            for number in range(options.rounds):
                for place in tuple(places):
                    try:
                        one_round(place, results)
                    except RuntimeError as error:
                        say(f"{place.system.name}: left out, {error}")
                        places.remove(place)
                say(f"round {number + 1} of {options.rounds}")
            for work, columns in results.items():
                cells = [f"{name} {statistics.median(values):.0f} ms" for name, values in columns.items()]
                print(f"{work:<28}{'   '.join(cells)}")
            for width in LOG_LINES:
                for place in places:
                    try:
                        found = stream_log(place, scratch, LOG_MB, width)
                    except RuntimeError as error:
                        say(f"log of {LOG_MB} MB: not measured, {error}")
                        continue
                    print(
                        f"log of {LOG_MB} MB, lines of {width} bytes: {place.system.name} "
                        f"{found.speed:.1f} MB/s, daemon {found.before:.1f} MiB before, "
                        f"{found.highest:.1f} at most, {found.after:.1f} after"
                    )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
