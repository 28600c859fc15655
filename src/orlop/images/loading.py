"""Images and file systems that come in as a stream of bytes, for machines without a registry."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import FileIO
from pathlib import Path

import msgspec

from orlop.errors import DataLoss, InvalidArgument, ResourceExhausted
from orlop.host import scratch, threads
from orlop.images import archives, documents, inflate, reference
from orlop.images.archives import FileSource, Span
from orlop.images.documents import Descriptor, Manifest, digest_of
from orlop.images.model import Image, ImageConfigOci
from orlop.images.pull import Packed
from orlop.images.store import ImageStore
from orlop.value import UNREADABLE

MAX_ARCHIVE = 256 << 30
"""Bytes that an archive may have, packed or unpacked. Mostly the disk ends before that."""

MAX_ARRIVING = 4
"""Archives that may come in at one time: each takes disk space before anything is known of it."""

_OTHER_PACKING = (b"BZh", b"\xfd7zXZ")


class Loader:
    """Takes archives into a store."""

    def __init__(self, store: ImageStore) -> None:
        self._store = store
        self._arriving = asyncio.BoundedSemaphore(MAX_ARRIVING)

    async def load(self, data: AsyncIterator[bytes], name: str = "") -> tuple[Image, ...]:
        """Take the images of an archive, all of them or none. ``name`` is one more for one that is alone.

        Raises DataLoss, InvalidArgument, FailedPrecondition (another platform) or ResourceExhausted.
        """
        called = (reference.parse(name),) if name else ()
        async with self._received(data) as path:
            source, images = await threads.call(archives.read, path)
            if called and len(images) > 1:
                raise InvalidArgument(
                    f"the archive holds {len(images)} images: load it without the name {name}"
                )
            named = [Packed((*one.names, *called), one.manifest) for one in images]
            return await self._store.unpack(source, named)

    async def import_tree(self, data: AsyncIterator[bytes], name: str = "", settings: bytes = b"") -> Image:
        """Make an image of one layer of the archive of a file system.

        ``settings`` is the ``config`` of an image configuration (OCI image-spec, config.md) in JSON: what
        containers of it run. Raises what :meth:`load` raises.
        """
        called = (reference.parse(name),) if name else ()
        async with self._received(data) as path:
            layer, diff_id = await threads.call(_described, path)
            document = _configuration(settings, diff_id)
            config = Descriptor(digest=digest_of(document), size=len(document))
            source = FileSource(path, {diff_id: layer}, {config.digest: document})
            manifest = Manifest(config, (Descriptor(digest=diff_id, size=layer.size),))
            (image,) = await self._store.unpack(source, [Packed(called, manifest)])
            return image

    async def add_layer(
        self, base: str, data: AsyncIterator[bytes], config: ImageConfigOci, name: str = ""
    ) -> Image:
        """Make an image of the layers of ``base`` and one more, the archive ``data``, with that ``config``.

        Raises NotFound for a base that is not here, and what :meth:`load` raises.
        """
        called = (reference.parse(name),) if name else ()
        owner = f"commit-{uuid.uuid4().hex}"
        await self._store.use(base, owner)
        try:
            below = self._store.stack(base)
            async with self._received(data) as path:
                layer, diff_id = await threads.call(_described, path)
                document = documents.write_config(config, (*below, diff_id))
                described = Descriptor(digest=digest_of(document), size=len(document))
                source = FileSource(path, {diff_id: layer}, {described.digest: document})
                # Those below are here, and nobody asks how large their archives were.
                layers = (*(Descriptor(digest=one, size=0) for one in below), Descriptor(diff_id, layer.size))
                (image,) = await self._store.unpack(source, [Packed(called, Manifest(described, layers))])
                return image
        finally:
            await self._store.release(owner)

    @asynccontextmanager
    async def _received(self, data: AsyncIterator[bytes]) -> AsyncIterator[Path]:
        """A file with what came, without its compression, until the block ends."""
        layers = self._store.layers
        if self._arriving.locked():
            raise ResourceExhausted(f"{MAX_ARRIVING} archives are being loaded already; try again later")
        async with self._arriving, scratch.directory(layers.ingest, "load") as directory:
            path, plain = directory / "archive", directory / "plain"
            try:
                await _write(path, data)
                if await threads.call(_is_packed, path):
                    with plain.open("wb") as output:
                        await layers.expand(path, output.fileno(), limit=MAX_ARCHIVE)
                    await threads.call(path.unlink)
                    path = plain
            except OSError as error:
                raise ResourceExhausted(f"the archive cannot be stored: {error.strerror}") from error
            yield path


async def _write(path: Path, data: AsyncIterator[bytes]) -> None:
    size = 0
    with path.open("wb", buffering=0) as file:
        async for part in data:
            size += len(part)
            if size > MAX_ARCHIVE:
                raise ResourceExhausted(f"the archive has more than {MAX_ARCHIVE >> 30} GiB")
            await threads.call(_write_all, file, part)
    if not size:
        raise DataLoss("the archive is empty")


def _write_all(file: FileIO, part: bytes) -> None:
    view = memoryview(part)
    while view:
        view = view[file.write(view) :]


def _is_packed(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.read(8)
    if first.startswith(_OTHER_PACKING):
        raise InvalidArgument("the archive is packed with bzip2 or xz: unpack it first, or use gzip or zstd")
    return inflate.is_packed(first[:4])


def _described(path: Path) -> tuple[Span, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Span(0, path.stat().st_size), f"sha256:{digest}"


def _configuration(settings: bytes, diff_id: str) -> bytes:
    """Without a date: the same file system makes the same image."""
    try:
        config = msgspec.json.decode(settings or b"{}", type=dict[str, msgspec.Raw])
    except UNREADABLE as error:
        raise InvalidArgument(f"the settings of the image are not an object in JSON: {error}") from error
    own = documents.own_platform()
    return msgspec.json.encode(
        {
            "architecture": own.architecture,
            "os": own.os,
            "config": config,
            "rootfs": {"type": "layers", "diff_ids": [diff_id]},
        }
    )
