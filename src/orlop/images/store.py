"""The images of this node: what the CRI image service and the pods ask for.

Reading (:meth:`ImageStore.list`, :meth:`ImageStore.status`) is answered from memory. Changes go to disk
first (:mod:`orlop.images.records`). A layer's file stays as long as an image lists it, a container
uses it, or a pull holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from orlop.config import ImageConfig
from orlop.errors import InvalidArgument, NotFound, ResourceExhausted, Unavailable
from orlop.host import threads
from orlop.host.tasks import Tasks, end, uncancelled
from orlop.images import reference as references
from orlop.images.layers import LayerStore
from orlop.images.model import FsInfo, Image, PullProgress, RegistryAuth
from orlop.images.pull import Packed, Progress, Puller, Taken
from orlop.images.records import ImageRecord, Records, UseRecord, boot_id, sync
from orlop.images.reference import Reference
from orlop.images.skopeo import BlobSource

log = logging.getLogger(__name__)

UNFINISHED_KEPT = 3600.0

T = TypeVar("T")

Noted = tuple[Taken, tuple[str, ...], tuple[str, ...]]
"""An image that is to be noted, its tags and its digests."""

_ID = re.compile(r"(?:sha256:)?([0-9a-f]{3,64})")
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")


async def _written(change: Callable[[T], None], value: T) -> None:
    """Change a file, to the end: a cancelled caller's write must not come after the lock was given up."""
    await threads.call(change, value)


def _tag(name: str) -> str:
    parsed = references.parse(name)
    if not parsed.tagged:
        raise InvalidArgument(f"{name} is a digest, which only its own image has: give a name with a tag")
    return parsed.tagged


class _Pull:
    """A pull that runs, and how many callers wait for it."""

    def __init__(self, task: asyncio.Task[Image], progress: Progress) -> None:
        self.task = task
        self.progress = progress
        self.waiters = 0


class ImageStore:
    """Images below ``root``. One instance per directory; :meth:`open` before anything else."""

    def __init__(self, root: Path, config: ImageConfig) -> None:
        self._config = config
        self._layers = LayerStore(root.absolute(), max_layer_mib=config.max_layer_mib)
        self._records = Records(root)
        self._puller = Puller(config, self._layers, self._layers.ingest)
        self._images: dict[str, ImageRecord] = {}
        self._uses: dict[str, UseRecord] = {}
        self._pulls: dict[tuple[str, RegistryAuth | None], _Pull] = {}
        self._pulling = Tasks()
        self._syncing = Tasks()
        # Held from the reading of a record until its file is written: what two callers change at once must
        # keep both changes, and a file must not be written after it was deleted. One lock for all records,
        # since a name that moves changes two of them; the files are small.
        self._changing = asyncio.Lock()
        self._boot = boot_id()

    async def open(self) -> None:
        """Load what is there and clear what a killed daemon or a crashed machine left half-made."""
        await threads.call(self._load)
        for record in self._images.values():
            if record.unsettled:
                self._sync_later(record)

    async def close(self) -> None:
        """End the pulls that run and wait until all is on disk. Idempotent."""
        await end(*(pull.task for pull in self._pulls.values()))
        # What is cancelled before it was noted is synced again by the next daemon.
        await self._syncing.close()

    async def pull(
        self,
        reference: str,
        auth: RegistryAuth | None = None,
        progress: Callable[[PullProgress], None] | None = None,
    ) -> Image:
        """Bring an image here, or join the pull of the same name that already runs.

        ``progress`` is called from the event loop, some times a second at most. When the last caller
        is cancelled, the pull stops; whole layers stay for the next try. Raises InvalidArgument,
        NotFound, Unauthenticated, PermissionDenied, FailedPrecondition (another platform),
        ResourceExhausted (disk, bounds), DataLoss (digests) or Unavailable.
        """
        parsed = references.parse(reference)
        key = (str(parsed), auth)
        pull = self._pulls.get(key)
        if pull is None:
            state = Progress(key[0])
            work = self._pulling.spawn(self._pull(parsed, auth, state), f"the pull of {key[0]}", awaited=True)
            pull = _Pull(work, state)
            self._pulls[key] = pull
            pull.task.add_done_callback(lambda task: self._forget(key, task))
        if progress is not None:
            pull.progress.listeners.append(progress)
        pull.waiters += 1
        try:
            return await asyncio.shield(pull.task)
        except asyncio.CancelledError:
            if pull.waiters == 1 and not pull.task.done():
                self._pulls.pop(key, None)
                await end(pull.task)
            raise
        finally:
            pull.waiters -= 1
            if progress is not None:
                pull.progress.listeners.remove(progress)

    def list(self) -> list[Image]:
        """All images, in the order they were pulled."""
        return [self._image(record) for record in sorted(self._images.values(), key=lambda r: r.pulled_at)]

    def status(self, reference_or_id: str) -> Image | None:
        """The image of that name, digest or id (or a unique beginning of the id); None if it is not here."""
        record = self._find(reference_or_id)
        return None if record is None else self._image(record)

    async def remove(self, reference_or_id: str) -> None:
        """Forget an image with all its names. Not here is success. Layers in use stay until released."""
        async with self._changing:
            record = self._find(reference_or_id)
            if record is None:
                return
            del self._images[record.id]
            await _written(self._records.delete_image, record.id)
        await self._discard(record.diff_ids)

    async def tag(self, reference_or_id: str, name: str) -> Image:
        """Give an image one more name, which leaves the image that had it.

        Raises NotFound when the image is not here, InvalidArgument for what is no name with a tag.
        """
        tag = _tag(name)
        # Whole, even if the caller has gone: of two files that change, one would keep the name.
        return await uncancelled(self._tag(reference_or_id, tag))

    async def _tag(self, reference_or_id: str, tag: str) -> Image:
        async with self._changing:
            record = self._find(reference_or_id)
            if record is None:
                raise NotFound(f"image {reference_or_id} is not here; pull it first")
            named = msgspec.structs.replace(record, tags=tuple(sorted({*record.tags, tag})))
            await self._save(self._named({}, named, (tag,)))
        return self._image(named)

    async def untag(self, name: str, *, with_the_last: bool = False) -> tuple[Image, bool]:
        """Take a name away; the image as it was or is, and whether it was removed with its last name.

        Raises NotFound when no image has that name, InvalidArgument for what is no name with a tag.
        """
        tag = _tag(name)
        async with self._changing:
            record = next((one for one in self._images.values() if tag in one.tags), None)
            if record is None:
                raise NotFound(f"no image here is called {tag}")
            left = tuple(one for one in record.tags if one != tag)
            removed = with_the_last and not left
            if removed:
                del self._images[record.id]
                await _written(self._records.delete_image, record.id)
            else:
                record = msgspec.structs.replace(record, tags=left)
                await self._save({record.id: record})
        if removed:
            await self._discard(record.diff_ids)
        return self._image(record), removed

    async def fs_info(self) -> FsInfo:
        """The space that the layers take."""
        used, inodes = await threads.call(self._layers.usage)
        return FsInfo(
            mountpoint=str(self._layers.directory),
            used_bytes=used,
            inodes=inodes,
            timestamp=time.time_ns(),
        )

    async def use(self, image_id: str, owner: str) -> Image:
        """Keep an image's layers for ``owner`` (a container's id), across restarts, until :meth:`release`.

        Idempotent. An owner may use several images. Raises NotFound when the image is not here.
        """
        if not _OWNER.fullmatch(owner):
            raise InvalidArgument(f"{owner!r} cannot be the owner of an image")
        async with self._changing:
            record = self._find(image_id)
            if record is None:
                raise NotFound(f"image {image_id} is not here; pull it first")
            before = self._uses.get(owner)
            diff_ids = record.diff_ids if before is None else (*before.diff_ids, *record.diff_ids)
            use = UseRecord(owner=owner, image_id=record.id, diff_ids=tuple(dict.fromkeys(diff_ids)))
            self._uses[owner] = use
            await _written(self._records.save_use, use)
        return self._image(record)

    async def release(self, owner: str) -> None:
        """Let go of what ``owner`` used. Idempotent. Layers that nothing needs any more are removed."""
        async with self._changing:
            use = self._uses.pop(owner, None)
            if use is None:
                return
            await _written(self._records.delete_use, owner)
        await self._discard(use.diff_ids)

    async def reconcile(self, owners: Collection[str]) -> None:
        """After a restart: release whatever belongs to none of ``owners``."""
        for owner in set(self._uses) - set(owners):
            await self.release(owner)

    async def collect(self, *, unfinished_for: float = UNFINISHED_KEPT) -> int:
        """Remove the layers that nothing needs; returns the bytes freed.

        What a pull that broke off has left stays for ``unfinished_for`` seconds, for the next try.
        """
        older = await threads.call(self._layers.older, time.time() - unfinished_for)
        return await self._discard(older)

    async def _discard(self, diff_ids: Collection[str]) -> int:
        """Remove those layers that nothing needs; returns the bytes freed."""
        freed = 0
        for diff_id in dict.fromkeys(diff_ids):
            # No await between the question and the rename: a pull that just found the layer holds it.
            if diff_id in self._needed():
                continue
            grave = self._layers.bury(diff_id)
            if grave is not None:
                freed += grave.stat().st_blocks * 512
                await threads.call(grave.unlink, missing_ok=True)
        return freed

    def _needed(self) -> set[str]:
        users: list[ImageRecord | UseRecord] = [*self._images.values(), *self._uses.values()]
        return {diff_id for user in users for diff_id in user.diff_ids} | set(self._puller.held)

    def stack(self, image_id: str) -> tuple[str, ...]:
        """The digests of an image's unpacked layers, bottom first. Raises NotFound."""
        record = self._find(image_id)
        if record is None:
            raise NotFound(f"image {image_id} is not here; pull it first")
        return record.diff_ids

    async def unpack(self, source: BlobSource, packed: Sequence[Packed]) -> tuple[Image, ...]:
        """Take the images of an archive, all of them or none. Names that others had move to them.

        Raises DataLoss, FailedPrecondition (another platform), ResourceExhausted (disk, bounds).
        """
        async with self._room("the archive's images"):
            taken = await self._puller.unpack(source, packed)
            try:
                # Whole, even if the caller has gone: half of it would come back after a restart.
                records = await uncancelled(
                    self._record(
                        [
                            (image, tuple(name.tagged for name in one.names if name.tagged), ())
                            for image, one in zip(taken, packed, strict=True)
                        ]
                    )
                )
            finally:
                for image in taken:
                    self._puller.release(image)
        for record in records:
            self._sync_later(record)
        await self.collect()
        return tuple(self._image(self._images.get(record.id, record)) for record in records)

    @property
    def layers(self) -> LayerStore:
        """Where its layers are."""
        return self._layers

    async def _pull(self, reference: Reference, auth: RegistryAuth | None, progress: Progress) -> Image:
        async with self._room(f"image {reference}"):
            pulled = await self._puller.pull(reference, auth, progress)
            try:
                tags = (reference.tagged,) if reference.tagged else ()
                digests = (reference.at(pulled.digest),)
                # Whole, even if nobody waits any more: half of it would come back after a restart.
                (record,) = await uncancelled(self._record([(pulled.image, tags, digests)]))
            finally:
                self._puller.release(pulled.image)
        self._sync_later(record)
        await self.collect()
        return self._image(record)

    @asynccontextmanager
    async def _room(self, what: str) -> AsyncIterator[None]:
        """Around what takes space; after a failure as little as possible is left that takes it."""
        try:
            yield
        except (ResourceExhausted, OSError) as error:
            # Perhaps for lack of space: what is only kept in case of a retry makes room for it.
            await self.collect(unfinished_for=0)
            if isinstance(error, ResourceExhausted):
                raise
            raise ResourceExhausted(f"{what} cannot be stored: {error.strerror}") from error

    async def _record(self, noted: Sequence[Noted]) -> tuple[ImageRecord, ...]:
        """Note images under their names, which leave the images that had them before: all or none."""
        changed: dict[str, ImageRecord] = {}
        async with self._changing:
            for image, tags, digests in noted:
                known = changed.get(image.id) or self._images.get(image.id)
                sizes = [self._layers.size(diff_id) for diff_id in dict.fromkeys(image.diff_ids)]
                record = ImageRecord(
                    id=image.id,
                    config=image.config,
                    diff_ids=image.diff_ids,
                    tags=tuple(sorted({*tags, *(known.tags if known else ())})),
                    digests=tuple(sorted({*digests, *(known.digests if known else ())})),
                    size=sum(sizes),
                    pulled_at=time.time_ns(),
                    unsettled=self._boot,
                )
                self._named(changed, record, tags)
            await self._save(changed)
        return tuple(changed[image.id] for image, _, _ in noted)

    def _named(
        self, changed: dict[str, ImageRecord], record: ImageRecord, tags: Collection[str]
    ) -> dict[str, ImageRecord]:
        """Add an image that has ``tags`` now, and those that had them before; the lock is held."""
        there = {**self._images, **changed}
        # The new holder of the name first: a crash in between leaves it twice, and the later pull wins.
        changed[record.id] = record
        for other in there.values():
            if other.id != record.id and not set(tags).isdisjoint(other.tags):
                left = tuple(tag for tag in other.tags if tag not in tags)
                changed[other.id] = msgspec.structs.replace(other, tags=left)
        return changed

    async def _save(self, changed: dict[str, ImageRecord]) -> None:
        """Save images, by id: all of them or none, whoever waits for it. The lock is held."""

        async def save() -> None:
            await _written(self._records.save_images, tuple(changed.values()))
            self._images.update(changed)

        await uncancelled(save())

    def _sync_later(self, record: ImageRecord) -> None:
        """Sync an image's layers behind the caller's back, then note that they can be trusted."""
        with contextlib.suppress(Unavailable):  # the store is closing; the next daemon does it
            self._syncing.spawn(self._sync(record), f"sync of image {record.id}")

    async def _sync(self, record: ImageRecord) -> None:
        paths = [self._layers.path(diff_id) for diff_id in record.diff_ids]
        try:
            await threads.call(sync, paths)
            async with self._changing:
                current = self._images.get(record.id)
                if current is not None and current.unsettled:
                    await self._save({record.id: msgspec.structs.replace(current, unsettled="")})
        except OSError as error:
            log.warning("the layers of image %s cannot be synced: %s", record.id, error)

    def _load(self) -> None:
        self._layers.open()
        self._images, self._uses = self._records.load()
        for record in list(self._images.values()):
            lost = [diff_id for diff_id in record.diff_ids if not self._layers.path(diff_id).exists()]
            if lost or record.unsettled not in ("", self._boot):
                log.warning("image %s is not whole and is dropped: it must be pulled again", record.id)
                del self._images[record.id]
                self._records.delete_image(record.id)
        self._drop_older_names()
        # Layers that were written before this boot and never settled cannot be trusted.
        started = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
        needed = self._needed()
        for diff_id in self._layers.older(max(started, time.time() - UNFINISHED_KEPT)):
            if diff_id not in needed:
                self._layers.path(diff_id).unlink()

    def _drop_older_names(self) -> None:
        holders: dict[str, ImageRecord] = {}
        for record in sorted(self._images.values(), key=lambda r: r.pulled_at):
            for tag in record.tags:
                older = holders.get(tag)
                holders[tag] = record
                if older is not None:
                    older = self._images[older.id]
                    left = tuple(t for t in older.tags if t != tag)
                    self._images[older.id] = msgspec.structs.replace(older, tags=left)
                    self._records.save_images([self._images[older.id]])

    def _find(self, text: str) -> ImageRecord | None:
        with contextlib.suppress(InvalidArgument):
            parsed = references.parse(text)
            name = str(parsed)
            for record in self._images.values():
                if name in record.tags or name in record.digests:
                    return record
        match = _ID.fullmatch(text)
        if match is None:
            return None
        found = [r for i, r in self._images.items() if i.startswith("sha256:" + match[1])]
        return found[0] if len(found) == 1 else None

    def _image(self, record: ImageRecord) -> Image:
        return Image(
            id=record.id,
            repo_tags=record.tags,
            repo_digests=record.digests,
            size=record.size,
            config=record.config,
            layers=tuple(str(self._layers.path(diff_id)) for diff_id in record.diff_ids),
            pinned=any(fnmatch.fnmatchcase(t, p) for t in record.tags for p in self._config.pinned),
        )

    def _forget(self, key: tuple[str, RegistryAuth | None], task: asyncio.Task[Image]) -> None:
        pull = self._pulls.get(key)
        if pull is not None and pull.task is task:
            del self._pulls[key]
        if not task.cancelled():
            task.exception()
