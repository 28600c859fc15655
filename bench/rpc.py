"""What the calls cost that a kubelet makes all day: ``python -m bench.rpc``. Needs root.

Version, ListContainers and ContainerStatus, on each system with 1,000 containers, interleaved. No
container runs: containerd creates them for real, in one pod; Orlop's daemon is started on a journal
that holds as many records, with the labels and annotations that a kubelet sets. Times are those of
the call on the wire; the client does not parse the answers (they are counted once before).
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc
import msgspec
from tests.conformance import images, tools

from bench import lifecycle, systems
from bench.client import IMAGE, Client, container_config, pod_config
from bench.report import percentile
from bench.words import reason, say
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate.container import container_request
from orlop.cri.translate.pod import pod_spec
from orlop.pods.journal import Journal
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord
from orlop.sandbox.spec import ContainerSpec

ORLOP = "orlop-process"
DEFAULT = f"{ORLOP},containerd-runc"
ADDRESS = "127.0.0.1:15989"
WARM = 10
DIGEST = "sha256:" + "e" * 64


def kubelet_container(index: int) -> pb.ContainerConfig:
    """A container as a kubelet asks for it: its labels and annotations are much of a list's bytes."""
    config = container_config(f"c{index}", "sleep", "1000000")
    config.labels.update(
        {
            "io.kubernetes.container.name": f"c{index}",
            "io.kubernetes.pod.name": "many",
            "io.kubernetes.pod.namespace": "bench",
            "io.kubernetes.pod.uid": "3b2a1c9e-7a55-4a52-9a38-5a77d3f0c001",
        }
    )
    config.annotations.update(
        {
            "io.kubernetes.container.hash": "5b1a2c3d",
            "io.kubernetes.container.restartCount": "0",
            "io.kubernetes.container.terminationMessagePath": "/dev/termination-log",
            "io.kubernetes.container.terminationMessagePolicy": "File",
            "io.kubernetes.pod.terminationGracePeriod": "30",
        }
    )
    return config


async def write_journal(path: Path, count: int, pods: int) -> None:
    """``pods`` pods that have ended, with ``count`` containers among them, in a new journal."""
    journal = Journal(path)
    await journal.open()
    made = []
    for index in range(pods):
        config = pod_config(f"many-{index}", "")
        made.append(msgspec.structs.replace(pod_spec(config, "process"), id=f"{index + 1:064x}"))
    writes = [
        journal.put_pod(PodRecord(spec=spec, phase=PodPhase.NOTREADY, created_at=time.time_ns()))
        for spec in made
    ]
    for index in range(count):
        request = container_request(made[index % pods].id, kubelet_container(index))
        container = ContainerSpec(
            id=f"{pods + index + 1:064x}",
            pod_id=request.pod_id,
            name=request.name,
            image_id=DIGEST,
            args=request.command,
        )
        record = ContainerRecord(
            spec=container,
            phase=ContainerPhase.EXITED,
            created_at=time.time_ns(),
            finished_at=time.time_ns(),
            labels=request.labels,
            annotations=request.annotations,
            image=IMAGE,
            image_ref=DIGEST,
        )
        writes.append(journal.put_container(record))
    await asyncio.gather(*writes)
    await journal.close()


def with_records(system: systems.System, count: int, pods: int = 1) -> systems.System:
    """The same system, whose daemon starts on a journal of ``count`` containers in ``pods`` pods."""

    def prepare(directory: Path, registry: str, registries_conf: str) -> list[str]:
        command = system.prepare(directory, registry, registries_conf)
        # No pod is run, so that no virtual machine need be made ready.
        config = directory / "config.toml"
        config.write_text(f'default_handler = "process"\n{config.read_text()}')
        asyncio.run(write_journal(directory / "root" / "journal.db", count, pods))
        return command

    return dataclasses.replace(system, prepare=prepare)


def create_containers(client: Client, handler: str, logs: str, count: int) -> None:
    """The same containers, created and not started."""
    lifecycle.pull(client)
    pod = pod_config("many", logs)
    request = pb.RunPodSandboxRequest(config=pod, runtime_handler=handler)
    pod_id = client.call("RunPodSandbox", request).pod_sandbox_id
    for index in range(count):
        config = kubelet_container(index)
        client.call(
            "CreateContainer",
            pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=config, sandbox_config=pod),
        )
        if (index + 1) % 250 == 0:
            say(f"{index + 1} containers")


class Raw:
    """Calls that send and receive bytes, so that the client's own work is not measured."""

    def __init__(self, path: str) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{path}", options=[("grpc.max_receive_message_length", 1 << 28)]
        )

    def call(self, name: str) -> Callable[[bytes], bytes]:
        """The call of that name."""
        return self._channel.unary_unary(f"/runtime.v1.RuntimeService/{name}", None, None)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def measure(running: systems.Running, client: Client, count: int) -> dict[str, Callable[[], bytes]]:
    """The calls to time on one system, each ready to be made."""
    listed = client.call("ListContainers", pb.ListContainersRequest()).containers
    if len(listed) < count:
        raise RuntimeError(f"{running.system.name} lists {len(listed)} containers, not {count}")
    raw = Raw(running.socket)
    status = pb.ContainerStatusRequest(container_id=listed[count // 2].id).SerializeToString()
    one = pb.ListContainersRequest(filter=pb.ContainerFilter(id=listed[7].id)).SerializeToString()
    version, containers = raw.call("Version"), raw.call("ListContainers")
    container = raw.call("ContainerStatus")
    return {
        "Version": lambda: version(b""),
        "ListContainers": lambda: containers(b""),
        "ListContainers of one": lambda: containers(one),
        "ContainerStatus": lambda: container(status),
    }


def timed(call: Callable[[], bytes]) -> float:
    """Milliseconds that ``call`` takes."""
    begin = time.perf_counter()
    call()
    return (time.perf_counter() - begin) * 1000


Samples = dict[str, dict[str, list[float]]]


def run(names: list[str], scratch: Path, count: int, rounds: int) -> tuple[Samples, dict[str, str]]:
    """All systems up at once; each round makes every call once on each. Samples, and what is missing."""
    samples: Samples = {}
    missing: dict[str, str] = {}
    with ExitStack() as stack:
        ready = []
        for number, name in enumerate(names):
            system = systems.known()[name]
            if name.startswith("orlop"):
                system = with_records(system, count)
            try:
                conf = images.registries_conf(ADDRESS)
                running = stack.enter_context(
                    systems.running(system, scratch / name, 20 + number, ADDRESS, conf)
                )
                client = Client(running.socket)
                stack.callback(client.close)
                if not name.startswith("orlop"):
                    create_containers(client, system.handler, f"{scratch}/logs", count)
                    stack.callback(remove_pods, client)
                ready.append((name, measure(running, client, count)))
            except (RuntimeError, OSError, tools.ToolError, grpc.RpcError) as error:
                missing[name] = reason(error)
                say(f"{name}: {missing[name]}")
        for index in range(rounds + WARM):
            for name, calls in ready:
                for call, make in calls.items():
                    value = timed(make)
                    if index >= WARM:
                        samples.setdefault(name, {}).setdefault(call, []).append(value)
    return samples, missing


def remove_pods(client: Client) -> None:
    """Leave no pod behind."""
    for pod in client.call("ListPodSandbox", pb.ListPodSandboxRequest()).items:
        client.call("StopPodSandbox", pb.StopPodSandboxRequest(pod_sandbox_id=pod.id))
        client.call("RemovePodSandbox", pb.RemovePodSandboxRequest(pod_sandbox_id=pod.id))


def table(samples: Samples, missing: dict[str, str]) -> str:
    """Medians and 99th percentiles, one row for each call."""
    names = list(samples)
    lines = [f"{'median / p99 ms':24}" + "".join(f"{name:>24}" for name in names)]
    for call in next(iter(samples.values()), {}):
        cells = [
            f"{statistics.median(samples[name][call]):.2f} / {percentile(samples[name][call], 0.99):.2f}"
            for name in names
        ]
        lines.append(f"{call:24}" + "".join(f"{cell:>24}" for cell in cells))
    lines.extend(f"{name}: not measured, {why}" for name, why in missing.items())
    return "\n".join(lines)


def main() -> int:
    """Run what the options choose and print the table."""
    known = systems.known()
    parser = argparse.ArgumentParser(prog="bench.rpc", description=__doc__)
    parser.add_argument("--systems", default=DEFAULT, help=f"comma-separated; default: {DEFAULT}")
    parser.add_argument("--containers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--out", type=Path, default=Path("bench-results"))
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("needs root: containerd makes network namespaces and mounts")
    names = options.systems.split(",")
    if unknown := set(names) - set(known):
        parser.error(f"unknown systems: {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    scratch = Path(tempfile.mkdtemp(prefix="orlop-bench-", dir="/var/tmp"))
    try:
        with images.serve(images.storage(), ADDRESS):
            samples, missing = run(names, scratch, options.containers, options.rounds)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "rpc.json").write_text(
        json.dumps({"samples": samples, "missing": missing}, indent=1) + "\n"
    )
    print(table(samples, missing))
    return 0


if __name__ == "__main__":
    sys.exit(main())
