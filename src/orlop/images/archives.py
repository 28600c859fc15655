"""Images in a file: the archives of ``docker save``, and of OCI layouts (OCI image-spec, image-layout.md).

Only what lists the content is read here; layers are parts of the file, which go where pulled ones go. All
of it comes from outside: how much is read, and how many entries there are, is bounded, and nothing is ever
unpacked to a path that the archive names.
"""

from __future__ import annotations

import hashlib
import os
import posixpath
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from orlop.errors import DataLoss, FailedPrecondition, InvalidArgument, ResourceExhausted
from orlop.host import threads
from orlop.images import documents, inflate
from orlop.images import reference as references
from orlop.images.documents import MAX_DOCUMENT, MAX_LAYERS, Descriptor, Manifest, Platform, digest_of
from orlop.images.pull import Packed
from orlop.images.reference import Reference
from orlop.images.skopeo import Blob
from orlop.images.tarstream import ArchiveError, TarReader
from orlop.value import UNREADABLE

_T = TypeVar("_T")

MAX_ENTRIES = 10_000
MAX_READ = 32 << 20
"""Bytes of headers and extended headers that are read of one archive."""
MAX_IMAGES = 256
MAX_LINKS = 4

BLOBS = "blobs/sha256/"
FULL_NAME = "io.containerd.image.name"
NAME = "org.opencontainers.image.ref.name"


class Span(NamedTuple):
    """A part of a file, in bytes."""

    offset: int
    size: int


class _DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    config: str
    layers: tuple[str, ...]
    repo_tags: tuple[str, ...] | None = None


class _LayoutEntry(msgspec.Struct, frozen=True, rename="camel"):
    digest: str
    size: int
    media_type: str = ""
    platform: Platform | None = None
    annotations: dict[str, str] | None = None


class _LayoutIndex(msgspec.Struct, frozen=True, rename="camel"):
    manifests: tuple[_LayoutEntry, ...]


class _Skimming:
    """A :class:`~orlop.images.tarstream.Source` over a file, which passes over what the entries hold."""

    def __init__(self, descriptor: int, size: int) -> None:
        self._descriptor = descriptor
        self._size = size
        self._left = MAX_READ
        self.position = 0

    def read(self, size: int) -> bytes:
        self._left -= size
        if self._left < 0:
            raise ArchiveError(f"more than {MAX_READ >> 20} MiB of it only say what it holds")
        data = os.pread(self._descriptor, size, self.position)
        self.position += len(data)
        return data

    def chunks(self, size: int) -> Iterator[memoryview]:
        self.position += size
        if self.position > self._size:
            raise ArchiveError("the archive ends inside a file")
        return iter(())


class FileSource:
    """Blobs that are parts of the file at ``path``, by digest; ``documents`` are those that are not."""

    def __init__(self, path: Path, blobs: Mapping[str, Span], documents: Mapping[str, bytes]) -> None:
        self._path = path
        self._blobs = blobs
        self._documents = documents

    async def open(self, name: str) -> int:
        """There is one file."""
        return 0

    async def blob(self, name: str, image: int, what: Descriptor) -> Blob:
        """The file, open where the blob begins."""
        span = self._blobs.get(what.digest)
        if span is None or span.size != what.size:
            raise DataLoss(f"the archive lacks the blob {what.digest} of {name}, or has it in another size")
        descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        os.lseek(descriptor, span.offset, os.SEEK_SET)
        return Blob(descriptor, 0)

    async def finish(self, name: str, blob: Blob) -> None:
        """The blob has been whole from the beginning."""

    async def read(self, name: str, image: int, what: Descriptor) -> bytes:
        """A small blob, checked against its digest."""
        if what.digest in self._documents:
            return self._documents[what.digest]
        if what.size > MAX_DOCUMENT:
            raise ResourceExhausted(f"the configuration of {name} is larger than {MAX_DOCUMENT >> 20} MiB")
        blob = await self.blob(name, image, what)
        with os.fdopen(blob.descriptor, "rb") as file:
            data = await threads.call(file.read, what.size)
        if digest_of(data) != what.digest:
            raise DataLoss(f"the configuration of {name} in the archive does not match its digest")
        return data


def read(path: Path) -> tuple[FileSource, tuple[Packed, ...]]:
    """The images of the archive at ``path``, and where their blobs come from.

    Raises DataLoss for what is no such archive, InvalidArgument for names, ResourceExhausted, and
    FailedPrecondition for another platform.
    """
    archive = _Archive(path)
    return FileSource(path, archive.blobs, {}), archive.images


class _Archive:
    """What an archive holds."""

    def __init__(self, path: Path) -> None:
        self._files: dict[str, Span] = {}
        self._links: dict[str, str] = {}
        self.blobs: dict[str, Span] = {}
        self._digests: dict[Span, str] = {}
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self._index()
            self.images = self._listed()
        finally:
            os.close(self._descriptor)

    def _index(self) -> None:
        source = _Skimming(self._descriptor, os.fstat(self._descriptor).st_size)
        try:
            for entry in TarReader(source, max_entries=MAX_ENTRIES):
                name = posixpath.normpath(os.fsdecode(entry.name)).lstrip("/")
                if entry.kind == b"0" and entry.sparse is None:
                    self._files[name] = Span(source.position, entry.stored)
                elif entry.kind in b"12":
                    link = os.fsdecode(entry.link)
                    base = posixpath.dirname(name) if entry.kind == b"2" else ""
                    self._links[name] = posixpath.normpath(posixpath.join(base, link)).lstrip("/")
        except ArchiveError as error:
            raise DataLoss(f"this is no archive of images, or it is damaged: {error}") from error
        for name, span in self._files.items():
            if name.startswith(BLOBS):
                self.blobs["sha256:" + name.removeprefix(BLOBS)] = span

    def _listed(self) -> tuple[Packed, ...]:
        # What `docker save` makes today is both, and only this list has all of its names.
        if "manifest.json" in self._files:
            listed = self._decoded("manifest.json", tuple[_DockerImage, ...])
            images = [self._docker_image(one) for one in listed[: MAX_IMAGES + 1]]
        elif "index.json" in self._files:
            images = self._layout_images(self._decoded("index.json", _LayoutIndex).manifests)
        else:
            raise DataLoss(
                "this is no archive of images: it has neither a manifest.json, as `docker save` writes it, "
                "nor the index.json of an OCI layout; a file system is taken by `orlop import`"
            )
        if not images:
            raise DataLoss("the archive holds no image")
        if len(images) > MAX_IMAGES:
            raise ResourceExhausted(f"the archive holds more than {MAX_IMAGES} images; load them in parts")
        return tuple(images)

    def _docker_image(self, listed: _DockerImage) -> Packed:
        names = tuple(references.parse(tag) for tag in listed.repo_tags or ())
        what = str(names[0]) if names else listed.config
        if len(listed.layers) > MAX_LAYERS:
            raise ResourceExhausted(
                f"image {what} has {len(listed.layers)} layers; at most {MAX_LAYERS} are supported"
            )
        data = self._document(listed.config)
        config = Descriptor(digest=digest_of(data), size=len(data))
        self.blobs[config.digest] = self._find(listed.config)
        _, diff_ids = documents.read_config(data, what, documents.own_platform(), len(listed.layers))
        layers = zip(listed.layers, diff_ids, strict=True)
        return Packed(names, Manifest(config, tuple(self._layer(path, diff_id) for path, diff_id in layers)))

    def _layer(self, name: str, diff_id: str) -> Descriptor:
        """The layer in a file, which is named by anything and may be packed, though most are not."""
        span = self._find(name)
        digest = "sha256:" + posixpath.basename(name)
        if digest not in self.blobs or not references.is_digest(digest):
            packed = inflate.is_packed(os.pread(self._descriptor, 4, span.offset))
            digest = self._digest(span) if packed else diff_id
        self.blobs[digest] = span
        return Descriptor(digest=digest, size=span.size)

    def _digest(self, span: Span) -> str:
        """Counted once, however often the file is listed."""
        if span not in self._digests:
            found = hashlib.sha256()
            for offset in range(span.offset, span.offset + span.size, inflate.CHUNK):
                size = min(inflate.CHUNK, span.offset + span.size - offset)
                found.update(os.pread(self._descriptor, size, offset))
            self._digests[span] = "sha256:" + found.hexdigest()
        return self._digests[span]

    def _layout_images(self, entries: Sequence[_LayoutEntry]) -> list[Packed]:
        own = documents.own_platform()
        fitting = [entry for entry in entries if _fits(entry.platform, own)]
        if entries and not fitting:
            there = ", ".join(sorted({str(entry.platform) for entry in entries}))
            raise FailedPrecondition(f"the archive holds no image for this machine, {own}; there is {there}")
        return [self._layout_image(entry, own) for entry in fitting[: MAX_IMAGES + 1]]

    def _layout_image(self, entry: _LayoutEntry, own: Platform) -> Packed:
        names = _names(entry.annotations or {})
        what = str(names[0]) if names else entry.digest
        chosen = documents.choose(self._blob_document(entry.digest), what, own)
        if isinstance(chosen, Descriptor):
            chosen = documents.choose(self._blob_document(chosen.digest), what, own)
        if isinstance(chosen, Descriptor):
            raise documents.nested(what)
        return Packed(names, chosen)

    def _blob_document(self, digest: str) -> bytes:
        if not references.is_digest(digest):
            raise DataLoss(f"the archive names a blob by {digest[:80]!r}, not by sha256")
        data = self._document(BLOBS + digest.removeprefix("sha256:"))
        if digest_of(data) != digest:
            raise DataLoss(f"a manifest in the archive does not match its digest {digest}")
        return data

    def _find(self, name: str) -> Span:
        """Where a file is; links are followed inside the archive alone, as names."""
        path = posixpath.normpath(name).lstrip("/")
        for _ in range(MAX_LINKS):
            if path in self._files:
                return self._files[path]
            path = self._links.get(path, "")
        raise DataLoss(f"the archive lacks {name[:200]!r}, which it lists")

    def _document(self, name: str) -> bytes:
        span = self._find(name)
        if span.size > MAX_DOCUMENT:
            raise ResourceExhausted(f"{name} in the archive is larger than {MAX_DOCUMENT >> 20} MiB")
        return os.pread(self._descriptor, span.size, span.offset)

    def _decoded(self, name: str, kind: type[_T]) -> _T:
        try:
            return msgspec.json.decode(self._document(name), type=kind)
        except UNREADABLE as error:
            raise DataLoss(f"{name} in the archive is not a valid document: {error}") from error


def _fits(platform: Platform | None, own: Platform) -> bool:
    # Whoever writes a layout of one image need not say what it is made for; its configuration does.
    return platform is None or (platform.os, platform.architecture) in ((own.os, own.architecture), ("", ""))


def _names(annotations: dict[str, str]) -> tuple[Reference, ...]:
    """What a layout calls an image: a complete name, or only a tag, which names nothing."""
    for key in (FULL_NAME, NAME):
        name = annotations.get(key, "")
        if name and (key == FULL_NAME or "/" in name or ":" in name):
            try:
                return (references.parse(name),)
            except InvalidArgument as error:
                raise InvalidArgument(f"the archive has an image of no usable name: {error}") from error
    return ()
