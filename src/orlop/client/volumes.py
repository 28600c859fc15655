"""Named volumes for the daemon's own clients: made, removed, and shown where a mount can name them.

A volume that a client uses stays mounted below the directory of the daemon's socket until it is removed, or
the machine is restarted: who uses it is known to the kernel, so nobody has to say when he is done.

The kernel knows it from when a container has it. Until then the client holds a lock of flock(2), which
whoever removes the volume waits for: a mount whose path has gone would be an empty directory to the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from orlop.client import session
from orlop.client.calls import VolumeClient
from orlop.client.launch import NamedMount
from orlop.cri.api import runtime_v1_pb2 as cri
from orlop.csi.api import csi_v1_pb2 as pb
from orlop.errors import NotFound

_MODE = pb.VolumeCapability.AccessMode(mode=pb.VolumeCapability.AccessMode.SINGLE_NODE_MULTI_WRITER)
FILE_SYSTEM = pb.VolumeCapability(mount=pb.VolumeCapability.MountVolume(), access_mode=_MODE)
_MOUNTED_BY = "mountedBy"
_TURN_STEP = 0.02
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
        where = os.fspath(_place(client.path, name) / "mount")
        with contextlib.suppress(NotFound):  # it is larger when it is mounted
            await client.node.node_expand_volume(
                pb.NodeExpandVolumeRequest(volume_id=name, volume_path=where)
            )


async def remove(client: VolumeClient, name: str) -> None:
    """Remove a volume, once nobody is about to use it.

    Raises NotFound, FailedPrecondition while a pod uses it.
    """
    await find(client, name)
    place = _place(client.path, name)
    mount, staged = os.fspath(place / "mount"), os.fspath(place / "staged")
    async with _turn(place, alone=True):
        await client.node.node_unpublish_volume(
            pb.NodeUnpublishVolumeRequest(volume_id=name, target_path=mount)
        )
        await client.node.node_unstage_volume(
            pb.NodeUnstageVolumeRequest(volume_id=name, staging_target_path=staged)
        )
        await client.controller.delete_volume(pb.DeleteVolumeRequest(volume_id=name))
        await asyncio.to_thread(_clear, place)


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
            await held.enter_async_context(_turn(_place(path, name), alone=False))
            await find(client, name)  # whoever was waited for may have removed it
            where[name] = await _shown(client, name)
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
    found = []
    for one in mounts:
        place = Path(one.host_path).parent
        if one.host_path and one.host_path == os.fspath(_place(path, place.name) / "mount"):
            found.append(NamedMount(place.name, one.container_path, one.readonly, tuple(one.mount_options)))
    return found


async def _shown(client: VolumeClient, name: str) -> str:
    place = _place(client.path, name)
    await asyncio.to_thread(_make, place)
    staged, mount = os.fspath(place / "staged"), os.fspath(place / "mount")
    await client.node.node_stage_volume(
        pb.NodeStageVolumeRequest(volume_id=name, staging_target_path=staged, volume_capability=FILE_SYSTEM)
    )
    await client.node.node_publish_volume(
        pb.NodePublishVolumeRequest(
            volume_id=name, staging_target_path=staged, target_path=mount, volume_capability=FILE_SYSTEM
        )
    )
    return mount


@contextlib.asynccontextmanager
async def _turn(place: Path, *, alone: bool) -> AsyncIterator[None]:
    """Wait until nobody removes the volume of a place, and with ``alone`` until nobody is about to use it."""
    kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
    file = await asyncio.to_thread(_open_lock, place)
    try:
        while not _locked(file, kind):  # noqa: ASYNC110 - the kernel tells nobody, and a thread cannot be stopped
            await asyncio.sleep(_TURN_STEP)
        yield
    finally:
        os.close(file)


def _open_lock(place: Path) -> int:
    place.parent.mkdir(mode=0o700, exist_ok=True)
    # It stays: one that waits for a file that was removed would not hear of those who lock the next.
    return os.open(place.with_name(f".{place.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(file: int, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _place(path: Path, name: str) -> Path:
    return path.parent / "volumes" / name


def _make(place: Path) -> None:
    place.mkdir(mode=0o700, exist_ok=True)


def _clear(place: Path) -> None:
    for path in (place / "staged", place):
        with contextlib.suppress(OSError):
            path.rmdir()
