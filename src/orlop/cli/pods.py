"""``orlop pod create``, ``ls``, ``stop`` and ``rm``."""

from __future__ import annotations

from collections import Counter

from orlop.cli import output
from orlop.cli.formats import Age, Id, Printer, Row, Shape, moment
from orlop.cli.problems import CliError
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.client.launch import RunOptions
from orlop.client.pod import Pod, find_pod
from orlop.cri.api import runtime_v1_pb2 as pb

SHAPE = Shape(
    headings={
        "ID": "POD ID",
        "Name": "NAME",
        "Created": "CREATED",
        "Status": "STATE",
        "Handler": "HANDLER",
        "NumberOfContainers": "CONTAINERS",
        "CreatedAt": "CREATED AT",
        "Labels": "LABELS",
    },
    columns=("ID", "Name", "Created", "Status", "Handler", "NumberOfContainers"),
)


async def create_command(socket: str, wanted: RunOptions) -> None:
    """``orlop pod create``."""
    async with session.connect(socket) as client:
        pod = Pod(client, wanted)
        await pod.create()
    print(pod.id)


async def list_command(socket: str, printer: Printer, *, quiet: bool, as_json: bool) -> None:
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
        handlers = await session.handlers_of(client, answer.items) if "Handler" in printer.fields else {}
    held = Counter(one.pod_sandbox_id for one in containers.containers)
    newest_first = sorted(answer.items, key=lambda item: -item.created_at)
    printer.show([_row(pod, held[pod.id], handlers.get(pod.id, "")) for pod in newest_first])


def _row(pod: pb.PodSandbox, held: int, handler: str) -> Row:
    created = Age(pod.created_at // 1_000_000_000)
    return {
        "ID": Id(pod.id),
        "Name": f"{pod.metadata.namespace}/{session.name_of(pod)}",
        "Created": created,
        "CreatedAt": moment(pod.created_at),
        "Status": "ready" if pod.state == pb.SANDBOX_READY else "ended",
        "Handler": handler,
        "NumberOfContainers": held,
        "Labels": dict(pod.labels),
    }


async def exists_command(socket: str, name: str) -> int:
    """``orlop pod exists``: 0 or 1."""
    async with session.connect(socket) as client:
        return 0 if await session.find_pod_id(client, name) else 1


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
