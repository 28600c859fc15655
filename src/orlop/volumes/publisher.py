"""Volumes where pods find them: mounted from a loop device, shown at a path, or as a block device.

What is mounted where is asked of the kernel at each call, and kept nowhere else: so a call that was broken
off is simply made again. A path that holds anything but the very volume is left alone.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OrlopError, of_system
from orlop.host import mounts, threads
from orlop.linux import loop
from orlop.linux import syscalls as sys
from orlop.volumes import filesystem, records
from orlop.volumes.records import INSIDE, VolumeRecord, VolumeUse, data_of, disk_of
from orlop.volumes.store import VolumeStore, claimed

log = logging.getLogger(__name__)

_FLAGS = {"ro": sys.MS_RDONLY, "noatime": sys.MS_NOATIME, "noexec": sys.MS_NOEXEC}
_USUAL = {"rw", "nodev", "nosuid", "discard"}
_OWN = sys.MS_NODEV | sys.MS_NOSUID
_TRIES = 5


Inside = Callable[[Path], Awaitable[VolumeUse | None]]
"""How full the volume is whose disk lies in a directory, by the VM that has it; None when none has."""


async def nobody(place: Path) -> VolumeUse | None:
    """Where there are no VMs."""
    return None


class Publisher:
    """What pods on this machine get of the volumes in ``store``; ``inside`` asks VMs that have a disk."""

    def __init__(self, store: VolumeStore, inside: Inside = nobody) -> None:
        self._store = store
        self._inside = inside

    async def stage(self, volume_id: str, target: str, options: tuple[str, ...] = ()) -> None:
        """Mount a volume's file system at the directory ``target``, for :meth:`publish`. Idempotent.

        Nothing is to be done for a block volume, nor for one whose VM has the disk. Raises NotFound,
        InvalidArgument, FailedPrecondition.
        """
        flags = flags_of(options)
        place = await threads.call(_place, target)
        async with self._store.turn(volume_id):
            volume = self._store.volume(volume_id)
            if volume.content == "block" or volume.whole:
                return
            if await threads.call(self._is_ours, volume, place):
                return
            await self._mount(volume, place, flags)

    async def unstage(self, volume_id: str, target: str) -> None:
        """Undo :meth:`stage`; the directory stays. Idempotent."""
        place = await threads.call(_place, target)
        async with self._store.turn(volume_id):
            if (volume := self._known(volume_id)) is not None:
                await threads.call(self._unmount, volume, place)

    async def publish(
        self, volume_id: str, target: str, *, staged: str = "", read_only: bool = False, alone: bool = False
    ) -> None:
        """Show a volume at ``target``, which this makes: as a directory, or a block device. Idempotent.

        With ``alone`` it may be shown nowhere else. Raises NotFound, FailedPrecondition where it was not
        staged or is in use otherwise, AlreadyExists for one that is shown there with other rights.
        """
        place = await threads.call(_place, target)
        async with self._store.turn(volume_id):
            volume = self._store.volume(volume_id)
            if await threads.call(self._is_ours, volume, place):
                if volume.content != "block" and await threads.call(_is_read_only, place) != read_only:
                    raise AlreadyExists(f"volume {volume_id} is at {target} with other rights")
                return
            if alone and (others := await threads.call(self._shown, volume, staged)):
                raise FailedPrecondition(f"volume {volume_id} is for one pod, and is at {others[0]} already")
            if volume.content == "block":
                await threads.call(self._show_device, volume, place, read_only)
                return
            if volume.whole:
                source = data_of(self._store.directory(volume_id))
            else:
                source = (await threads.call(_place, staged)) / INSIDE
                if not staged or not await threads.call(self._is_ours, volume, source.parent):
                    raise FailedPrecondition(f"volume {volume_id} is not staged at {staged or 'any path'}")
            await threads.call(_show, source, place, read_only)

    async def unpublish(self, volume_id: str, target: str) -> None:
        """Undo :meth:`publish`, and remove what it made at ``target``. Idempotent."""
        place = await threads.call(_place, target)
        async with self._store.turn(volume_id):
            volume = self._known(volume_id)
            if volume is not None:
                await threads.call(self._unmount, volume, place)
            await threads.call(_remove_target, place)
            if volume is not None and volume.content == "block":
                await threads.call(self._let_go, volume)

    async def expand(self, volume_id: str, path: str, least: int = 0) -> VolumeRecord:
        """Give who uses the volume at ``path`` all of its size now, and at least ``least`` bytes.

        Raises NotFound, ResourceExhausted, and FailedPrecondition where its user sees that it has grown only
        when it begins anew.
        """
        place = await threads.call(_place, path)
        await self._find(volume_id, place)
        if least:
            await self._store.grow(volume_id, least)
        async with self._store.turn(volume_id):
            volume = await self._find(volume_id, place)
            disk = disk_of(self._store.directory(volume_id))
            if volume.whole:
                await threads.call(_check_unused, volume, disk)
            for device in await threads.call(loop.devices_of, os.fspath(disk)):
                await threads.call(loop.follow_size, device)
                if volume.content == "filesystem":
                    await filesystem.fit_mounted(device, disk)
            return volume

    async def usage(self, volume_id: str, path: str) -> VolumeUse:
        """What is taken of the volume at ``path``. Raises NotFound."""
        place = await threads.call(_place, path)
        volume = await self._find(volume_id, place)
        if volume.content == "block":
            return VolumeUse(total=volume.size, free=0)
        if volume.whole:
            directory = self._store.directory(volume_id)
            if (found_inside := await self._inside(data_of(directory))) is not None:
                return found_inside
            disk = disk_of(directory)
            taken = (await threads.call(disk.stat)).st_blocks * 512
            return VolumeUse(total=volume.size, free=max(0, volume.size - taken))
        found = await threads.call(os.statvfs, place)
        return VolumeUse(
            total=found.f_blocks * found.f_frsize,
            free=found.f_bavail * found.f_frsize,
            inodes=found.f_files,
            inodes_free=found.f_ffree,
        )

    async def open(self) -> None:
        """Let go of devices that an earlier daemon took and did not show to anybody."""
        for volume in self._store.volumes():
            if volume.content == "block":
                try:
                    await threads.call(self._let_go, volume)
                except OSError as error:
                    log.error("the loop device of volume %s stays: %s", volume.id, error)

    def _known(self, volume_id: str) -> VolumeRecord | None:
        try:
            return self._store.volume(records.check_id(volume_id, "volume"))
        except NotFound:
            return None

    async def _find(self, volume_id: str, place: Path) -> VolumeRecord:
        """The volume that is at ``place``. Raises NotFound."""
        volume = self._store.volume(volume_id)
        if not await threads.call(self._is_ours, volume, place):
            raise NotFound(f"volume {volume_id} is not at {place}")
        return volume

    # On threads

    def _devices(self, volume: VolumeRecord) -> list[str]:
        return loop.devices_of(os.fspath(disk_of(self._store.directory(volume.id))))

    def _is_ours(self, volume: VolumeRecord, place: Path) -> bool:
        """Whether the volume is what is mounted there. Raises FailedPrecondition for anything else."""
        if not mounts.is_mounted(place):
            return False
        if volume.content == "block":
            found = place.stat()
            ours = stat.S_ISBLK(found.st_mode) and any(
                Path(device).stat().st_rdev == found.st_rdev for device in self._devices(volume)
            )
        elif volume.whole:
            ours = place in mounts.points_from(data_of(self._store.directory(volume.id)))
        else:
            ours = any(place in _points(device) for device in self._devices(volume))
        if not ours:
            raise FailedPrecondition(f"{place} has something else mounted on it than volume {volume.id}")
        return True

    def _shown(self, volume: VolumeRecord, staged: str) -> list[Path]:
        """Where pods find the volume."""
        if volume.content == "filesystem" and volume.whole:
            return mounts.points_from(data_of(self._store.directory(volume.id)))
        find = mounts.points_from if volume.content == "block" else _points
        own = _place(staged) if staged else None
        return [point for device in self._devices(volume) for point in find(device) if point != own]

    async def _mount(self, volume: VolumeRecord, place: Path, flags: int) -> None:
        disk = disk_of(self._store.directory(volume.id))
        for _ in range(_TRIES):
            devices = await threads.call(self._devices, volume)
            try:
                if devices:
                    await threads.call(_mount_device, devices[0], place, flags)
                else:
                    with claimed(disk, f"volume {volume.id}") as file:
                        await filesystem.fit(disk)
                        await threads.call(_mount_disk, file, place, flags)
                return
            except OSError as error:
                # A device that is let go of at this moment, after its last mount.
                if devices and error.errno in (errno.ENXIO, errno.EINVAL, errno.EBUSY, errno.ENOENT):
                    continue
                raise of_system(error, f"volume {volume.id} cannot be mounted: {error.strerror}") from error
        raise FailedPrecondition(f"volume {volume.id} cannot be mounted: its loop device does not settle")

    def _show_device(self, volume: VolumeRecord, place: Path, read_only: bool) -> None:
        disk = disk_of(self._store.directory(volume.id))
        try:
            devices = self._devices(volume)
            if devices:
                device = devices[0]
                if _writable(device) == read_only:
                    raise FailedPrecondition(
                        f"volume {volume.id} is in use, and either all or none of its users may write to it"
                    )
            else:
                with claimed(disk, f"volume {volume.id}") as file:
                    device, descriptor = loop.attach(file, read_only=read_only)
                    os.close(descriptor)
            place.touch()
            mounts.bind(device, place, propagation="unchanged")
        except BaseException as error:
            with suppress(OSError, OrlopError):
                _remove_target(place)
                self._let_go(volume)
            if isinstance(error, OSError):
                raise of_system(error, f"volume {volume.id} at {place}: {error.strerror}") from error
            raise

    def _unmount(self, volume: VolumeRecord, place: Path) -> None:
        if self._is_ours(volume, place):
            try:
                mounts.unmount(place, lazy=False)
            except OSError as error:
                raise of_system(error, f"volume {volume.id} at {place}: {error.strerror}") from error

    def _let_go(self, volume: VolumeRecord) -> None:
        """Detach devices that are shown nowhere any more."""
        for device in self._devices(volume):
            if not mounts.points_from(device):
                loop.detach(device)


def flags_of(options: tuple[str, ...]) -> int:
    """Flags of mount(2) for what a caller may ask for. Raises InvalidArgument."""
    if unknown := [one for one in options if one not in _FLAGS and one not in _USUAL]:
        known = ", ".join(sorted({*_FLAGS, *_USUAL}))
        raise InvalidArgument(f"the mount option {unknown[0]!a} is not known; these are: {known}")
    return _OWN | sum({_FLAGS[one] for one in options if one in _FLAGS})


def _place(path: str) -> Path:
    """Where a caller's path really is; what is there itself is not followed. Raises InvalidArgument."""
    given = Path(path)
    if not given.is_absolute() or ".." in given.parts or len(given.parts) < 3 or "\0" in path:
        raise NotFound(f"{path!a} is no path of a volume: it is to be absolute, and below a directory")
    try:
        return given.parent.resolve() / given.name
    except (OSError, RuntimeError) as error:
        raise InvalidArgument(f"{path!a}: {error}") from error


def _check_unused(volume: VolumeRecord, disk: Path) -> None:
    """Raises FailedPrecondition for a disk that a VM has: it knows the size that was there at its start."""
    try:
        with claimed(disk, f"volume {volume.id}"):
            return
    except FailedPrecondition as error:
        raise FailedPrecondition(
            f"volume {volume.id} has grown, and is in use: a VM sees that when its pod is started again"
        ) from error


def _points(device: str) -> list[Path]:
    return mounts.points_of(Path(device).stat().st_rdev)


def _mount_disk(file: int, place: Path, flags: int) -> None:
    device, descriptor = loop.attach(file, read_only=bool(flags & sys.MS_RDONLY), passing=True)
    try:
        _mount_device(device, place, flags)
    finally:
        os.close(descriptor)


def _mount_device(device: str, place: Path, flags: int) -> None:
    place.mkdir(parents=True, exist_ok=True)
    mounts.mount(device, place, "ext4", flags=flags, options="discard")
    try:
        inside = place / INSIDE
        if not flags & sys.MS_RDONLY:
            inside.mkdir(mode=0o755, exist_ok=True)
        if not stat.S_ISDIR(inside.lstat().st_mode):
            raise OSError(errno.ENOTDIR, f"{INSIDE} in it is no directory", os.fspath(inside))
    except BaseException:
        mounts.unmount(place)
        raise


def _show(source: Path, place: Path, read_only: bool) -> None:
    try:
        place.mkdir(exist_ok=True)
        mounts.bind(source, place, read_only=read_only, propagation="unchanged")
    except OSError as error:
        with suppress(OSError):
            place.rmdir()
        raise of_system(error, f"{place}: {error.strerror}") from error


def _remove_target(place: Path) -> None:
    try:
        if place.is_dir() and not place.is_symlink():
            place.rmdir()
        elif place.is_file() and not place.stat().st_size:
            place.unlink()
    except FileNotFoundError:
        return
    except OSError as error:
        raise of_system(error, f"{place} cannot be removed: {error.strerror}") from error


def _is_read_only(place: Path) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_RDONLY)


def _writable(device: str) -> bool:
    return Path(f"/sys/block/{Path(device).name}/ro").read_text(encoding="ascii").strip() == "0"
