"""What is plugged into a VM for its containers: image disks, scratch disks, volumes on the share.

An image disk is plugged once and serves all containers of the pod with that image. What a
container needs is plugged all at once, and :meth:`Plugs.unplug` takes it away after the guest
let go of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

from orlop.errors import NotFound
from orlop.host import mounts
from orlop.host.tasks import together
from orlop.hypervisor.base import Disk, DiskFormat, Machine
from orlop.sandbox.spec import ContainerSpec, IdMapping, Mount
from orlop.sandbox.vm.files import ContainerFile, DiskUse
from orlop.sandbox.vm.idmaps import user_namespace
from orlop.sandbox.vm.translate import Plugged
from orlop.storage import disks
from orlop.storage.share import Share
from orlop.wire import values as wire


@dataclass
class _Shared:
    """An image disk and the containers that use it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    use: DiskUse | None = None
    users: set[str] = field(default_factory=set)


class Plugs:
    """The plugs of one VM. Descriptors go to ``disk_directory``, writable layers to ``scratch_directory``."""

    def __init__(
        self,
        machine: Machine,
        share: Path,
        *,
        disk_directory: Path,
        scratch_directory: Path,
        scratch_mib: int,
    ) -> None:
        self._machine = machine
        self._share = Share(share, process=machine.pid)
        self._disk_directory = disk_directory
        self._scratch_directory = scratch_directory
        self._scratch_mib = scratch_mib
        scratch_directory.mkdir(parents=True, exist_ok=True)
        self._images: dict[str, _Shared] = {}

    @property
    def scratch(self) -> str:
        """The directory of the writable layers."""
        return os.fspath(self._scratch_directory)

    def plan(self, spec: ContainerSpec) -> ContainerFile:
        """What :meth:`plug` is going to do, to be on disk before it does it."""
        images = tuple(
            DiskUse(id=image_disk_id(layers), lun=-1, path="", layers=len(layers))
            for layers in dict.fromkeys((*self._divided(spec.layers), *_volumes(spec)))
        )
        path = self._scratch_directory / f"{spec.id}.img"
        scratch = DiskUse(id=_scratch_id(spec.id), lun=-1, path=str(path))
        return ContainerFile(
            id=spec.id,
            disks=(*images, scratch),
            shares=tuple(_share_key(spec.id, index) for index in range(len(spec.mounts))),
            scratch=scratch.path,
        )

    async def plug(self, spec: ContainerSpec, plan: ContainerFile) -> Plugged:
        """Plug all that the container needs. A failure leaves plugs behind for :meth:`unplug`."""
        whole = plan.disks[0].id == image_disk_id(spec.layers)
        root = (spec.layers,) if whole else tuple((layer,) for layer in spec.layers)
        stacks = dict.fromkeys((*root, *_volumes(spec)))
        images, scratch, (shares, loose) = await together(
            together(*(self._image(spec.id, layers) for layers in stacks)),
            self._scratch(plan.disks[-1]),
            together(self._shares(spec), _with_mounts_below(spec.mounts)),
        )
        by_stack = dict(zip(stacks, images, strict=True))
        return Plugged(
            root=tuple(by_stack[layers] for layers in root),
            scratch=scratch,
            shares=shares,
            loose=loose,
            images={
                mount.container_path: by_stack[mount.image.layers]
                for mount in spec.mounts
                if mount.image is not None
            },
        )

    def adopt(self, held: ContainerFile) -> None:
        """An earlier daemon plugged this."""
        for disk in held.disks:
            if disk.layers:
                shared = self._images.setdefault(disk.id, _Shared())
                shared.use = disk
                shared.users.add(held.id)

    def described(self, plan: ContainerFile, plugged: Plugged) -> tuple[DiskUse, ...]:
        """The plan's disks with the places they were plugged at."""
        found = []
        for disk in plan.disks:
            shared = self._images.get(disk.id)
            if shared is not None and shared.use is not None:
                found.append(shared.use)
            elif plugged.scratch is not None and disk.path == plan.scratch:
                scratch = plugged.scratch
                found.append(DiskUse(id=disk.id, lun=scratch.lun, path=disk.path, lasting=scratch.lasting))
        return tuple(found)

    async def unplug(self, held: ContainerFile, *, running: bool) -> None:
        """Take away what was plugged, or planned, for a container. Idempotent.

        ``running`` says whether there still is a VM to unplug from.
        """
        await together(*(self._unplug_disk(held.id, disk, running=running) for disk in held.disks))
        for key in held.shares:
            await self._share.remove(key)
        if held.scratch:
            await asyncio.to_thread(Path(held.scratch).unlink, missing_ok=True)

    async def release(self) -> None:
        """Take all volumes off the share."""
        await self._share.release_all()

    def _divided(self, layers: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The disks of a root: one for each layer, if the guest need not look for any of them; else one.

        The kernel takes long to look for partitions, and an overlay takes no directory twice.
        """
        single = tuple((layer,) for layer in layers)
        new = [layer for layer in single if not self._in_use(image_disk_id(layer))]
        if not layers or len(set(layers)) < len(layers) or len(new) > self._machine.lasting:
            return (layers,)
        return single

    def _in_use(self, disk_id: str) -> bool:
        shared = self._images.get(disk_id)
        return shared is not None and bool(shared.users)

    async def _image(self, container_id: str, layers: tuple[str, ...]) -> wire.Disk:
        disk_id = image_disk_id(layers)
        shared = self._images.setdefault(disk_id, _Shared())
        shared.users.add(container_id)
        async with shared.lock:
            if shared.use is None:
                path, partitions = await disks.image_disk(layers, self._disk_directory, disk_id)
                kind = DiskFormat.VMDK if partitions else DiskFormat.RAW
                slot = await self._machine.attach_disk(Disk(id=disk_id, path=str(path), format=kind))
                shared.use = DiskUse(
                    id=disk_id,
                    lun=slot.lun,
                    path=str(path),
                    layers=len(layers),
                    partitions=partitions,
                    lasting=slot.lasting,
                )
            use = shared.use
            return wire.Disk(lun=use.lun, partitions=use.partitions, lasting=use.lasting)

    async def _scratch(self, disk: DiskUse) -> wire.Disk:
        await disks.scratch_disk(Path(disk.path), self._scratch_mib)
        slot = await self._machine.attach_disk(
            Disk(id=disk.id, path=disk.path, format=DiskFormat.RAW, read_only=False)
        )
        return wire.Disk(lun=slot.lun, lasting=slot.lasting)

    async def _shares(self, spec: ContainerSpec) -> dict[str, str]:
        shares = {}
        async with AsyncExitStack() as stack:
            namespaces: dict[tuple[tuple[IdMapping, ...], ...], Path] = {}
            for index, mount in enumerate(spec.mounts):
                if mount.image is not None:
                    continue
                maps = (mount.uid_mappings, mount.gid_mappings)
                if any(maps) and maps not in namespaces:
                    namespaces[maps] = await stack.enter_async_context(user_namespace(*maps))
                key = _share_key(spec.id, index)
                shares[mount.container_path] = await self._share.add(mount, key, userns=namespaces.get(maps))
        return shares

    async def _unplug_disk(self, container_id: str, disk: DiskUse, *, running: bool) -> None:
        shared = self._images.get(disk.id)
        if shared is None:
            if running:
                await self._detach(disk.id)
            return
        async with shared.lock:
            shared.users.discard(container_id)
            if not shared.users and shared.use is not None:
                shared.use = None
                if running:
                    await self._detach(disk.id)

    async def _detach(self, disk_id: str) -> None:
        with suppress(NotFound):
            await self._machine.detach_disk(disk_id)


async def _with_mounts_below(volumes: tuple[Mount, ...]) -> frozenset[str]:
    """Read-only volumes with writable mounts below them: only the host can tell the two apart."""
    wanted = [
        volume
        for volume in volumes
        if volume.read_only and not volume.recursive_read_only and volume.host_path
    ]

    def look() -> frozenset[str]:
        found = set()
        for volume in wanted:
            place = os.path.realpath(volume.host_path)
            if any(os.fspath(point) != place for point in mounts.mounts_below(place)):
                found.add(volume.container_path)
        return frozenset(found)

    return await asyncio.to_thread(look) if wanted else frozenset()


def _volumes(spec: ContainerSpec) -> tuple[tuple[str, ...], ...]:
    """The layers of each image that is mounted as a volume."""
    return tuple(mount.image.layers for mount in spec.mounts if mount.image is not None)


def image_disk_id(layers: tuple[str, ...]) -> str:
    """The disk's name for a stack of layers."""
    digest = hashlib.sha256("\0".join(layers).encode()).hexdigest()
    return f"img-{digest[:20]}"


def _scratch_id(container_id: str) -> str:
    return f"rw-{container_id[:24]}"


def _share_key(container_id: str, index: int) -> str:
    return f"{container_id[:24]}-{index}"
