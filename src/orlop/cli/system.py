"""``orlop system info``, ``df`` and ``prune``."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

import typer

from orlop.cli import output
from orlop.cli.problems import CliError
from orlop.cli.units import show_size
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.client.pod import find_pod
from orlop.cri.api import runtime_v1_pb2 as pb


async def info_command(socket: str, as_json: bool) -> None:
    """``orlop system info``."""
    async with session.connect(socket) as client:
        status = await client.runtime.status(pb.StatusRequest(verbose=True))
        if as_json:
            output.print_message(status)
            return
        version = await client.runtime.version(pb.VersionRequest())
        pods = (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items
        containers = (await client.runtime.list_containers(pb.ListContainersRequest())).containers
        images = (await client.images.list_images(pb.ListImagesRequest())).images
    ready = Counter(pod.runtime_handler or "the default" for pod in pods if pod.state == pb.SANDBOX_READY)
    running = sum(one.state == pb.CONTAINER_RUNNING for one in containers)
    lines = [
        ("Daemon", f"{version.runtime_name} {version.runtime_version}, CRI {version.runtime_api_version}"),
        ("Socket", session.socket_path(socket)),
        *((one.type, _condition(one)) for one in status.status.conditions),
        ("Handlers", ", ".join(sorted(one.name for one in status.runtime_handlers if one.name))),
        ("Pods", f"{len(pods)}" + "".join(f", {count} with handler {name}" for name, count in ready.items())),
        ("Containers", f"{len(containers)}, {running} running"),
        ("Images", str(len(images))),
    ]
    output.table(("WHAT", "NOW"), lines)


def _condition(one: pb.RuntimeCondition) -> str:
    return "yes" if one.status else f"no: {one.message or one.reason}"


async def df_command(socket: str) -> None:
    """``orlop system df``."""
    async with session.connect(socket) as client:
        images = (await client.images.list_images(pb.ListImagesRequest())).images
        on_disk = await client.images.image_fs_info(pb.ImageFsInfoRequest())
        containers = (await client.runtime.list_containers(pb.ListContainersRequest())).containers
        stats = (await client.runtime.list_container_stats(pb.ListContainerStatsRequest())).stats
    used = {one.image_ref or one.image.image for one in containers}
    idle = [one for one in images if one.id not in used and not one.pinned]
    running = sum(one.state == pb.CONTAINER_RUNNING for one in containers)
    taken = sum(one.used_bytes.value for one in on_disk.image_filesystems)
    # An image's size counts the layers that it shares with others, so these may be less than what goes.
    unused = min(taken, sum(one.size for one in idle))
    written = sum(one.writable_layer.used_bytes.value for one in stats)
    rows = [
        ("images", len(images), len(images) - len(idle), show_size(taken), show_size(unused)),
        ("containers", len(containers), running, show_size(written), "-"),
    ]
    output.table(("WHAT", "NUMBER", "IN USE", "SIZE", "UNUSED"), [tuple(map(str, row)) for row in rows])


async def prune_command(socket: str, *, images: bool, force: bool) -> None:
    """``orlop system prune``: pods of ours that have ended, ended containers of those that run, images."""
    async with session.connect(socket) as client:
        pods, containers = await _ended(client)
        unused = await _unused(client, {one.id for one in containers}, pods) if images else []
        if not (pods or containers or unused):
            print("nothing has ended that could be removed")
            return
        counts = ((len(pods), "pods"), (len(containers), "containers"), (len(unused), "images"))
        what = ", ".join(f"{count} {name}" for count, name in counts if count)
        if not force and not await _agreed(f"Remove {what}?"):
            return
        for pod in pods:
            await (await find_pod(client, pod.id)).remove()
        for one in containers:
            await client.runtime.remove_container(pb.RemoveContainerRequest(container_id=one.id))
        for image in unused:
            await client.images.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=image.id)))
    print(f"removed {what}")


async def _ended(client: CriClient) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
    """Pods that have ended, and ended containers of other pods: of those that this command made."""
    pods = (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items
    ours = [one for one in pods if session.RUN_LABEL in one.labels]
    ended = [one for one in ours if one.state != pb.SANDBOX_READY]
    ready = {one.id for one in ours if one.state == pb.SANDBOX_READY}
    request = pb.ListContainersRequest()
    request.filter.state.state = pb.CONTAINER_EXITED
    containers = (await client.runtime.list_containers(request)).containers
    return ended, [one for one in containers if one.pod_sandbox_id in ready]


async def _unused(client: CriClient, going: set[str], pods: list[pb.PodSandbox]) -> list[pb.Image]:
    """Images that no container will use once those are gone."""
    leaving = {pod.id for pod in pods}
    containers = (await client.runtime.list_containers(pb.ListContainersRequest())).containers
    used = {
        one.image_ref or one.image.image
        for one in containers
        if one.id not in going and one.pod_sandbox_id not in leaving
    }
    images = (await client.images.list_images(pb.ListImagesRequest())).images
    return [one for one in images if one.id not in used and not one.pinned]


async def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CliError(f"{question} Nobody can be asked: add --force", exit_code=2)
    return await asyncio.to_thread(typer.confirm, question)
