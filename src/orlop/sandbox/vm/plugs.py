"""What is plugged into a VM for its containers: disks of images, to write to, of the host; and the share.

An image disk, or a block device, is attached once and serves all containers of the pod that have it. What a
container needs is plugged all at once, and :meth:`Plugs.unplug` takes it away after the guest
let go of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from orlop.errors import NotFound
from orlop.host import mounts, threads
from orlop.host.tasks import Undo, together
from orlop.hypervisor.base import Disk, Machine, Stacking
from orlop.sandbox.spec import ContainerSpec, Device, IdMapping, Mount
from orlop.sandbox.vm import blockdevices, listeners, sockets
from orlop.sandbox.vm.blockdevices import HostDevice, Sizes
from orlop.sandbox.vm.checks import check_shared
from orlop.sandbox.vm.files import ContainerFile, HostDirectory
from orlop.sandbox.vm.idmaps import user_namespace
from orlop.sandbox.vm.sockets import FoundSocket
from orlop.sandbox.vm.translate import Plugged
from orlop.sandbox.vm.volumes import Volumes, has_sockets
from orlop.sandbox.vm.warm import ReadyLayer
from orlop.storage import rootfs
from orlop.storage.disks import check_layers, scratch_disk
from orlop.storage.share import Share
from orlop.wire import values as wire

NO_DEVICES: Mapping[str, Device] = MappingProxyType({})


@dataclass
class _Shared:
    """A disk and the containers that use it."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    disk: wire.PluggedDisk | None = None
    users: set[str] = field(default_factory=set)


class Plugs:
    """The plugs of one VM. Writable layers go to ``scratch_directory``; the first may be ``ready`` there."""

    def __init__(
        self,
        machine: Machine,
        share: Path,
        *,
        scratch_directory: Path,
        scratch_mib: int,
        volumes: Volumes,
        only_mapped: bool = False,
        ready: ReadyLayer | None = None,
    ) -> None:
        self._machine = machine
        jail = machine.confinement
        self._owner = jail.owner if jail else 0
        inside = jail.share if jail else None
        self._share = Share(share, process=machine.pid, inside=inside, only_mapped=only_mapped)
        self._scratch_directory = scratch_directory
        self._scratch_mib = scratch_mib
        self._volumes = volumes
        scratch_directory.mkdir(parents=True, exist_ok=True)
        self._images: dict[str, _Shared] = {}
        self._sizes = Sizes(machine)
        self._ready = ready

    @property
    def layers(self) -> Path:
        """The directory with the files of the writable layers."""
        return self._scratch_directory

    @property
    def place(self) -> str:
        """The directory that the writable layers of all VMs are below."""
        return os.fspath(self._scratch_directory.parent)

    @property
    def unmapped_volumes(self) -> list[str]:
        """Paths of the host whose files belong to nobody in the VM, as their file system maps no users."""
        return self._share.unmapped

    def plan(self, spec: ContainerSpec) -> ContainerFile:
        """What :meth:`plug` is going to do, to be on disk before it does it."""
        root, scratch = spec.root, self._layer(spec)
        disks = wire.Disks(
            root=tuple(wire.PluggedDisk(id=image_disk_id(layers)) for layers in self._divided(root.layers)),
            scratch=scratch.disk if scratch else None,
            volumes=tuple(wire.PluggedDisk(id=image_disk_id(layers)) for layers in _volumes(spec)),
            devices=tuple(wire.PluggedDisk(id=disk_id) for disk_id in blockdevices.asked_of(spec)),
        )
        return ContainerFile(
            id=spec.id,
            disks=disks,
            shares=(
                *(_share_key(spec.id, index) for index in range(len(spec.mounts))),
                *((_root_key(spec.id),) if root.directory else ()),
            ),
            scratch=str(scratch.path) if scratch else "",
        )

    async def plug(self, spec: ContainerSpec, plan: ContainerFile) -> Plugged:
        """Attach all that the container needs. A failure leaves plugs behind for :meth:`unplug`."""
        stacks = {image_disk_id(layers): layers for layers in (spec.root.layers, *_volumes(spec))}
        stacks |= {image_disk_id((layer,)): (layer,) for layer in spec.root.layers}
        wanted = dict.fromkeys(disk.id for disk in (*plan.disks.root, *plan.disks.volumes))
        (images, devices), scratch, ((held, shares, loose, found), root) = await together(
            together(
                together(*(self._image(spec.id, disk_id, stacks[disk_id]) for disk_id in wanted)),
                together(*(self._device(spec, *one) for one in blockdevices.asked_of(spec).items())),
            ),
            self._scratch(plan),
            together(self._mounts(spec), self._root(spec)),
        )
        attached = dict(zip(wanted, images, strict=True))
        return Plugged(
            disks=wire.Disks(
                root=tuple(attached[disk.id] for disk in plan.disks.root),
                scratch=scratch,
                volumes=tuple(attached[disk.id] for disk in plan.disks.volumes),
                devices=tuple(disk for disk, _ in devices),
            ),
            directories=await self._followed(spec, shares),
            shares=shares,
            root=root,
            root_is_own=bool(root) and self._share.is_own(root),
            loose=loose,
            sockets=found,
            held=held,
            devices={disk.id: found for disk, found in devices},
            volumes={
                mount.container_path: image_disk_id(mount.image.layers)
                for mount in spec.mounts
                if mount.image is not None
            },
        )

    def adopt(
        self, held: ContainerFile, mounts: Sequence[Mount] = (), devices: Mapping[str, Device] = NO_DEVICES
    ) -> None:
        """An earlier daemon attached this, or was about to, for a container with these."""
        for index, mount in enumerate(mounts):
            if not mount.uid_mappings and not mount.gid_mappings:
                self._share.adopt(mount, _share_key(held.id, index))
        for directory in held.directories if mounts else ():
            self._volumes.shown.adopt(held.id, directory.key, directory.path)
        for disk in (*held.disks.root, *held.disks.volumes, *held.disks.devices):
            shared = self._images.setdefault(disk.id, _Shared())
            shared.users.add(held.id)
            if shared.disk is None or not shared.disk.at:
                shared.disk = disk
            if disk.at and disk.id in devices:
                self._sizes.follow(disk.id, devices[disk.id].host_path)

    async def unplug(self, held: ContainerFile, *, running: bool) -> None:
        """Take away what was plugged, or planned, for a container. Idempotent. Raises NotUndone.

        ``running`` says whether there still is a VM to unplug from.
        """
        scratch = () if held.disks.scratch is None else (held.disks.scratch,)
        named = (*held.disks.root, *held.disks.volumes, *held.disks.devices, *scratch)
        disks = {disk.id for disk in named}
        undo = Undo(f"container {held.id}")
        await together(
            *(
                undo.step(f"disk {disk_id}", self._unplug_disk(held.id, disk_id, running=running))
                for disk_id in disks
            )
        )
        for key in held.shares:
            await undo.step(f"volume {key}", self._share.remove(key))
        await undo.step("its small volumes", self._volumes.copies.release(held.id))
        if held.scratch:
            await undo.step("its writable layer", threads.call(Path(held.scratch).unlink, missing_ok=True))
        undo.finish()

    async def close(self) -> None:
        """Let go of what is plugged, which stays."""
        await self._sizes.close()
        await self._share.close()

    async def release(self) -> None:
        """Take all volumes off the share, and from the host what containers had there."""
        await self._sizes.close()
        await self._volumes.listeners.release()
        await self._share.release_all()

    def _divided(self, layers: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
        """The disks of a root: one for each layer, or one for all, as the machine likes it best.

        An overlay takes no directory twice, so an image with one layer twice is one disk.
        """
        if not layers:
            return ()
        single = tuple((layer,) for layer in layers)
        new = [layer for layer in single if not self._in_use(image_disk_id(layer))]
        if len(set(layers)) < len(layers) or self._machine.stacking(len(new)) is Stacking.TOGETHER:
            return (layers,)
        return single

    def _in_use(self, disk_id: str) -> bool:
        shared = self._images.get(disk_id)
        return shared is not None and bool(shared.users)

    async def _image(self, container_id: str, disk_id: str, layers: tuple[str, ...]) -> wire.PluggedDisk:
        return await self._shared_disk(container_id, Disk(id=disk_id, files=layers))

    async def _device(
        self, spec: ContainerSpec, disk_id: str, asked: Device
    ) -> tuple[wire.PluggedDisk, HostDevice]:
        """A block device of the host as a disk."""
        found = await threads.call(blockdevices.find, f"container {spec.name}", asked)
        disk = Disk(id=disk_id, files=(found.path,), read_only=found.read_only, durable=True, device=True)
        plugged = await self._shared_disk(spec.id, disk)
        if not found.read_only:
            self._sizes.follow(disk_id, found.path)
        return plugged, found

    async def _shared_disk(self, container_id: str, wanted: Disk) -> wire.PluggedDisk:
        shared = self._images.setdefault(wanted.id, _Shared())
        shared.users.add(container_id)
        async with shared.lock:
            disk = shared.disk
            if disk is None or not disk.at:
                if not wanted.device:
                    await check_layers(wanted.files)
                if disk is not None:
                    # An earlier daemon ended before it wrote down whether it had attached it.
                    await self._detach(wanted.id)
                at = await self._machine.attach_disk(wanted)
                disk = shared.disk = wire.PluggedDisk(id=wanted.id, at=at)
            return disk

    def _layer(self, spec: ContainerSpec) -> ReadyLayer | None:
        """What the container writes to, which has no address yet if it is to be made; the one that is ready
        is nobody else's then."""
        if not _writes_to_disk(spec):
            return None
        if self._ready is not None:
            ready, self._ready = self._ready, None
            return ready
        disk = wire.PluggedDisk(id=_scratch_id(spec.id))
        return ReadyLayer(disk, self._scratch_directory / f"{spec.id}.img")

    async def _scratch(self, plan: ContainerFile) -> wire.PluggedDisk | None:
        disk = plan.disks.scratch
        if disk is None or disk.at:
            return disk
        await scratch_disk(Path(plan.scratch), self._scratch_mib)
        at = await self._machine.attach_disk(Disk(id=disk.id, files=(plan.scratch,), read_only=False))
        return wire.PluggedDisk(id=disk.id, at=at)

    async def _mounts(
        self, spec: ContainerSpec
    ) -> tuple[dict[str, tuple[str, str]], dict[str, str], frozenset[str], tuple[FoundSocket, ...]]:
        """Volumes that the guest holds, those that are shared instead, those of them that are loose, and the
        host's sockets among them."""
        held = await self._volumes.place(spec)
        shared = tuple(mount for mount in spec.mounts if mount.host_path and mount.container_path not in held)
        found: tuple[FoundSocket, ...] = ()
        own = tuple(mount for mount in spec.mounts if has_sockets(held, mount))
        if shared and self._volumes.shows_sockets:
            found = await threads.call(sockets.find, shared)
        elif (shared or own) and self._volumes.relays_sockets:
            found = await self._found_once(spec, shared, own)
        whole = {one.target for one in found}
        shared = tuple(mount for mount in shared if mount.container_path not in whole)
        check_shared(spec, shared)
        return held, *await together(self._shares(spec, shared), _with_mounts_below(shared)), found

    async def _found_once(
        self, spec: ContainerSpec, shared: tuple[Mount, ...], own: tuple[Mount, ...]
    ) -> tuple[FoundSocket, ...]:
        """The host's sockets, for an agent that came with an earlier daemon."""
        targets = {mount.container_path for mount in spec.mounts}
        found = await threads.call(sockets.find_once, (*shared, *own), targets)
        if not own:
            return found
        directories = {os.path.realpath(mount.host_path) for mount in own}
        return await threads.call(listeners.of_others, found, directories, self._volumes.listeners.paths())

    async def _followed(self, spec: ContainerSpec, shares: Mapping[str, str]) -> tuple[HostDirectory, ...]:
        """The directories that are shared, whose sockets the container has from now on."""
        if not shares or not self._volumes.shows_sockets:
            return ()
        shown = [mount for mount in spec.mounts if mount.container_path in shares]
        paths = await threads.call(_directories, [mount.host_path for mount in shown])
        found = tuple(
            HostDirectory(key=shares[mount.container_path], path=path)
            for mount, path in zip(shown, paths, strict=True)
            if path
        )
        await together(*(self._volumes.shown.follow(spec.id, one.key, one.path) for one in found))
        return found

    async def _shares(self, spec: ContainerSpec, shared: tuple[Mount, ...]) -> dict[str, str]:
        shares = {}
        async with AsyncExitStack() as stack:
            namespaces: dict[tuple[tuple[IdMapping, ...], ...], Path] = {}
            for index, mount in enumerate(spec.mounts):
                if mount not in shared:
                    continue
                maps = (mount.uid_mappings, mount.gid_mappings)
                if any(maps) and maps not in namespaces:
                    namespaces[maps] = await stack.enter_async_context(
                        user_namespace(*maps, owner=self._owner)
                    )
                key = _share_key(spec.id, index)
                shares[mount.container_path] = await self._share.add(mount, key, userns=namespaces.get(maps))
        return shares

    async def _root(self, spec: ContainerSpec) -> str:
        """A root directory of the host on the share, "" when the root is made of layers."""
        if not spec.root.directory:
            return ""
        found = await rootfs.find_directory(spec.root.directory)
        # Read-only on the host: a guest that breaks out of the container does not get around it.
        fixed = spec.security.read_only_root
        mount = Mount(
            container_path="/", host_path=os.fspath(found), read_only=fixed, recursive_read_only=fixed
        )
        return await self._share.add(mount, _root_key(spec.id), overlay_owner=self._owner)

    async def _unplug_disk(self, container_id: str, disk_id: str, *, running: bool) -> None:
        shared = self._images.get(disk_id)
        if shared is None:
            if running:
                await self._detach(disk_id)
            return
        async with shared.lock:
            shared.users.discard(container_id)
            if not shared.users and shared.disk is not None:
                self._sizes.forget(disk_id)
                if running:
                    await self._detach(disk_id)
                shared.disk = None

    async def _detach(self, disk_id: str) -> None:
        with suppress(NotFound):
            await self._machine.detach_disk(disk_id)


async def _with_mounts_below(volumes: tuple[Mount, ...]) -> frozenset[str]:
    """Read-only volumes with writable mounts below them: only the host can tell the two apart."""
    wanted = [volume for volume in volumes if volume.read_only and not volume.recursive_read_only]

    def look() -> frozenset[str]:
        found = set()
        for volume in wanted:
            place = os.path.realpath(volume.host_path)
            if any(os.fspath(point) != place for point in mounts.mounts_below(place)):
                found.add(volume.container_path)
        return frozenset(found)

    return await threads.call(look) if wanted else frozenset()


def _directories(paths: Sequence[str]) -> list[str]:
    """Their real paths, "" for what is no directory. Blocks."""
    return [place if Path(place).is_dir() else "" for place in map(os.path.realpath, paths)]


def _volumes(spec: ContainerSpec) -> tuple[tuple[str, ...], ...]:
    """The layers of each image that is mounted as a volume."""
    return tuple(mount.image.layers for mount in spec.mounts if mount.image is not None)


def image_disk_id(layers: tuple[str, ...]) -> str:
    """The disk's name for a stack of layers."""
    digest = hashlib.sha256("\0".join(layers).encode()).hexdigest()
    return f"img-{digest[:20]}"


def _writes_to_disk(spec: ContainerSpec) -> bool:
    """Whether it needs a disk: for what it writes, or for mount points in a root that it may not write."""
    return not spec.root.directory or spec.security.read_only_root


def _root_key(container_id: str) -> str:
    return f"{container_id[:24]}-root"


def _scratch_id(container_id: str) -> str:
    return f"rw-{container_id[:24]}"


def _share_key(container_id: str, index: int) -> str:
    return f"{container_id[:24]}-{index}"
