"""The pod's volumes that live in the guest: an emptyDir on a disk or in memory, and copies of small ones.

What a kubelet has made for the pod is recognised by its path. The guest holds each such volume once, for
all containers of the pod: an emptyDir until the VM ends, a copy until its last container is gone. Copies
are kept in step with the host. What cannot be held so is left to the share.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from orlop.config import VolumeConfig
from orlop.errors import DataLoss, FailedPrecondition, NotFound, OrlopError, of_system
from orlop.host import threads
from orlop.host.tasks import roll_back, together
from orlop.host.watching import Watcher
from orlop.hypervisor.base import Disk, Machine
from orlop.sandbox.spec import ContainerSpec, Mount, Propagation
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.blockdevices import Sizes
from orlop.sandbox.vm.copies import COPIED, Copies
from orlop.sandbox.vm.files import HeldTable, HeldVolume, PodFiles
from orlop.sandbox.vm.idmaps import owned
from orlop.sandbox.vm.listeners import Listeners
from orlop.sandbox.vm.shown import ShownSockets
from orlop.storage import direct, kubelet
from orlop.storage.direct import DirectVolume
from orlop.storage.disks import volume_disk
from orlop.storage.kubelet import KubeletVolume
from orlop.storage.snapshot import DISK, directories_of
from orlop.volumes import shown
from orlop.volumes.records import VolumeUse
from orlop.wire import values as wire
from orlop.wire.hello import (
    FILE_SYSTEMS,
    LISTENERS,
    PROPAGATION,
    SHOWN_SOCKETS,
    SOCKETS,
    VOLUMES,
    XFS,
)
from orlop.wire.messages import Flush, Hold, Stats

log = logging.getLogger(__name__)

_TIMEOUT = 60.0
_MOUNT_TIME = 100.0
"""Seconds for a file system to be recovered and given to a group: less than a kubelet waits."""

_FLUSH_TIME = 5.0
_FOR_SOCKETS = 1 << 20
_MOST_MEMORY = 1 << 50


@dataclass(frozen=True)
class Showing:
    """A mount and the volume that it shows."""

    mount: Mount
    volume: KubeletVolume
    direct: DirectVolume | None = None


class Volumes:
    """The volumes of one pod, whose uid the kubelet gave it. ``names`` hears of changes once.

    ``workplace`` is a directory on disk, below ``named`` are the named volumes of this machine.
    """

    def __init__(
        self,
        machine: Machine,
        agent: AgentClient,
        files: PodFiles,
        watcher: Watcher,
        *,
        names: Watcher,
        uid: str,
        config: VolumeConfig,
        workplace: Path,
        named: Path,
    ) -> None:
        self._machine = machine
        self._agent = agent
        self._uid = uid
        self._config = config
        self._workplace = workplace
        self._named = named
        self._held = HeldTable(files)
        self.listeners = Listeners(agent, files, self._sockets_at)
        """The host's sockets for those that containers have bound."""
        self.shown = ShownSockets(agent, names, uid, self.listeners.claimed)
        """The host's sockets in directories that containers have."""
        self._lock = asyncio.Lock()
        self.copies = Copies(agent, self._held, watcher, self._lock, name=uid, limit=config.copy_kib << 10)
        """Those that are small."""
        self._sizes = Sizes(machine)

    @property
    def relays_sockets(self) -> bool:
        """Whether the guest tells of connections to sockets of the host."""
        return SOCKETS in self._agent.hello.features

    @property
    def shows_sockets(self) -> bool:
        """Whether the guest can have those that come and go in a directory."""
        return SHOWN_SOCKETS in self._agent.hello.features

    async def place(self, spec: ContainerSpec) -> dict[str, tuple[str, str]]:
        """Have the guest hold what it can of a container's volumes: by the container's path, the volume's id
        and the sub-path. A failure leaves volumes behind, which serve the next try."""
        if VOLUMES not in self._agent.hello.features:
            return {}  # an agent that came with an earlier daemon
        if not any(mount.host_path for mount in spec.mounts):
            return {}
        wanted = await threads.call(self._recognise, spec.mounts)
        if not wanted:
            return {}
        groups: dict[str, list[Showing]] = {}
        for one in wanted:
            groups.setdefault(_id(one), []).append(one)
        async with self._lock:
            known = [self._known(volume_id, group) for volume_id, group in groups.items()]
            small = tuple(one for one in known if one.kind in COPIED)
            others = tuple(one for one in known if one.kind not in COPIED)
            copied, held = await together(
                self.copies.hold(spec.id, small),
                together(*(self._hold(one, groups[one.id]) for one in others)),
            )
        inside = copied.union(one.id for one in held if one is not None)
        return {
            one.mount.container_path: (volume_id, self._held[volume_id].file or one.volume.below)
            for volume_id, group in groups.items()
            if volume_id in inside
            for one in group
        }

    async def flush(self) -> None:
        """Have what was written to volumes on disks in their files, before the VM is ended."""
        if any(held.disk is not None for held in self._held.values()) and not self._agent.closed:
            await self._agent.call(Flush(), _FLUSH_TIME)

    async def usage(self, path: str) -> VolumeUse | None:
        """How full the volume on a disk is that the host has at ``path``; None when the guest holds none."""
        held = next((one for one in self._held.values() if one.disk is not None and one.path == path), None)
        if held is None or self._agent.closed:
            return None
        reply = await self._agent.call(Stats(volumes=True))
        use = next((one for one in reply.volumes if one.id == held.id), None)
        if use is None:
            return None
        # A guest says what it likes; what it says is of one volume, and makes sense.
        return VolumeUse(
            total=use.total,
            free=min(use.free, use.total),
            inodes=use.inodes,
            inodes_free=min(use.inodes_free, use.inodes),
        )

    def adopt(self) -> None:
        """Take over what an earlier daemon had the guest hold."""
        try:
            self._held.load()
        except DataLoss as error:
            log.error("the volumes of pod %s are not updated any more: %s", self._uid, error)
            return
        for held in self._held.values():
            self._follow(held)
        self.copies.adopt()
        try:
            self.listeners.adopt()
        except DataLoss as error:
            log.error("the sockets of pod %s may stay on the host: %s", self._uid, error)
        for held in self._held.values():
            if held.kind == "sockets" and self.shows_sockets:
                self.shown.adopt(held.id, "", held.path)

    async def close(self) -> None:
        """Keep nothing in step any more; the guest goes on with what it has. Idempotent."""
        await self._sizes.close()
        await self.shown.close()
        await self.listeners.close()
        await self.copies.close()

    # Which, and how

    def _recognise(self, mounts: Sequence[Mount]) -> list[Showing]:
        found = []
        propagates = PROPAGATION in self._agent.hello.features
        for mount in mounts:
            if not mount.host_path or (mount.propagation is not Propagation.PRIVATE and not propagates):
                continue
            if (handed := self._direct_one(mount)) is not None:
                found.append(handed)
                continue
            volume = kubelet.recognise(mount, self._uid) or self._named_one(mount)
            if volume is None or not mount.sockets:
                volume = self._for_sockets(mount) or volume
            if volume is not None and (volume.kind not in COPIED or self._config.copy_kib):
                found.append(Showing(mount, volume))
        return found

    def _named_one(self, mount: Mount) -> KubeletVolume | None:
        found = shown.find(mount.host_path, self._named)
        if found is None:
            return None
        if mount.uid_mappings or mount.gid_mappings:
            # Its files outlive the pod, and the next one's users are others.
            raise FailedPrecondition(
                f"volume {mount.host_path} is a disk of its VM, which a pod with a user namespace cannot have"
            )
        return KubeletVolume(kind="disk", path=os.fspath(found.data), below=found.below)

    def _for_sockets(self, mount: Mount) -> KubeletVolume | None:
        """A directory of the host in which containers have sockets for it."""
        if mount.read_only:
            return None  # who may only read it makes none on the host
        path = os.path.realpath(mount.host_path)
        can_be = mount.propagation is Propagation.PRIVATE and Path(path).is_dir()
        if not can_be or LISTENERS not in self._agent.hello.features:
            if mount.sockets:
                raise FailedPrecondition(
                    f"volume {mount.host_path} cannot be one for sockets: it must be a directory, mounted "
                    "without propagation, in a VM of this release"
                )
            return None
        wanted = (
            mount.sockets
            or any(Path(path).is_relative_to(os.path.realpath(top)) for top in self._config.sockets)
            or any(held.kind == "sockets" and held.path == path for held in tuple(self._held.values()))
        )
        return KubeletVolume(kind="sockets", path=path) if wanted else None

    def _sockets_at(self, volume_id: str) -> str:
        held = self._held.get(volume_id)
        return held.path if held is not None and held.kind == "sockets" else ""

    def _direct_one(self, mount: Mount) -> Showing | None:
        # What the guest has stays what it is, whatever has become of what the driver wrote.
        had = next(
            (one.direct for one in self._held.values() if one.direct and one.path == mount.host_path), None
        )
        found = (had, "") if had else direct.find(mount.host_path, self._uid, self._config.direct)
        if found is None:
            return None
        handed, below = found
        features = self._agent.hello.features
        if FILE_SYSTEMS not in features or (handed.kind == "xfs" and XFS not in features):
            raise FailedPrecondition(
                f"volume {handed.path} is a device to be mounted, but its pod's VM is of a release that "
                "cannot do that; make the pod anew"
            )
        if mount.uid_mappings or mount.gid_mappings:
            raise FailedPrecondition(
                f"volume {handed.path} is a disk of its VM, which a pod with a user namespace cannot have"
            )
        volume = KubeletVolume(kind="direct", path=handed.path, below=below)
        return Showing(mount, volume, handed)

    def _known(self, volume_id: str, group: list[Showing]) -> HeldVolume:
        """The volume as the guest holds it, or as it is to."""
        volume, mount = group[0].volume, group[0].mount
        return self._held.get(volume_id) or HeldVolume(
            id=volume_id,
            kind=volume.kind,
            path=volume.path,
            direct=group[0].direct,
            uid_mappings=mount.uid_mappings,
            gid_mappings=mount.gid_mappings,
        )

    async def _hold(self, held: HeldVolume, group: list[Showing]) -> HeldVolume | None:
        """A volume that is no copy, held for its containers; None when it has to be shared."""
        below = tuple(one.volume.below for one in group if one.volume.below)
        if held.direct is not None:
            return await self._handed(held, held.direct, below)
        return await self._empty_dir(held, below)

    # Devices

    async def _handed(self, held: HeldVolume, volume: DirectVolume, below: tuple[str, ...]) -> HeldVolume:
        """A device, mounted by the guest. Who cannot have it leaves nothing of it behind."""
        first = held.id not in self._held
        disk = Disk(
            id=held.id,
            files=(volume.device,),
            read_only=volume.read_only,
            durable=True,
            device=not volume.plain,
        )
        try:
            directories, _, _ = await threads.call(_look, held.path, below)
            held = await self._attached(held, disk)
            await self._mounted(held, volume, directories)
        except BaseException as error:
            if first:
                await roll_back(f"volume {held.path}", self._let_go(held))
            if isinstance(error, OSError):
                raise of_system(error, f"volume {held.path}: {error.strerror}") from error
            if isinstance(error, OrlopError):
                raise type(error)(f"volume {held.path}: {error}") from error
            raise
        self._follow(held)
        return held

    async def _mounted(
        self, held: HeldVolume, volume: DirectVolume, directories: Sequence[wire.VolumeEntry], size: int = 0
    ) -> None:
        wanted = wire.FileSystem(
            kind=volume.kind,
            options=volume.options,
            read_only=volume.read_only,
            group=volume.group if volume.group >= 0 else None,
            only_root=volume.only_root,
        )
        hold = Hold(id=held.id, disk=held.disk, file_system=wanted, size=size, directories=tuple(directories))
        await self._agent.call(hold, _MOUNT_TIME)

    async def _let_go(self, held: HeldVolume) -> None:
        with suppress(NotFound):
            await self._machine.detach_disk(held.id)
        self._held.forget(held.id)

    def _follow(self, held: HeldVolume) -> None:
        """Have the file system of a device grow with it."""
        volume = held.direct
        if volume is not None and not volume.plain and not volume.read_only:
            grown = partial(self._mounted, held, volume, (wire.VolumeEntry(),))
            self._sizes.follow(held.id, volume.device, grown)

    # emptyDir

    async def _empty_dir(self, held: HeldVolume, below: tuple[str, ...]) -> HeldVolume | None:
        directories, has_disk, plain = await threads.call(_look, held.path, below)
        if held.kind == "sockets":
            has_disk, plain = False, True
        if held.id not in self._held and not has_disk:
            # In an emptyDir that is not plain somebody has put files, which only the host has. Once it is
            # shared it stays so: its containers are to see the same.
            shared = not plain or (held.kind == "disk" and self._config.empty_dir == "share")
            held = msgspec.structs.replace(held, shared=shared)
        if held.shared:
            self._held.remember(held)
            return None
        size = 0
        if held.kind == "sockets":
            size = _FOR_SOCKETS
            self._held.remember(held)
        elif held.kind == "memory":
            size = await threads.call(_size_of, held.path)
            self._held.remember(held)
        else:
            held = await self._with_disk(held, has_disk=has_disk)
        directories = tuple(owned(entry, held.uid_mappings, held.gid_mappings) for entry in directories)
        hold = Hold(
            id=held.id, disk=held.disk, size=size, directories=directories, listens=held.kind == "sockets"
        )
        await self._agent.call(hold, _TIMEOUT)
        if held.kind == "sockets" and self.shows_sockets:
            await self.shown.follow(held.id, "", held.path)
        return held

    async def _with_disk(self, held: HeldVolume, *, has_disk: bool) -> HeldVolume:
        if held.disk is not None and held.disk.at:
            return held
        image = Path(held.path) / DISK
        if not has_disk:
            await volume_disk(image, self._config.empty_dir_mib, workplace=self._workplace)
        disk = Disk(id=held.id, files=(os.fspath(image),), read_only=False, durable=True)
        try:
            return await self._attached(held, disk)
        except OSError as error:  # a link, say: the directory was shared with a pod before
            raise FailedPrecondition(f"volume {held.path}: its disk {DISK}: {error.strerror}") from error

    async def _attached(self, held: HeldVolume, disk: Disk) -> HeldVolume:
        if held.disk is not None and held.disk.at:
            return held
        if held.disk is not None:
            # An earlier daemon ended before it wrote down whether it had attached it.
            with suppress(NotFound):
                await self._machine.detach_disk(held.id)
        self._held.remember(msgspec.structs.replace(held, disk=wire.PluggedDisk(id=held.id)))
        at = await self._machine.attach_disk(disk)
        held = msgspec.structs.replace(held, disk=wire.PluggedDisk(id=held.id, at=at))
        self._held.remember(held)
        return held


def has_sockets(held: Mapping[str, tuple[str, str]], mount: Mount) -> bool:
    """Whether a mount shows a directory for sockets, as :meth:`Volumes.place` has said."""
    return held.get(mount.container_path, ("", ""))[0].startswith("sockets-")


def _id(wanted: Showing) -> str:
    """A volume's name: the same for all mounts that show the same."""
    mount, volume = wanted.mount, wanted.volume
    parts = msgspec.json.encode((volume.path, mount.uid_mappings, mount.gid_mappings))
    return f"{volume.kind}-{hashlib.sha256(parts).hexdigest()[:20]}"


def _look(path: str, below: tuple[str, ...]) -> tuple[tuple[wire.VolumeEntry, ...], bool, bool]:
    """An emptyDir's root and what leads to ``below``, as the host has them; whether its disk is there; and
    whether there are but directories besides."""
    has_disk = os.path.lexists(f"{path}/{DISK}")
    directories = directories_of(path)
    known = {entry.path: entry for entry in directories or ()}
    wanted = {"/".join(one.split("/")[: count + 1]) for one in below for count in range(one.count("/") + 1)}
    default = wire.VolumeEntry(mode=stat.S_IMODE(Path(path).stat().st_mode))
    entries = [known.get("", default)]
    entries += [known.get(one, wire.VolumeEntry(path=one)) for one in sorted(wanted)]
    return tuple(entries), has_disk, directories is not None


def _size_of(path: str) -> int:
    found = os.statvfs(path)
    return min(found.f_blocks * found.f_frsize, _MOST_MEMORY)
