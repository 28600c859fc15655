"""Named volumes for the daemon's own clients: made, removed, and shown where a mount can name them
(:mod:`orlop.volumes.places`).
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orlop.client import session
from orlop.client.calls import VolumeClient
from orlop.client.launch import NamedMount
from orlop.cri.api import runtime_v1_pb2 as cri
from orlop.csi.api import csi_v1_pb2 as pb
from orlop.errors import NotFound
from orlop.host import threads
from orlop.volumes.places import VolumePlace, place_at, place_of

_MODE = pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER)
FILE_SYSTEM = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(), access_mode=_MODE)
_MOUNTED_BY = "mountedBy"
TIMEOUT = 3600.0
"""Seconds that a copy of a large volume may take."""


@contextlib.asynccontextmanager
async def connect(socket: str = "") -> AsyncIterator[VolumeClient]:
    """The volumes of the running daemon. Raises Unavailable when there is none, PermissionDenied."""
    async with session.connect(socket, VolumeClient) as client:
        yield client


def of_vm(volume: pb.Volume) -> bool:
    """Whether VMs get the disk of a volume."""
    return volume.volume_context.get(_MOUNTED_BY) == "guest"


def kind_of(volume: pb.Volume) -> str:
    """What a volume is, for people."""
    return {"guest": "vm", "host": "shared"}.get(volume.volume_context.get(_MOUNTED_BY, ""), "block")


async def find(client: VolumeClient, name: str) -> pb.Volume:
    """One volume. Raises NotFound with the remedy."""
    try:
        answer = await client.controller.controller_get_volume(pb.ControllerGetVolumeRequest(volume_id=name))
    except NotFound as error:
        raise NotFound(
            f"no volume {name}: `orlop volume ls` lists them, `orlop volume create` makes one"
        ) from error
    found: pb.Volume = answer.volume
    return found


async def create(
    client: VolumeClient,
    name: str,
    size: int,
    *,
    vm: bool | None = None,
    origin: pb.VolumeContentSource | None = None,
) -> None:
    """Make a volume, empty or a copy of the same kind. Raises what the daemon raises."""
    request = pb.CreateVolumeRequest(
        name=name,
        volume_capabilities=[FILE_SYSTEM],
        parameters={} if vm is None else {_MOUNTED_BY: "guest" if vm else "host"},
        volume_content_source=origin,
    )
    request.capacity_range.required_bytes = size
    await client.controller.create_volume(request, timeout=TIMEOUT)


async def restore(client: VolumeClient, snapshot: str, name: str) -> None:
    """Make a volume of a snapshot, of either kind. Raises NotFound."""
    found = await client.controller.list_snapshots(pb.ListSnapshotsRequest(snapshot_id=snapshot))
    if not found.entries:
        raise NotFound(f"no snapshot {snapshot}: `orlop volume ls --snapshots` lists them")
    origin = pb.VolumeContentSource()
    origin.snapshot.snapshot_id = snapshot
    await create(client, name, found.entries[0].snapshot.size_bytes, origin=origin)


async def grow(client: VolumeClient, name: str, size: int) -> None:
    """Make a volume larger, at once where it is mounted."""
    volume = await find(client, name)
    request = pb.ControllerExpandVolumeRequest(volume_id=name)
    request.capacity_range.required_bytes = size
    await client.controller.controller_expand_volume(request)
    if not of_vm(volume):
        where = place_of(client.path, name).mount
        with contextlib.suppress(NotFound):  # it is larger when it is mounted
            await client.node.node_expand_volume(
                pb.NodeExpandVolumeRequest(volume_id=name, volume_path=where)
            )


async def remove(client: VolumeClient, name: str) -> None:
    """Remove a volume, once nobody is about to use it.

    Raises NotFound, FailedPrecondition while a pod uses it.
    """
    await find(client, name)
    place = place_of(client.path, name)
    async with place.turn(alone=True):
        await client.node.node_unpublish_volume(
            pb.NodeUnpublishVolumeRequest(volume_id=name, target_path=place.mount)
        )
        await client.node.node_unstage_volume(
            pb.NodeUnstageVolumeRequest(volume_id=name, staging_target_path=place.staged)
        )
        await client.controller.delete_volume(pb.DeleteVolumeRequest(volume_id=name))
        await threads.call(place.clear)


@contextlib.asynccontextmanager
async def provided(path: Path, wanted: Sequence[NamedMount]) -> AsyncIterator[list[cri.Mount]]:
    """Mounts of the host for those of named volumes, which are mounted for that. ``path`` is the socket.

    Within ``async with`` no client removes the volumes: a container is to have them before its end.
    Raises NotFound.
    """
    async with contextlib.AsyncExitStack() as held:
        client = await held.enter_async_context(VolumeClient(path))
        where = {}
        for name in sorted({one.volume for one in wanted}):
            await find(client, name)
            place = place_of(path, name)
            await held.enter_async_context(place.turn(alone=False))
            await find(client, name)  # whoever was waited for may have removed it
            await _show(client, place)
            where[name] = place.mount
        yield [
            cri.Mount(
                host_path=where[one.volume],
                container_path=one.container_path,
                readonly=one.read_only,
                mount_options=one.options,
            )
            for one in wanted
        ]


def named(path: Path, mounts: Sequence[cri.Mount]) -> list[NamedMount]:
    """Those of a container's mounts that :func:`provided` made. ``path`` is the socket."""
    return [
        NamedMount(place.name, one.container_path, one.readonly, tuple(one.mount_options))
        for one in mounts
        if (place := place_at(path, one.host_path)) is not None
    ]


async def _show(client: VolumeClient, place: VolumePlace) -> None:
    await threads.call(place.make)
    await client.node.node_stage_volume(
        pb.NodeStageVolumeRequest(
            volume_id=place.name, staging_target_path=place.staged, volume_capability=FILE_SYSTEM
        )
    )
    await client.node.node_publish_volume(
        pb.NodePublishVolumeRequest(
            volume_id=place.name,
            staging_target_path=place.staged,
            target_path=place.mount,
            volume_capability=FILE_SYSTEM,
        )
    )
