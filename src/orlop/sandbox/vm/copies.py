"""Copies of a pod's small volumes, in the memory of its guest, and how they stay what the host has.

A copy is made for the first container that mounts the volume, and goes with the last one. All that one
container needs is read in one go and told in one message: a message costs a guest as much as a volume does.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import msgspec

from orlop.errors import OrlopError
from orlop.host import threads
from orlop.host.tasks import Tasks
from orlop.host.watching import Watcher
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.files import HeldTable, HeldVolume
from orlop.sandbox.vm.idmaps import owned
from orlop.storage.snapshot import InMotion, NotCopied, read_volume
from orlop.wire import values as wire
from orlop.wire.hello import MANY_VOLUMES
from orlop.wire.messages import (
    Drop,
    DropAll,
    Fetch,
    Fill,
    FillAll,
)

log = logging.getLogger(__name__)

COPIED = ("copy", "file", "log")
"""Kinds of volumes that are copied."""

_TIMEOUT = 60.0
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


@dataclass(frozen=True)
class _Content:
    """What the host has: which directory or file the volume is (device and number), its name if it is a file,
    all that is in it, and a digest of that."""

    root: tuple[int, int]
    file: str
    entries: tuple[wire.VolumeEntry, ...]
    digest: str


_Read = _Content | NotCopied | InMotion | OSError


class Copies:
    """The small volumes of the pod ``name``, among those of the table ``held``.

    Who changes that has ``lock``, and so has who calls :meth:`hold`. ``limit`` is how many bytes one may
    have.
    """

    def __init__(
        self,
        agent: AgentClient,
        held: HeldTable,
        watcher: Watcher,
        lock: asyncio.Lock,
        *,
        name: str,
        limit: int,
    ) -> None:
        self._agent = agent
        self._held = held
        self._watcher = watcher
        self._lock = lock
        self._name = name
        self._limit = limit
        self._watches: dict[str, tuple[int, Callable[[], None]]] = {}
        self._stale: set[str] = set()
        self._changed = asyncio.Event()
        self._tasks = Tasks()

    async def hold(self, container_id: str, wanted: Sequence[HeldVolume]) -> set[str]:
        """Have the guest hold them for a container; returns which it holds. The others have to be shared.

        What it held before is brought up to date."""
        for one in wanted:
            if one.id in self._held:
                await self._update(one.id)
        new = tuple(one for one in wanted if one.id not in self._held)
        made = await self._make(new) if new else ()
        found = {one.id: one for one in made} | {
            one.id: self._held[one.id] for one in wanted if one.id in self._held
        }
        users = {
            one.id: (*(user for user in one.users if user != container_id), container_id)
            for one in found.values()
        }
        self._held.remember(*(msgspec.structs.replace(one, users=users[one.id]) for one in found.values()))
        return set(found)

    async def release(self, container_id: str) -> None:
        """A container is gone: so are the copies that it alone had. Idempotent."""
        async with self._lock:
            await self._release(container_id)

    async def _release(self, container_id: str) -> None:
        gone, kept = [], []
        for held in self._held.values():
            if container_id in held.users:
                users = tuple(user for user in held.users if user != container_id)
                if users:
                    kept.append(msgspec.structs.replace(held, users=users))
                else:
                    gone.append(held.id)
        self._held.remember(*kept)
        for volume_id in gone:
            self._forget(volume_id)
        if gone and not self._agent.closed:
            await self._drop(gone)
        self._held.forget(*gone)

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

    def adopt(self) -> None:
        """Keep in step what an earlier daemon had the guest hold."""
        for held in list(self._held.values()):
            if held.kind in COPIED:
                try:
                    self._watch(held)
                except OSError as error:
                    log.warning("volume %s is not updated any more: %s", held.path, error)
                self._mark(held.id)

    async def close(self) -> None:
        """Keep nothing in step any more; the guest goes on with what it has. Idempotent."""
        for volume_id in list(self._watches):
            self._forget(volume_id)
        await self._tasks.close()

    # To the guest

    async def _make(self, new: Sequence[HeldVolume]) -> tuple[HeldVolume, ...]:
        """Those of them that can be copied, now that the guest has them. Raises OrlopError."""
        try:
            contents = await self._contents(new)
            able = [(one, found) for one, found in contents if isinstance(found, _Content)]
            await self._send(able, new=True)
        except BaseException:
            for one in new:
                self._forget(one.id)
            raise
        for one, found in contents:
            if not isinstance(found, _Content):
                self._forget(one.id)
                log.info("volume %s is shared with its pod, not copied: %s", one.path, found)
        return tuple(_with(one, found) for one, found in able)

    async def _contents(self, wanted: Sequence[HeldVolume]) -> list[tuple[HeldVolume, _Read]]:
        """What the host has, watched from before it is read."""
        watched, failed = [], []
        for one in wanted:
            try:
                self._watch(one)
                watched.append(one)
            except OSError as error:
                failed.append((one, error))
        read = await threads.call(_read_all, [one.path for one in watched], self._limit)
        found: list[tuple[HeldVolume, _Read]] = [*failed]
        for one, content in zip(watched, read, strict=True):
            found.append((one, await self._settled(one) if isinstance(content, InMotion) else content))
        return found

    async def _settled(self, held: HeldVolume) -> _Read:
        """What a volume has become that changed while it was read, if it comes to rest."""
        for _ in range(_TRIES):
            await asyncio.sleep(_AGAIN)
            (found,) = await threads.call(_read_all, [held.path], self._limit)
            if not isinstance(found, InMotion):
                break
        return found

    async def _send(self, wanted: Iterable[tuple[HeldVolume, _Content]], *, new: bool = False) -> None:
        """Bring copies to these contents, ``new`` ones as many with one message as fit into it."""
        together = new and MANY_VOLUMES in self._agent.hello.features
        batch: list[Fill] = []
        size = count = 0
        for held, content in wanted:
            entries = tuple(owned(entry, held.uid_mappings, held.gid_mappings) for entry in content.entries)
            more = sum(len(entry.data) for entry in entries)
            if not together or more > _BATCH_BYTES or len(entries) > _BATCH_ENTRIES:
                await self._send_alone(held, entries)
                continue
            if batch and (size + more > _BATCH_BYTES or count + len(entries) > _BATCH_ENTRIES):
                await self._agent.call(FillAll(fills=tuple(batch)), _TIMEOUT)
                batch, size, count = [], 0, 0
            batch.append(Fill(id=held.id, entries=entries))
            size, count = size + more, count + len(entries)
        if batch:
            await self._agent.call(FillAll(fills=tuple(batch)), _TIMEOUT)

    async def _send_alone(self, held: HeldVolume, entries: tuple[wire.VolumeEntry, ...]) -> None:
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

    async def _drop(self, volumes: Sequence[str]) -> None:
        if MANY_VOLUMES in self._agent.hello.features:
            await self._agent.call(DropAll(ids=tuple(volumes)), _TIMEOUT)
        else:
            for volume_id in volumes:
                await self._agent.call(Drop(id=volume_id), _TIMEOUT)

    # In step

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
            self._tasks.spawn(self._keep_in_step(), f"the volumes of pod {self._name}")

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
            (found,) = await threads.call(_read_all, [held.path], self._limit)
            if isinstance(found, InMotion):
                found = await self._settled(held)
            if not isinstance(found, _Content):
                raise found
            # With another root it is not what was mounted: the host has taken that away.
            if found.digest != held.sent and found.root == (held.root or found.root):
                await self._send([(held, found)])
                self._held.remember(_with(held, found))
        except FileNotFoundError:
            log.debug("volume %s is gone from the host", held.path)
        except (NotCopied, InMotion, OSError, OrlopError) as error:
            log.warning("volume %s is not up to date in its pod: %s", held.path, error)
            if isinstance(error, InMotion | OrlopError):
                asyncio.get_running_loop().call_later(_LATER, self._mark, volume_id)


def _with(held: HeldVolume, content: _Content) -> HeldVolume:
    return msgspec.structs.replace(held, sent=content.digest, root=content.root, file=content.file)


def _read_all(paths: Sequence[str], limit: int) -> list[_Read]:
    found: list[_Read] = []
    for path in paths:
        try:
            found.append(_read(path, limit))
        except (NotCopied, InMotion, OSError) as error:
            found.append(error)
    return found


def _read(path: str, limit: int) -> _Content:
    root = Path(path).lstat()
    entries = read_volume(path, limit)
    return _Content(
        root=(root.st_dev, root.st_ino),
        file="" if stat.S_ISDIR(root.st_mode) else Path(path).name,
        entries=entries,
        digest=_digest(entries),
    )


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
