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
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from orlop.config import VolumeConfig
from orlop.errors import DataLoss, FailedPrecondition, NotFound, OrlopError, of_system
from orlop.host import threads
from orlop.host.tasks import Tasks, roll_back, together
from orlop.host.watching import Watcher
from orlop.hypervisor.base import Disk, Machine
from orlop.sandbox.spec import ContainerSpec, IdMapping, Mount, Propagation
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.blockdevices import Sizes
from orlop.sandbox.vm.files import HeldVolume, PodFiles
from orlop.sandbox.vm.listeners import Listeners
from orlop.storage import direct, kubelet
from orlop.storage.direct import DirectVolume
from orlop.storage.disks import volume_disk
from orlop.storage.kubelet import KubeletVolume
from orlop.storage.snapshot import DISK, InMotion, NotCopied, directories_of, read_volume
from orlop.volumes import shown
from orlop.wire import values as wire
from orlop.wire.messages import (
    FILE_SYSTEMS,
    LISTENERS,
    PROPAGATION,
    SOCKETS,
    VOLUMES,
    Drop,
    Fetch,
    Fill,
    Flush,
    Hold,
)

log = logging.getLogger(__name__)

_COPIED = ("copy", "file", "log")
_TIMEOUT = 60.0
_MOUNT_TIME = 100.0
"""Seconds for a file system to be recovered and given to a group: less than a kubelet waits."""

_FLUSH_TIME = 5.0
_FETCH_TIME = 20.0
"""Seconds until a container's end is told without what was said about it. A busy host's guest may need some;
who kills a container waits longer."""

_BATCH_BYTES = 2 << 20
_BATCH_ENTRIES = 512
_SETTLING = 0.005
"""Seconds between the first word of a change and the look at it: a kubelet makes it in several steps."""

_AGAIN = 0.05
_TRIES = 40
_LATER = 2.0
_FOR_SOCKETS = 1 << 20
_NOBODY = 65534
_MOST_MEMORY = 1 << 50


@dataclass(frozen=True)
class Showing:
    """A mount and the volume that it shows."""

    mount: Mount
    volume: KubeletVolume
    direct: DirectVolume | None = None


class Volumes:
    """The volumes of one pod, whose uid the kubelet gave it.

    ``workplace`` is a directory on disk, below ``named`` are the named volumes of this machine.
    """

    def __init__(
        self,
        machine: Machine,
        agent: AgentClient,
        files: PodFiles,
        watcher: Watcher,
        *,
        uid: str,
        config: VolumeConfig,
        workplace: Path,
        named: Path,
    ) -> None:
        self._machine = machine
        self._agent = agent
        self._files = files
        self._watcher = watcher
        self._uid = uid
        self._config = config
        self._workplace = workplace
        self._named = named
        self._held: dict[str, HeldVolume] = {}
        self._watches: dict[str, tuple[int, Callable[[], None]]] = {}
        self.listeners = Listeners(agent, files, self._sockets_at)
        """The host's sockets for those that containers have bound."""
        self._lock = asyncio.Lock()
        self._sizes = Sizes(machine)
        self._stale: set[str] = set()
        self._changed = asyncio.Event()
        self._tasks = Tasks()

    @property
    def relays_sockets(self) -> bool:
        """Whether the guest tells of connections to sockets of the host."""
        return SOCKETS in self._agent.hello.features

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
            held = await together(
                *(self._hold(spec.id, volume_id, group) for volume_id, group in groups.items())
            )
        return {
            one.mount.container_path: (known.id, known.file or one.volume.below)
            for known, group in zip(held, groups.values(), strict=True)
            if known is not None
            for one in group
        }

    async def release(self, container_id: str) -> None:
        """A container is gone. Idempotent."""
        async with self._lock:
            for held in list(self._held.values()):
                if container_id in held.users:
                    users = tuple(user for user in held.users if user != container_id)
                    if users:
                        self._remember(msgspec.structs.replace(held, users=users))
                    else:
                        await self._drop(held)

    async def write_back(self, container_id: str) -> None:
        """A container has ended: give the host what it may have said about that. Fails for no reason."""
        for held in list(self._held.values()):
            if held.kind == "log" and container_id in held.users:
                try:
                    reply = await self._agent.call(Fetch(id=held.id, path=held.file), _FETCH_TIME)
                    if reply.data:
                        await threads.call(_write, held.path, reply.data)
                except (OrlopError, OSError) as error:
                    log.warning("the termination log %s: %s", held.path, error)

    async def flush(self) -> None:
        """Have what was written to volumes on disks in their files, before the VM is ended."""
        if any(held.disk is not None for held in self._held.values()) and not self._agent.closed:
            await self._agent.call(Flush(), _FLUSH_TIME)

    def adopt(self) -> None:
        """Take over what an earlier daemon had the guest hold."""
        try:
            known = self._files.volumes()
        except DataLoss as error:
            log.error("the volumes of pod %s are not updated any more: %s", self._uid, error)
            return
        for held in known:
            self._held[held.id] = held
            self._follow(held)
            if held.kind in _COPIED:
                try:
                    self._watch(held)
                except OSError as error:
                    log.warning("volume %s is not updated any more: %s", held.path, error)
                self._mark(held.id)
        try:
            self.listeners.adopt()
        except DataLoss as error:
            log.error("the sockets of pod %s may stay on the host: %s", self._uid, error)

    async def close(self) -> None:
        """Keep nothing in step any more; the guest goes on with what it has. Idempotent."""
        for volume_id in list(self._watches):
            self._forget(volume_id)
        await self._sizes.close()
        await self.listeners.close()
        await self._tasks.close()

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
            volume = self._for_sockets(mount) or kubelet.recognise(mount, self._uid) or self._named_one(mount)
            if volume is not None and (volume.kind not in _COPIED or self._config.copy_kib):
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
        if mount.read_only or mount.propagation is not Propagation.PRIVATE:
            return None
        path = os.path.realpath(mount.host_path)
        wanted = any(Path(path).is_relative_to(os.path.realpath(top)) for top in self._config.sockets)
        if not wanted or LISTENERS not in self._agent.hello.features or not Path(path).is_dir():
            return None
        return KubeletVolume(kind="sockets", path=path)

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
        if FILE_SYSTEMS not in self._agent.hello.features:
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

    async def _hold(self, container_id: str, volume_id: str, group: list[Showing]) -> HeldVolume | None:
        """The volume, held for this container; None when it has to be shared."""
        volume, mount = group[0].volume, group[0].mount
        held = self._held.get(volume_id) or HeldVolume(
            id=volume_id,
            kind=volume.kind,
            path=volume.path,
            direct=group[0].direct,
            uid_mappings=mount.uid_mappings,
            gid_mappings=mount.gid_mappings,
        )
        if held.kind in _COPIED:
            return await self._copy(held, container_id)
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
        if self._held.pop(held.id, None) is not None:
            self._files.write_volumes(self._held.values())

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
            self._remember(held)
            return None
        size = 0
        if held.kind == "sockets":
            size = _FOR_SOCKETS
            self._remember(held)
        elif held.kind == "memory":
            size = await threads.call(_size_of, held.path)
            self._remember(held)
        else:
            held = await self._with_disk(held, has_disk=has_disk)
        owned = tuple(_owned(entry, held) for entry in directories)
        hold = Hold(id=held.id, disk=held.disk, size=size, directories=owned, listens=held.kind == "sockets")
        await self._agent.call(hold, _TIMEOUT)
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
        held = self._remember(msgspec.structs.replace(held, disk=wire.PluggedDisk(id=held.id)))
        at = await self._machine.attach_disk(disk)
        return self._remember(msgspec.structs.replace(held, disk=wire.PluggedDisk(id=held.id, at=at)))

    # Copies

    async def _copy(self, held: HeldVolume, container_id: str) -> HeldVolume | None:
        if held.id in self._held:
            await self._update(held.id)
            held = self._held[held.id]
        else:
            try:
                self._watch(held)
                held = await self._fill(held)
            except BaseException as error:
                self._forget(held.id)
                if not isinstance(error, NotCopied | InMotion | OSError):
                    raise
                log.info("volume %s is shared with its pod, not copied: %s", held.path, error)
                return None
        users = (*(user for user in held.users if user != container_id), container_id)
        return self._remember(msgspec.structs.replace(held, users=users))

    async def _fill(self, held: HeldVolume) -> HeldVolume:
        """Bring the guest's copy up to date. Raises NotCopied, InMotion, OSError, OrlopError."""
        limit = self._config.copy_kib << 10
        for again in range(_TRIES, -1, -1):
            try:
                root, single, entries = await threads.call(_read, held.path, limit)
                break
            except InMotion:
                if not again:
                    raise
                await asyncio.sleep(_AGAIN)
        digest = _digest(entries)
        if digest == held.sent or (held.root and root != held.root):
            return held  # with another root it is not what was mounted: the host has taken that away
        await self._send(held, tuple(_owned(entry, held) for entry in entries))
        return msgspec.structs.replace(held, sent=digest, root=root, file=single)

    async def _send(self, held: HeldVolume, entries: tuple[wire.VolumeEntry, ...]) -> None:
        batch: list[wire.VolumeEntry] = []
        size = 0
        for entry in entries:
            if batch and (size + len(entry.data) > _BATCH_BYTES or len(batch) >= _BATCH_ENTRIES):
                await self._agent.call(Fill(id=held.id, entries=tuple(batch), more=True), _TIMEOUT)
                batch, size = [], 0
            batch.append(entry)
            size += len(entry.data)
        # A container has the very file mounted that the host's writer changes.
        in_place = held.kind != "copy"
        await self._agent.call(Fill(id=held.id, entries=tuple(batch), in_place=in_place), _TIMEOUT)

    async def _drop(self, held: HeldVolume) -> None:
        self._forget(held.id)
        if not self._agent.closed:
            await self._agent.call(Drop(id=held.id), _TIMEOUT)
        del self._held[held.id]
        self._files.write_volumes(self._held.values())

    def _watch(self, held: HeldVolume) -> None:
        """Hear of changes. Raises OSError."""
        if held.kind != "log" and held.id not in self._watches:
            mark = partial(self._mark, held.id)
            self._watches[held.id] = (self._watcher.watch(held.path, mark), mark)

    def _forget(self, volume_id: str) -> None:
        self._stale.discard(volume_id)
        watch = self._watches.pop(volume_id, None)
        if watch is not None:
            self._watcher.forget(*watch)

    def _mark(self, volume_id: str) -> None:
        self._stale.add(volume_id)
        self._changed.set()
        if not len(self._tasks) and not self._tasks.closed:
            self._tasks.spawn(self._keep_in_step(), f"the volumes of pod {self._uid}")

    async def _keep_in_step(self) -> None:
        while True:
            await self._changed.wait()
            await asyncio.sleep(_SETTLING)
            self._changed.clear()
            stale, self._stale = self._stale, set()
            for volume_id in stale:
                if self._agent.closed:
                    return
                async with self._lock:
                    await self._update(volume_id)

    async def _update(self, volume_id: str) -> None:
        held = self._held.get(volume_id)
        if held is None or held.kind == "log":
            return  # one that is being made is read after this, and what was said last is the container's
        try:
            self._remember(await self._fill(held))
        except FileNotFoundError:
            log.debug("volume %s is gone from the host", held.path)
        except (NotCopied, InMotion, OSError, OrlopError) as error:
            log.warning("volume %s is not up to date in its pod: %s", held.path, error)
            if isinstance(error, InMotion | OrlopError):
                asyncio.get_running_loop().call_later(_LATER, self._mark, volume_id)

    def _remember(self, held: HeldVolume) -> HeldVolume:
        if self._held.get(held.id) != held:
            self._held[held.id] = held
            self._files.write_volumes(self._held.values())
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


def _read(path: str, limit: int) -> tuple[tuple[int, int], str, tuple[wire.VolumeEntry, ...]]:
    """Which directory or file a small volume is, its name if it is a file, and all that is in it."""
    found = Path(path).lstat()
    entries = read_volume(path, limit)
    name = "" if stat.S_ISDIR(found.st_mode) else Path(path).name
    return (found.st_dev, found.st_ino), name, entries


def _size_of(path: str) -> int:
    found = os.statvfs(path)
    return min(found.f_blocks * found.f_frsize, _MOST_MEMORY)


def _owned(entry: wire.VolumeEntry, held: HeldVolume) -> wire.VolumeEntry:
    """With the owners that the pod's user namespace makes of the host's."""
    if not held.uid_mappings and not held.gid_mappings:
        return entry
    return wire.VolumeEntry(
        path=entry.path,
        kind=entry.kind,
        mode=entry.mode,
        uid=_outer(entry.uid, held.uid_mappings),
        gid=_outer(entry.gid, held.gid_mappings),
        modified=entry.modified,
        data=entry.data,
        target=entry.target,
    )


def _outer(inner: int, mappings: Sequence[IdMapping]) -> int:
    for one in mappings:
        if one.container_id <= inner < one.container_id + one.length:
            return one.host_id + inner - one.container_id
    return _NOBODY


def _digest(entries: Sequence[wire.VolumeEntry]) -> str:
    digest = hashlib.sha256()
    for entry in entries:
        words = (entry.path, entry.kind, entry.mode, entry.uid, entry.gid, entry.modified, entry.target)
        digest.update(msgspec.json.encode((*words, len(entry.data))))
        digest.update(entry.data)
    return digest.hexdigest()


def _write(path: str, data: bytes) -> None:
    """Replace what is in a file of the kubelet's; what is none any more is left alone. Raises OSError."""
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode):
            os.ftruncate(fd, 0)
            while data:
                data = data[os.write(fd, data) :]
    finally:
        os.close(fd)
