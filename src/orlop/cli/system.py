"""``orlop system info``, ``df`` and ``prune``."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Iterable

import typer

from orlop.cli import formats, output
from orlop.cli.formats import Bytes, Printer, Shape
from orlop.cli.problems import CliError
from orlop.cli.version import server
from orlop.client import session
from orlop.client.launch import log_directory
from orlop.client.pod import remove_pod
from orlop.cri.api import runtime_v1_pb2 as pb

DF = Shape(
    headings={
        "Type": "WHAT",
        "Total": "NUMBER",
        "Active": "IN USE",
        "Size": "SIZE",
        "Reclaimable": "UNUSED",
    },
    columns=("Type", "Total", "Active", "Size", "Reclaimable"),
)


async def info_command(socket: str, text: str, as_json: bool) -> None:
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
    handlers = sorted(one.name for one in status.runtime_handlers if one.name)
    if text:
        told = {
            "Server": server(version),
            "Socket": session.socket_path(socket),
            "Conditions": {one.type: one.status for one in status.status.conditions},
            "Handlers": handlers,
            "Pods": {"Total": len(pods), "Ready": sum(ready.values())},
            "Containers": {"Total": len(containers), "Running": running},
            "Images": len(images),
        }
        formats.show_document(text, told)
        return
    lines = [
        ("Daemon", f"{version.runtime_name} {version.runtime_version}, CRI {version.runtime_api_version}"),
        ("Socket", session.socket_path(socket)),
        *((one.type, _condition(one)) for one in status.status.conditions),
        ("Handlers", ", ".join(handlers)),
        ("Pods", f"{len(pods)}" + "".join(f", {count} with handler {name}" for name, count in ready.items())),
        ("Containers", f"{len(containers)}, {running} running"),
        ("Images", str(len(images))),
    ]
    output.table(("WHAT", "NOW"), lines)


def _condition(one: pb.RuntimeCondition) -> str:
    return "yes" if one.status else f"no: {one.message or one.reason}"


async def df_command(socket: str, printer: Printer) -> None:
    """``orlop system df``."""
    async with session.connect(socket) as client:
        images = (await client.images.list_images(pb.ListImagesRequest())).images
        on_disk = await client.images.image_fs_info(pb.ImageFsInfoRequest())
        containers = (await client.runtime.list_containers(pb.ListContainersRequest())).containers
        stats = (await client.runtime.list_container_stats(pb.ListContainerStatsRequest())).stats
    idle = _unused(images, containers)
    running = sum(one.state == pb.CONTAINER_RUNNING for one in containers)
    taken = sum(one.used_bytes.value for one in on_disk.image_filesystems)
    # An image's size counts the layers that it shares with others, so these may be less than what goes.
    unused = min(taken, sum(one.size for one in idle))
    written = sum(one.writable_layer.used_bytes.value for one in stats)
    printer.show(
        [
            {
                "Type": "images",
                "Total": len(images),
                "Active": len(images) - len(idle),
                "Size": Bytes(taken),
                "Reclaimable": Bytes(unused),
            },
            {
                "Type": "containers",
                "Total": len(containers),
                "Active": running,
                "Size": Bytes(written),
                "Reclaimable": None,
            },
        ]
    )


async def prune_command(socket: str, *, images: bool, force: bool) -> None:
    """``orlop system prune``: pods of ours that have ended, ended containers of those that run, images."""
    async with session.connect(socket) as client:
        made = (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items
        known = (await client.runtime.list_containers(pb.ListContainersRequest())).containers
        pods, containers = _ended(made, known)
        unused: list[pb.Image] = []
        if images:
            gone = {one.id for one in pods} | {one.id for one in containers}
            staying = [one for one in known if not {one.id, one.pod_sandbox_id} & gone]
            unused = _unused((await client.images.list_images(pb.ListImagesRequest())).images, staying)
        if not (pods or containers or unused):
            print("nothing has ended that could be removed")
            return
        counts = ((len(pods), "pods"), (len(containers), "containers"), (len(unused), "images"))
        what = ", ".join(f"{count} {name}" for count, name in counts if count)
        if not force and not await _agreed(f"Remove {what}?"):
            return
        for pod in pods:
            await remove_pod(client, pod.id, log_directory(pod.metadata.name, pod.metadata.uid))
        for one in containers:
            await client.runtime.remove_container(pb.RemoveContainerRequest(container_id=one.id))
        for image in unused:
            await client.images.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=image.id)))
    print(f"removed {what}")


def _ended(
    pods: Iterable[pb.PodSandbox], containers: Iterable[pb.Container]
) -> tuple[list[pb.PodSandbox], list[pb.Container]]:
    """Pods that have ended, and ended containers of other pods: of those that this command made."""
    ours = [one for one in pods if session.RUN_LABEL in one.labels]
    ready = {one.id for one in ours if one.state == pb.SANDBOX_READY}
    return (
        [one for one in ours if one.id not in ready],
        [one for one in containers if one.state == pb.CONTAINER_EXITED and one.pod_sandbox_id in ready],
    )


def _unused(images: Iterable[pb.Image], containers: Iterable[pb.Container]) -> list[pb.Image]:
    """Images that none of these containers uses, and that need not stay."""
    used = {one.image_ref or one.image.image for one in containers}
    return [one for one in images if one.id not in used and not one.pinned]


async def _agreed(question: str) -> bool:
    if not sys.stdin.isatty():
        raise CliError(f"{question} Nobody can be asked: add --force", exit_code=2)
    return await asyncio.to_thread(typer.confirm, question)
