"""Images as an archive that other runtimes load: an OCI layout, and what ``docker load`` reads beside it.

The layers are packed anew from what is here, so that a saved image has another id than the one that was
pulled; saved again, it keeps it.
"""

from __future__ import annotations

import os
import tarfile
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from io import FileIO
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orlop.errors import InvalidArgument, ResourceExhausted
from orlop.host import scratch, threads
from orlop.images import reference
from orlop.images.archives import BLOBS, FULL_NAME, NAME
from orlop.images.documents import digest_of, write_config
from orlop.images.model import Image
from orlop.images.store import ImageStore
from orlop.images.tarstream import BLOCK

MAX_IMAGES = 64
CHUNK = 1 << 20

_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"
_INDEX = "application/vnd.oci.image.index.v1+json"


class _PackedLayer(NamedTuple):
    digest: str
    size: int


async def save(store: ImageStore, names: Sequence[str]) -> AsyncGenerator[bytes, None]:
    """The archive of images, in pieces, with the names they are asked for by; all names when by their ids.

    Raises NotFound, InvalidArgument, ResourceExhausted (disk), DataLoss.
    """
    if not 0 < len(names) <= MAX_IMAGES:
        raise InvalidArgument(f"name from one to {MAX_IMAGES} images to save")
    owner = f"save-{uuid.uuid4().hex}"
    try:
        images: dict[str, Image] = {}
        tags: dict[str, list[str]] = {}
        for name in names:
            image = await store.use(name, owner)
            images[image.id] = image
            tags.setdefault(image.id, []).extend(_tags(image, name))
        async with scratch.directory(store.layers.ingest, "save") as directory:
            saving = _Saving(store, directory / "layer")
            for image in images.values():
                async with aclosing(saving.image(image, tuple(dict.fromkeys(tags[image.id])))) as pieces:
                    async for piece in pieces:
                        yield piece
            yield saving.end()
    except OSError as error:
        raise ResourceExhausted(f"the images cannot be saved: {error.strerror}") from error
    finally:
        await store.release(owner)


def _tags(image: Image, name: str) -> tuple[str, ...]:
    try:
        called = str(reference.parse(name))
    except InvalidArgument:  # an id
        called = ""
    return (called,) if called in image.repo_tags else image.repo_tags


class _Saving:
    """Makes one archive. ``scratch`` is a file for one layer at a time: its size stands before it."""

    def __init__(self, store: ImageStore, scratch: Path) -> None:
        self._store = store
        self._scratch = scratch
        self._packed: dict[str, _PackedLayer] = {}
        self._written: set[str] = set()
        self._index: list[dict[str, Any]] = []
        self._list: list[dict[str, Any]] = []

    async def image(self, image: Image, tags: Sequence[str]) -> AsyncGenerator[bytes, None]:
        """The layers of an image that are not in the archive yet, and its documents."""
        for path in image.layers:
            if path not in self._packed:
                with self._scratch.open("w+b", buffering=0) as file:
                    async for piece in self._layer(path, file):
                        yield piece
        layers = [self._packed[path] for path in image.layers]
        yield self._documents(image, layers, tags)

    async def _layer(self, path: str, file: FileIO) -> AsyncIterator[bytes]:
        digest = await self._store.layers.pack(Path(path), file.fileno())
        size = os.fstat(file.fileno()).st_size
        self._packed[path] = _PackedLayer(digest, size)
        if digest in self._written:  # two layers of the same content in another order
            return
        self._written.add(digest)
        yield _header(_blob(digest), size)
        for offset in range(0, size, CHUNK):
            yield await threads.call(os.pread, file.fileno(), CHUNK, offset)
        yield bytes(-size % BLOCK)

    def _documents(self, image: Image, layers: Sequence[_PackedLayer], tags: Sequence[str]) -> bytes:
        config = write_config(image.config, [layer.digest for layer in layers])
        manifest = msgspec.json.encode(
            {
                "schemaVersion": 2,
                "mediaType": _MANIFEST,
                "config": _descriptor(_CONFIG, digest_of(config), len(config)),
                "layers": [_descriptor(_LAYER, *layer) for layer in layers],
            }
        )
        entry = _descriptor(_MANIFEST, digest_of(manifest), len(manifest))
        self._index += [{**entry, "annotations": {FULL_NAME: tag, NAME: tag}} for tag in tags] or [entry]
        self._list.append(
            {
                "Config": _blob(digest_of(config)),
                "RepoTags": tags,
                "Layers": [_blob(layer.digest) for layer in layers],
            }
        )
        return b"".join(self._document(data) for data in (config, manifest))

    def _document(self, data: bytes) -> bytes:
        digest = digest_of(data)
        if digest in self._written:
            return b""
        self._written.add(digest)
        return _file(_blob(digest), data)

    def end(self) -> bytes:
        """What lists the images, and the end of the archive."""
        index = {"schemaVersion": 2, "mediaType": _INDEX, "manifests": self._index}
        return b"".join(
            (
                _file("oci-layout", b'{"imageLayoutVersion":"1.0.0"}'),
                _file("index.json", msgspec.json.encode(index)),
                _file("manifest.json", msgspec.json.encode(self._list)),
                bytes(2 * BLOCK),
            )
        )


def _blob(digest: str) -> str:
    return BLOBS + digest.removeprefix("sha256:")


def _descriptor(kind: str, digest: str, size: int) -> dict[str, Any]:
    return {"mediaType": kind, "digest": digest, "size": size}


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.PAX_FORMAT)


def _file(name: str, data: bytes) -> bytes:
    return _header(name, len(data)) + data + bytes(-len(data) % BLOCK)
