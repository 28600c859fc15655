"""The volumes and snapshots of this machine: made, copied, grown and removed.

A record is on the disk before what it names exists, and says that it is removed before anything of it goes.
So a daemon that ends at any moment leaves what the next one finishes: what was being made or removed goes,
what was being grown has its size at last. Calls on one volume come one after the other.

Who uses a disk holds a lock of flock(2) on it: a VM, or the loop device that it is mounted from. So what is
in use is known by asking the kernel, whoever was killed meanwhile.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from orlop.errors import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
    of_system,
)
from orlop.host import mounts, privacy, threads
from orlop.host.tasks import roll_back
from orlop.host.turns import Turns
from orlop.linux.removal import remove_tree
from orlop.volumes import copying, filesystem, freezing, records
from orlop.volumes.records import Content, Origin, SnapshotRecord, VolumeRecord, VolumeStep, disk_of

log = logging.getLogger(__name__)

LEAST, MOST = 16 << 20, 16 << 40
"""Bytes of a volume. ext4 has room for a journal from the one on, and ends at the other."""

_UNIT = 1 << 20
"""A disk has whole MiB."""

_COPIES = 2
_BUSY_TIME = 2.0
_BUSY_STEP = 0.02

R = TypeVar("R", VolumeRecord, SnapshotRecord)


class VolumeStore:
    """All of it below ``root``. One instance per directory; :meth:`open` before anything else."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._volumes: dict[str, VolumeRecord] = {}
        self._snapshots: dict[str, SnapshotRecord] = {}
        self._turns = Turns()
        self._copies = asyncio.Semaphore(_COPIES)
        self._opened = False

    async def open(self) -> None:
        """Read what is there, and finish or take away what another daemon left half-done. Idempotent.

        Raises FailedPrecondition where the directory cannot be used.
        """
        if self._opened:
            return
        try:
            await threads.call(self._load)
        except OSError as error:
            raise of_system(error, f"the volumes below {self._root}: {error.strerror}") from error
        self._opened = True

    # What there is

    def volumes(self) -> list[VolumeRecord]:
        """All that are ready, by id."""
        return _ready(self._volumes)

    def snapshots(self) -> list[SnapshotRecord]:
        """All that are ready, by id."""
        return _ready(self._snapshots)

    def volume(self, volume_id: str) -> VolumeRecord:
        """One volume. Raises NotFound."""
        found = self._volumes.get(volume_id)
        if found is None or found.step is not VolumeStep.READY:
            raise NotFound(f"there is no volume {volume_id[: records.MAX_NAME]!a}")
        return found

    def snapshot(self, snapshot_id: str) -> SnapshotRecord:
        """One snapshot. Raises NotFound."""
        found = self._snapshots.get(snapshot_id)
        if found is None or found.step is not VolumeStep.READY:
            raise NotFound(f"there is no snapshot {snapshot_id[: records.MAX_NAME]!a}")
        return found

    def directory(self, volume_id: str) -> Path:
        """Where a volume is; what it has in it is told by :mod:`orlop.volumes.records`."""
        return self._root / "volumes" / volume_id

    def _kept(self, snapshot_id: str) -> Path:
        """Where a snapshot is."""
        return self._root / "snapshots" / snapshot_id

    async def available(self) -> int:
        """Bytes that are free below."""
        found = await threads.call(os.statvfs, self._root)
        return found.f_bavail * found.f_frsize

    @asynccontextmanager
    async def turn(self, volume_id: str) -> AsyncIterator[None]:
        """Keep other calls on a volume waiting."""
        async with self._turns.of(volume_id):
            yield

    # Make

    async def create(
        self,
        name: str,
        size: int,
        *,
        content: Content = "filesystem",
        whole: bool = False,
        origin: Origin | None = None,
    ) -> VolumeRecord:
        """Make a volume of at least ``size`` bytes, or find the very same one.

        With an ``origin`` it begins as a copy, and is at least as large as that. Raises AlreadyExists for
        another one of that name, NotFound for an origin that is not there, InvalidArgument,
        ResourceExhausted, FailedPrecondition for an origin that is written to and cannot be copied at one
        moment, Unavailable for one that grows meanwhile.
        """
        volume_id = records.id_of(name)
        begun = self._original(origin) if origin is not None else None
        wanted = VolumeRecord(
            id=volume_id,
            name=name,
            size=rounded(max(size, begun.size if begun is not None else 0)),
            created_at=time.time_ns(),
            content=content if begun is None else begun.content,
            whole=whole if begun is None else begun.whole,
            origin=origin,
        )
        async with self._turns.of(volume_id):
            directory = self.directory(volume_id)
            if (found := self._volumes.get(volume_id)) is not None:
                if found.step is VolumeStep.READY:
                    return _same(found, wanted, rounded(size))
                await self._clear(self._volumes, directory, volume_id)
            if origin is not None:
                # Gone meanwhile, perhaps: and a copy of itself would wait for its own turn for ever.
                self._original(origin)

            async def fill(disk: Path) -> None:
                if origin is not None:
                    await self._copy(origin, disk, wanted.size)
                else:
                    await threads.call(_empty, disk, wanted.size)
                    if content == "filesystem":
                        await filesystem.make(disk)

            return await self._make(self._volumes, directory, wanted, fill)

    async def take_snapshot(self, name: str, volume_id: str) -> SnapshotRecord:
        """Keep what a volume is now, or find the snapshot of that name and volume.

        Raises as :meth:`create`.
        """
        snapshot_id = records.id_of(name)
        directory = self._kept(snapshot_id)
        async with self._turns.of(f"snapshot {snapshot_id}"):
            found = self._snapshots.get(snapshot_id)
            if found is not None and found.volume != volume_id:
                raise AlreadyExists(f"snapshot {name!a} exists, and is one of volume {found.volume}")
            volume = self.volume(volume_id)
            if found is not None:
                if found.step is VolumeStep.READY:
                    return found
                await self._clear(self._snapshots, directory, snapshot_id)
            wanted = SnapshotRecord(
                id=snapshot_id,
                name=name,
                volume=volume_id,
                size=volume.size,
                created_at=time.time_ns(),
                content=volume.content,
                whole=volume.whole,
            )
            origin = Origin(kind="volume", id=volume_id)
            return await self._make(
                self._snapshots, directory, wanted, lambda disk: self._copy(origin, disk, volume.size)
            )

    async def grow(self, volume_id: str, size: int) -> VolumeRecord:
        """Give a volume's disk at least ``size`` bytes; it never becomes smaller.

        Its file system takes them when it is mounted next, or by :meth:`Publisher.expand` at once. Raises
        NotFound, InvalidArgument, ResourceExhausted.
        """
        records.check_id(volume_id, "volume")
        async with self._turns.of(volume_id):
            grown, directory = self.volume(volume_id), self.directory(volume_id)
            if rounded(size) > grown.size:
                grown = msgspec.structs.replace(grown, size=rounded(size))
                await self._record(self._volumes, directory, grown)
            try:
                # Also where an earlier call came no further than the record.
                await threads.call(_stretch, disk_of(directory), grown.size)
            except OSError as error:
                raise of_system(error, f"volume {volume_id} cannot be grown: {error.strerror}") from error
            return grown

    # Remove

    async def remove(self, volume_id: str) -> None:
        """Remove a volume with all that is in it; one that is not there is removed.

        Raises FailedPrecondition while anybody uses it, Unavailable for what is left.
        """
        async with self._turns.of(volume_id):
            if (volume := self._volumes.get(volume_id)) is not None:
                await self._take_away(self._volumes, self.directory(volume_id), volume, "volume")

    async def remove_snapshot(self, snapshot_id: str) -> None:
        """Remove a snapshot; one that is not there is removed. Raises as :meth:`remove`."""
        async with self._turns.of(f"snapshot {snapshot_id}"):
            if (found := self._snapshots.get(snapshot_id)) is not None:
                await self._take_away(self._snapshots, self._kept(snapshot_id), found, "snapshot")

    async def _take_away(self, known: dict[str, R], directory: Path, record: R, what: str) -> None:
        if record.step is VolumeStep.READY:
            if shown := await threads.call(mounts.points_from, records.data_of(directory)):
                raise FailedPrecondition(f"{what} {record.id} is in use: pods may find it at {shown[0]}")
            # Nobody can begin to use it before it is gone.
            async with self._held(disk_of(directory), f"{what} {record.id}"):
                record = msgspec.structs.replace(record, step=VolumeStep.REMOVING)
                await self._record(known, directory, record)
                await self._clear(known, directory, record.id)
        else:
            await self._clear(known, directory, record.id)

    async def _clear(self, known: dict[str, R], directory: Path, name: str) -> None:
        try:
            await threads.call(remove_tree, directory)
        except OSError as error:
            raise Unavailable(
                f"{name} is not removed whole yet: {error.filename or directory}: {error.strerror}"
            ) from error
        known.pop(name, None)

    # The steps

    async def _make(
        self,
        known: dict[str, R],
        directory: Path,
        wanted: R,
        fill: Callable[[Path], Awaitable[None]],
    ) -> R:
        try:
            await threads.call(directory.mkdir, 0o700)
        except OSError as error:
            if isinstance(error, FileExistsError):
                raise AlreadyExists(f"{directory} is there, and cannot be used; the log says why") from error
            raise of_system(error, f"{directory} cannot be made: {error.strerror}") from error
        try:
            await self._record(known, directory, wanted)
            await threads.call(_open_data, directory)
            await fill(disk_of(directory))
            ready = msgspec.structs.replace(wanted, step=VolumeStep.READY)
            await self._record(known, directory, ready)
        except BaseException as error:
            # Not to be seen by anybody, also where it cannot be taken away now.
            known[wanted.id] = msgspec.structs.replace(wanted, step=VolumeStep.REMOVING)
            await roll_back(f"{wanted.id}, half-made,", self._clear(known, directory, wanted.id))
            if isinstance(error, OSError):
                raise of_system(error, f"{wanted.id} cannot be made: {error.strerror}") from error
            raise
        return ready

    async def _record(self, known: dict[str, R], directory: Path, record: R) -> None:
        try:
            await threads.call(records.save, directory, record)
        except OSError as error:
            raise of_system(error, f"the record of {record.id} cannot be kept: {error.strerror}") from error
        known[record.id] = record

    def _original(self, origin: Origin) -> VolumeRecord | SnapshotRecord:
        return self.volume(origin.id) if origin.kind == "volume" else self.snapshot(origin.id)

    async def _copy(self, origin: Origin, target: Path, size: int) -> None:
        if origin.kind == "snapshot":
            async with self._turns.of(f"snapshot {origin.id}"), self._copies:
                self.snapshot(origin.id)
                source = disk_of(self._kept(origin.id))
                with _opened(source) as file:
                    await copying.copy(file, target, size)
            return
        async with self._turns.of(origin.id), self._copies:
            if self.volume(origin.id).size > size:
                raise Unavailable(f"volume {origin.id} has grown meanwhile, and would be cut off: try again")
            source = disk_of(self.directory(origin.id))
            with _opened(source) as file:
                if await threads.call(_lock, file):
                    await copying.copy(file, target, size)
                else:
                    await self._copy_used(origin.id, source, file, target, size)

    async def _copy_used(self, volume_id: str, source: Path, file: int, target: Path, size: int) -> None:
        """Copy what somebody writes to: as it is at one moment, as after a loss of power."""
        async with freezing.frozen(source) as still:
            if await copying.clone(file, target, size):
                return
            if not still:
                raise FailedPrecondition(
                    f"volume {volume_id} is in use, and the file system below {self._root} cannot copy "
                    "at one moment what is written to (XFS and Btrfs can): end the pod that uses it first"
                )
            await copying.copy(file, target, size)

    @asynccontextmanager
    async def _held(self, disk: Path, what: str) -> AsyncIterator[None]:
        """Have a disk that nobody else can begin to use. Raises FailedPrecondition when somebody does."""
        with _opened(disk) as file:
            until = time.monotonic() + _BUSY_TIME
            # What was just unmounted lets go of its loop device a moment later.
            while not await threads.call(_lock, file):
                if time.monotonic() > until:
                    raise FailedPrecondition(f"{what} is in use; remove the pods that use it first")
                await asyncio.sleep(_BUSY_STEP)
            yield

    def _load(self) -> None:
        self._volumes.update(_recovered(self._root / "volumes", VolumeRecord))
        self._snapshots.update(_recovered(self._root / "snapshots", SnapshotRecord))
        for volume in self._volumes.values():
            freezing.thaw(disk_of(self.directory(volume.id)))


def rounded(size: int) -> int:
    """A size that a volume can have, at least as many bytes. Raises InvalidArgument."""
    found = -(-max(size, 0) // _UNIT) * _UNIT
    if not LEAST <= found <= MOST:
        raise InvalidArgument(f"a volume has {LEAST >> 20} MiB to {MOST >> 40} TiB, not {size} bytes")
    return found


def _ready(known: dict[str, R]) -> list[R]:
    return [known[one] for one in sorted(known) if known[one].step is VolumeStep.READY]


def _same(found: VolumeRecord, wanted: VolumeRecord, least: int) -> VolumeRecord:
    """What a repeated call finds. Raises AlreadyExists for another volume."""
    kinds = [(one.name, one.origin, one.content, one.whole) for one in (found, wanted)]
    if kinds[0] != kinds[1] or found.size < least:
        raise AlreadyExists(f"volume {wanted.name!a} exists, and is another one, of {found.size} bytes")
    return found


def _open_data(directory: Path) -> None:
    """The directory that pods may see, so its mode is not the one of what is above it."""
    data = records.data_of(directory)
    data.mkdir()
    data.chmod(0o755)


def _empty(disk: Path, size: int) -> None:
    descriptor = os.open(disk, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def _stretch(disk: Path, size: int) -> None:
    if disk.stat().st_size < size:
        os.truncate(disk, size)


def _recovered(top: Path, kind: type[R]) -> dict[str, R]:
    """Take over what is in a directory, or finish its removal. Raises OSError."""
    known: dict[str, R] = {}
    privacy.make_private(top)
    for directory in sorted(top.iterdir()):
        record: R | None = None
        try:
            record = records.load(directory, kind)
            if record is None or record.step is not VolumeStep.READY:
                remove_tree(directory)
                continue
            _stretch(disk_of(directory), record.size)
            known[record.id] = record
        except (DataLoss, OSError) as error:
            # It is kept for a person to look at: a damaged record does not mean damaged data.
            log.error("%s is left alone: %s", directory, error)
            if record is not None and record.step is not VolumeStep.READY:
                known[record.id] = record
    return known


@contextmanager
def claimed(disk: Path, what: str) -> Iterator[int]:
    """An open disk that nobody else uses, nor begins to while this file is open anywhere.

    Raises FailedPrecondition.
    """
    with _opened(disk) as file:
        if not _lock(file):
            raise FailedPrecondition(f"{what} is in use by a pod in a VM, or being copied; try again later")
        yield file


@contextmanager
def _opened(disk: Path) -> Iterator[int]:
    try:
        file = os.open(disk, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(f"the disk {disk} cannot be used: {error.strerror}") from error
    try:
        yield file
    finally:
        os.close(file)


def _lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
