"""``orlop pod create``, ``ls``, ``stop`` and ``rm``."""

from __future__ import annotations

from collections import Counter

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.cli.units import show_age
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.client.launch import RunOptions
from orlop.client.pod import Pod, find_pod
from orlop.cri.api import runtime_v1_pb2 as pb


async def create_command(socket: str, wanted: RunOptions) -> None:
    """``orlop pod create``."""
    async with session.connect(socket) as client:
        pod = Pod(client, wanted)
        await pod.create()
    print(pod.id)


async def list_command(socket: str, quiet: bool, as_json: bool) -> None:
    """``orlop pod ls``."""
    async with session.connect(socket) as client:
        answer = await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
        if as_json:
            output.print_message(answer)
            return
        if quiet:
            for pod in answer.items:
                print(pod.id)
            return
        containers = await client.runtime.list_containers(pb.ListContainersRequest())
    held = Counter(one.pod_sandbox_id for one in containers.containers)
    rows = [
        (
            pod.id[:13],
            f"{pod.metadata.namespace}/{pod.metadata.name}",
            show_age(pod.created_at),
            "ready" if pod.state == pb.SANDBOX_READY else "ended",
            pod.runtime_handler or "-",
            str(held[pod.id]),
        )
        for pod in sorted(answer.items, key=lambda item: -item.created_at)
    ]
    output.table(("POD ID", "NAME", "CREATED", "STATE", "HANDLER", "CONTAINERS"), rows)


async def stop_command(socket: str, names: list[str]) -> None:
    """``orlop pod stop``."""
    async with session.connect(socket) as client:
        for name in names:
            await (await find_pod(client, name)).stop()
            print(name)


async def rm_command(socket: str, names: list[str], *, force: bool) -> None:
    """``orlop pod rm``."""
    async with session.connect(socket) as client:
        for name in names:
            pod = await find_pod(client, name)
            if not force and (count := await _running(client, pod.id)):
                raise CliError(f"pod {name} has {count} running containers: stop it first, or add --force")
            await pod.remove()
            print(name)


async def _running(client: CriClient, pod_id: str) -> int:
    request = pb.ListContainersRequest()
    request.filter.pod_sandbox_id = pod_id
    request.filter.state.state = pb.CONTAINER_RUNNING
    return len((await client.runtime.list_containers(request)).containers)
