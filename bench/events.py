"""What a kubelet is told and when: ``python -m bench.events``. Needs root.

The time from a container's end, and from the call that starts one, until a subscriber of
GetContainerEvents has the event: on a daemon whose store holds 10,000 containers, on one whose store is
almost empty, and on containerd, the rounds interleaved. Beside it the relist that events replace. Then
how fast the loaded daemon tells 10 subscribers of many events.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path

import grpc
from tests.conformance import images, tools

from bench import lifecycle, systems
from bench.client import Client, container_config, pod_config
from bench.report import percentile
from bench.rpc import Raw, with_records
from bench.words import reason, say
from orlop.cri.api import runtime_v1_pb2 as pb

ADDRESS = "127.0.0.1:15987"
IN_POD = 4
SUBSCRIBERS = 10
CALLERS = 4
WARM = 3
PATIENCE = 20.0
# Each container sleeps for a time of its own, by which its process is found; nobody else does for so long.
FIRST_SLEEP = 2_000_000_000
END, START, RELIST = "container's end to event", "StartContainer to event", "relist, instead of events"

Samples = dict[str, dict[str, list[float]]]
Key = tuple[str, int]


class Subscriber:
    """Notes when each event arrives: the time is taken before the message is looked at."""

    def __init__(self, socket: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        call = self._channel.unary_stream("/runtime.v1.RuntimeService/GetContainerEvents", None, None)
        self._stream = call(b"")
        self._arrived: dict[Key, float] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        try:
            for message in self._stream:
                at = time.perf_counter()
                event = pb.ContainerEventResponse.FromString(message)
                with self._changed:
                    self._arrived[event.container_id, event.container_event_type] = at
                    self._changed.notify_all()
        except grpc.RpcError:
            # Cancelled by close(), or lost: then whoever waits for an event says so.
            return

    def wait(self, container: str, kind: int) -> float:
        """When the event came; raises RuntimeError when it does not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: (container, kind) in self._arrived, PATIENCE):
                raise RuntimeError(f"no event of kind {kind} within {PATIENCE:.0f} s")
            return self._arrived[container, kind]

    def close(self) -> None:
        """End the stream."""
        self._channel.close()
        self._thread.join()


@dataclasses.dataclass(frozen=True)
class Place:
    """A system with a running pod and a subscriber."""

    name: str
    socket: str
    client: Client
    pod: str
    logs: str
    subscriber: Subscriber


def process_of(*command: str) -> int:
    """The pid of the container whose only process runs ``command``, which nothing else on the host does."""
    wanted = b"".join(part.encode() + b"\0" for part in command)
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "cmdline").read_bytes() == wanted:
                    return int(entry.name)
            except OSError:
                continue
    raise RuntimeError(f"no process runs {' '.join(command)}")


def one_round(place: Place, number: int, results: dict[str, list[float]]) -> None:
    """A container of its own starts, is killed from outside, is removed; then a relist."""
    command = ("sleep", str(FIRST_SLEEP + number))
    config = container_config(f"c{number}", *command)
    create = pb.CreateContainerRequest(
        pod_sandbox_id=place.pod, config=config, sandbox_config=pod_config("events", place.logs)
    )
    container = place.client.call("CreateContainer", create).container_id
    begin = time.perf_counter()
    place.client.call("StartContainer", pb.StartContainerRequest(container_id=container))
    started = place.subscriber.wait(container, pb.CONTAINER_STARTED_EVENT)
    pid = process_of(*command)
    killed = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    ended = place.subscriber.wait(container, pb.CONTAINER_STOPPED_EVENT)
    place.client.call("RemoveContainer", pb.RemoveContainerRequest(container_id=container))
    raw = Raw(place.socket)
    pods, containers = raw.call("ListPodSandbox"), raw.call("ListContainers")
    pods(b"")
    listing = time.perf_counter()
    pods(b"")
    containers(b"")
    listed = time.perf_counter()
    raw.close()
    for name, value in ((START, started - begin), (END, ended - killed), (RELIST, listed - listing)):
        results.setdefault(name, []).append(value * 1000)


def place(stack: ExitStack, label: str, system: systems.System, number: int, scratch: Path) -> Place:
    """The system with one running pod, and somebody who listens."""
    conf = images.registries_conf(ADDRESS)
    running = stack.enter_context(systems.running(system, scratch / f"s{number}", 24 + number, ADDRESS, conf))
    client = Client(running.socket)
    stack.callback(client.close)
    lifecycle.pull(client)
    logs = f"{scratch}/logs{number}"
    request = pb.RunPodSandboxRequest(config=pod_config("events", logs), runtime_handler=system.handler)
    pod = client.call("RunPodSandbox", request).pod_sandbox_id
    stack.callback(lifecycle.end_pod, client, pod, {})
    subscriber = Subscriber(running.socket)
    stack.callback(subscriber.close)
    return Place(label, running.socket, client, pod, logs, subscriber)


def _count(socket: str, wanted: int, pipe: Connection) -> None:
    """In a process of its own: subscribe, say so, and tell how many events each subscriber got and when.

    So the subscribers' work and the callers' do not wait for each other.
    """

    def listen(_index: int) -> tuple[int, float]:
        got, at = 0, 0.0
        with grpc.insecure_channel(f"unix:{socket}") as channel:
            call = channel.unary_stream("/runtime.v1.RuntimeService/GetContainerEvents", None, None)
            try:
                for _ in call(b"", timeout=60):
                    got, at = got + 1, time.perf_counter()
                    if got == wanted:
                        break
            except grpc.RpcError:
                pass
        return got, at

    with ThreadPoolExecutor(SUBSCRIBERS) as pool:
        results = pool.map(listen, range(SUBSCRIBERS))
        pipe.send(None)
        pipe.send(list(results))


@contextmanager
def counting(socket: str, wanted: int) -> Iterator[Connection]:
    """Subscribers that listen; what comes from the pipe is each one's count and last moment."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_count, args=(socket, wanted, theirs))
    process.start()
    try:
        ours.recv()
        # The streams are asked for; the daemon has them a moment later.
        time.sleep(1)
        yield ours
    finally:
        process.terminate()
        process.join()


def remove(client: Client, pods: list[str]) -> tuple[float, float]:
    """Remove pods that have ended, which makes an event for each and for each container: begin and end."""

    def one(pod: str) -> None:
        client.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod))

    begin = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as pool:
        list(pool.map(one, pods))
    return begin, time.perf_counter()


def throughput(loaded: Place, pods: int) -> dict[str, float]:
    """Events per second with :data:`SUBSCRIBERS` subscribers, and of the same calls with none of those."""
    listed = loaded.client.call("ListPodSandbox", pb.ListPodSandboxRequest()).items
    ended = [pod.id for pod in listed if pod.state == pb.SANDBOX_NOTREADY]
    quiet, heard = ended[:pods], ended[pods : 2 * pods]
    events = len(heard) * (IN_POD + 1)
    begin, end = remove(loaded.client, quiet)
    alone = len(quiet) * (IN_POD + 1) / (end - begin)
    with counting(loaded.socket, events) as pipe:
        begin, end = remove(loaded.client, heard)
        got = pipe.recv()
    last = max(at for _, at in got)
    return {
        "events": events,
        "subscribers": SUBSCRIBERS,
        "delivered to each, at least": min(count for count, _ in got),
        "events per second, one subscriber": alone,
        "events per second": events / (last - begin),
        "deliveries per second": sum(count for count, _ in got) / (last - begin),
        "last event after last call, ms": (last - end) * 1000,
    }


def run(scratch: Path, count: int, rounds: int) -> tuple[Samples, dict[str, float], dict[str, str]]:
    """All systems up at once. Samples, the throughput, and what is missing."""
    known = systems.known()
    orlop, peer = known["orlop-process"], known["containerd-runc"]
    loaded = f"orlop-process, {count}"
    chosen = {
        loaded: with_records(orlop, count, count // IN_POD),
        "orlop-process, empty": orlop,
        "containerd-runc, empty": peer,
    }
    samples: Samples = {}
    missing: dict[str, str] = {}
    burst: dict[str, float] = {}
    with ExitStack() as stack:
        places: list[Place] = []
        for number, (label, system) in enumerate(chosen.items()):
            try:
                places.append(place(stack, label, system, number, scratch))
                one_round(places[-1], 10_000 + number, {})
            except (RuntimeError, OSError, tools.ToolError, grpc.RpcError) as error:
                missing[label] = reason(error)
                places = [one for one in places if one.name != label]
                say(f"{label}: {missing[label]}")
        for number in range(rounds + WARM):
            for index, one in enumerate(places):
                results = samples.setdefault(one.name, {}) if number >= WARM else {}
                one_round(one, number * len(chosen) + index, results)
        for one in places:
            if one.name == loaded:
                burst = throughput(one, min(count // IN_POD // 2, 400))
    return samples, burst, missing


def table(samples: Samples, burst: dict[str, float], missing: dict[str, str]) -> str:
    """Medians and 95th percentiles, one row for each kind; the throughput below."""
    lines = [f"{'median / p95 ms':28}" + "".join(f"{name:>26}" for name in samples)]
    for kind in (END, START, RELIST):
        cells = [
            f"{statistics.median(found[kind]):.2f} / {percentile(found[kind], 0.95):.2f}"
            for found in samples.values()
        ]
        lines.append(f"{kind:28}" + "".join(f"{cell:>26}" for cell in cells))
    lines.extend(f"{name}: {value:.0f}" for name, value in burst.items())
    lines.extend(f"{name}: not measured, {why}" for name, why in missing.items())
    return "\n".join(lines)


def main() -> int:
    """Run what the options choose and print the table."""
    parser = argparse.ArgumentParser(prog="bench.events", description=__doc__)
    parser.add_argument("--containers", type=int, default=10_000, help="how many the loaded store holds")
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: pods are run")
    # So that the daemons end as well when the benchmark is told to.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    scratch = Path(tempfile.mkdtemp(prefix="orlop-bench-", dir="/var/tmp"))
    try:
        with images.serve(images.storage(), ADDRESS):
            samples, burst, missing = run(scratch, options.containers, options.rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    document = {"samples": samples, "throughput": burst, "missing": missing}
    (options.out / "events.json").write_text(json.dumps(document, indent=1) + "\n")
    print(table(samples, burst, missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
