"""One pull, from a name to layers that are here.

First the manifest, for this machine's platform; then the configuration, which names the unpacked
layers; then only the layers that are missing, a few at a time, each streaming from the registry into
its conversion. A layer that came whole stays, so a pull that broke off goes on from there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orlop.config import ImageConfig
from orlop.errors import OrlopError
from orlop.host.tasks import together
from orlop.images import documents, failures, skopeo
from orlop.images.documents import Descriptor, Manifest
from orlop.images.layers import LayerStore
from orlop.images.model import ImageConfigOci, PullProgress, RegistryAuth
from orlop.images.places import Places
from orlop.images.reference import Reference

log = logging.getLogger(__name__)

ATTEMPTS = 3
BACKOFF = 0.5
STREAMS = 3

_ARCHIVE = "an archive"
"""Where what is loaded comes from, among the registries that wait for a place."""


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """An image whose layers are here, and held."""

    id: str
    config: ImageConfigOci
    diff_ids: tuple[str, ...]


class Pulled(msgspec.Struct, frozen=True, kw_only=True):
    """What a pull found: ``digest`` is what the name stands for in the registry (maybe an index)."""

    digest: str
    image: Taken


class Packed(NamedTuple):
    """One image of an archive. ``names`` may be empty."""

    names: tuple[Reference, ...]
    manifest: Manifest


class Progress:
    """Adds up what the layers of one pull report, and tells whoever listens."""

    def __init__(self, reference: str) -> None:
        self._reference = reference
        self.listeners: list[Callable[[PullProgress], None]] = []
        self._sizes: dict[str, int] = {}
        self._read: dict[str, int] = {}
        self._done: set[str] = set()

    def begin(self, layers: list[Descriptor]) -> None:
        """The layers are known."""
        self._sizes = {layer.digest: layer.size for layer in layers}
        self._tell()

    def read(self, layer: Descriptor, count: int) -> None:
        """So many bytes of a layer have come."""
        self._read[layer.digest] = count
        self._tell()

    def done(self, layer: Descriptor) -> None:
        """A layer is here."""
        self._done.add(layer.digest)
        self.read(layer, layer.size)

    @property
    def bytes(self) -> int:
        """How many bytes of layers have come so far."""
        return sum(self._read.values())

    def _tell(self) -> None:
        if not self.listeners:
            return
        state = PullProgress(
            reference=self._reference,
            layers=len(self._sizes),
            layers_done=len(self._done),
            total_bytes=sum(self._sizes.values()),
            read_bytes=self.bytes,
        )
        for listener in self.listeners:
            listener(state)


class Puller:
    """Does pulls into one layer store; layers that several pulls want are fetched once."""

    def __init__(self, config: ImageConfig, layers: LayerStore, scratch: Path) -> None:
        self._config = config
        self._layers = layers
        self._scratch = scratch
        self._own = documents.own_platform()
        self._places = Places(config.max_parallel_pulls)
        self._locks: dict[str, asyncio.Lock] = {}
        self.held: dict[str, int] = {}

    async def pull(self, reference: Reference, auth: RegistryAuth | None, progress: Progress) -> Pulled:
        """Bring an image here. Its layers are held until :meth:`release` of it.

        Raises an OrlopError that names the image and the cause; tries again what may be passing.
        """
        async with self._places.taken(reference.domain, lambda: progress.bytes):
            for attempt in range(1, ATTEMPTS + 1):
                try:
                    return await self._attempt(reference, auth, progress)
                except OrlopError as error:
                    if attempt == ATTEMPTS or not failures.retryable(error):
                        raise
                    log.warning("pull of %s, attempt %d: %s", reference, attempt, error)
                    await asyncio.sleep(BACKOFF * 2 ** (attempt - 1))
        raise AssertionError("the last attempt returns or raises")

    async def unpack(self, source: skopeo.BlobSource, packed: Sequence[Packed]) -> tuple[Taken, ...]:
        """Bring the images of an archive here, all of them or none; they are held like a pull's."""
        taken: list[Taken] = []
        progress = Progress(_ARCHIVE)
        async with self._places.taken(_ARCHIVE, lambda: progress.bytes):
            try:
                for one in packed:
                    name = str(one.names[0]) if one.names else one.manifest.config.digest
                    taken.append(await self._take(name, source, 0, one.manifest, progress))
            except BaseException:
                for image in taken:
                    self.release(image)
                raise
        return tuple(taken)

    def release(self, image: Taken) -> None:
        """Let go of the layers of an image."""
        self._let_go(image.diff_ids)

    def _let_go(self, diff_ids: tuple[str, ...]) -> None:
        for diff_id in diff_ids:
            self.held[diff_id] -= 1
            if not self.held[diff_id]:
                del self.held[diff_id]

    async def _attempt(self, reference: Reference, auth: RegistryAuth | None, progress: Progress) -> Pulled:
        name = str(reference)
        arch = self._own.architecture
        async with skopeo.authenticated(self._config, reference, auth, self._scratch, arch) as tool:
            top = await tool.manifest(name, reference.digest)
            digest = documents.digest_of(top)
            chosen = documents.choose(top, name, self._own)
            exact = digest
            if isinstance(chosen, Descriptor):
                exact = chosen.digest
                inner = await tool.manifest(reference.at(exact), exact)
                chosen = documents.choose(inner, name, self._own)
                if isinstance(chosen, Descriptor):
                    raise documents.nested(name)
            async with tool.blobs(self._scratch) as source:
                handle = await source.open(reference.at(exact))
                image = await self._take(name, source, handle, chosen, progress)
        return Pulled(digest=digest, image=image)

    async def _take(
        self, name: str, source: skopeo.BlobSource, handle: int, manifest: Manifest, progress: Progress
    ) -> Taken:
        """What a manifest lists, from wherever its blobs come."""
        data = await source.read(name, handle, manifest.config)
        config, diff_ids = documents.read_config(data, name, self._own, len(manifest.layers))
        self._hold(diff_ids)
        try:
            await self._fetch_all(name, source, handle, manifest, diff_ids, progress)
            top_layer = await self._layers.repair(diff_ids, name=name)
        except BaseException:
            self._let_go(diff_ids)
            raise
        if top_layer:
            self._hold((top_layer,))
            diff_ids = (*diff_ids, top_layer)
        return Taken(id=manifest.config.digest, config=config, diff_ids=diff_ids)

    def _hold(self, diff_ids: tuple[str, ...]) -> None:
        for diff_id in diff_ids:
            self.held[diff_id] = self.held.get(diff_id, 0) + 1

    async def _fetch_all(
        self,
        name: str,
        source: skopeo.BlobSource,
        handle: int,
        manifest: Manifest,
        diff_ids: tuple[str, ...],
        progress: Progress,
    ) -> None:
        progress.begin(list(manifest.layers))
        streams = asyncio.Semaphore(STREAMS)

        async def fetch(layer: Descriptor, diff_id: str) -> None:
            async with self._locks.setdefault(diff_id, asyncio.Lock()), streams:
                if not self._layers.path(diff_id).exists():
                    await self._fetch(name, source, handle, layer, diff_id, progress)
                progress.done(layer)

        wanted = dict(zip(diff_ids, manifest.layers, strict=True))
        try:
            await together(*(fetch(layer, diff_id) for diff_id, layer in wanted.items()))
        finally:
            for diff_id in wanted:
                lock = self._locks.get(diff_id)
                if lock is not None and not lock.locked():
                    del self._locks[diff_id]

    async def _fetch(
        self,
        name: str,
        source: skopeo.BlobSource,
        handle: int,
        layer: Descriptor,
        diff_id: str,
        progress: Progress,
    ) -> None:
        blob = await source.blob(name, handle, layer)
        await self._layers.convert(
            blob.descriptor,
            layer,
            diff_id,
            name=name,
            finish=lambda: source.finish(name, blob),
            on_read=lambda count: progress.read(layer, count),
        )
