"""Small OCI images put together from files, and pushed over the distribution API.

Everything is reproducible: entries are sorted, owned by root and dated to the epoch, so the same
files make the same digests on every machine.
"""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import os
import tarfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from orlop.errors import Unavailable
from orlop.linux import architecture

LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
INDEX = "application/vnd.oci.image.index.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"


@dataclass(frozen=True)
class WrittenBlob:
    """Bytes with their media type."""

    media_type: str
    data: bytes

    @property
    def digest(self) -> str:
        """The digest that names the blob."""
        return "sha256:" + hashlib.sha256(self.data).hexdigest()

    def descriptor(self, **extra: Any) -> dict[str, Any]:
        """The blob's descriptor, with further fields."""
        return {"mediaType": self.media_type, "digest": self.digest, "size": len(self.data), **extra}


@dataclass(frozen=True)
class LayerContent:
    """A compressed layer and the digest of its tar."""

    blob: WrittenBlob
    diff_id: str


class LayerWriter:
    """Collects the entries of one layer."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[tarfile.TarInfo, bytes]] = {}

    def _put(self, path: str, kind: bytes, mode: int, data: bytes = b"", link: str = "") -> None:
        info = tarfile.TarInfo(path.strip("/"))
        info.type, info.mode, info.size, info.linkname = kind, mode, len(data), link
        self._entries[info.name] = (info, data)

    def directory(self, path: str, mode: int = 0o755, *, owner: int = 0) -> None:
        """A directory; ``owner`` is both user and group."""
        self._put(path, tarfile.DIRTYPE, mode)
        entry = self._entries[path.strip("/")][0]
        entry.uid = entry.gid = owner

    def file(self, path: str, data: bytes | str, mode: int = 0o644, *, date: int = 0) -> None:
        """A regular file, of a date in seconds since the epoch."""
        self._put(path, tarfile.REGTYPE, mode, data.encode() if isinstance(data, str) else data)
        self._entries[path.strip("/")][0].mtime = date

    def hard_link(self, path: str, target: str) -> None:
        """A second name of a file of this layer."""
        self._put(path, tarfile.LNKTYPE, 0o755, link=target.strip("/"))

    def symbolic_link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._put(path, tarfile.SYMTYPE, 0o777, link=target)

    def tree(self, root: Path, names: Iterable[str]) -> None:
        """Copy files, links and directories below ``root``, by relative name."""
        for name in names:
            source = root / name
            for path in [source, *(source.rglob("*") if source.is_dir() and not source.is_symlink() else ())]:
                relative = os.fspath(path.relative_to(root))
                if path.is_symlink():
                    self.symbolic_link(relative, os.fspath(path.readlink()))
                elif path.is_dir():
                    self.directory(relative)
                else:
                    self.file(relative, path.read_bytes(), path.stat().st_mode & 0o7777)

    def finish(self, compress: str = "gzip") -> LayerContent:
        """The layer; hard links come after their targets."""
        order = sorted(
            self._entries.values(), key=lambda entry: (entry[0].type == tarfile.LNKTYPE, entry[0].name)
        )
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for info, data in order:
                archive.addfile(info, io.BytesIO(data))
        raw = buffer.getvalue()
        diff_id = "sha256:" + hashlib.sha256(raw).hexdigest()
        if compress == "zstd":
            import zstandard

            return LayerContent(WrittenBlob(LAYER_ZSTD, zstandard.ZstdCompressor().compress(raw)), diff_id)
        return LayerContent(WrittenBlob(LAYER_GZIP, gzip.compress(raw, 6, mtime=0)), diff_id)


@dataclass(frozen=True)
class WrittenImage:
    """An image for one platform. ``history`` says of each layer what made it; without, nothing does."""

    layers: tuple[LayerContent, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    architecture: str = field(default_factory=lambda: architecture.own().debian)
    history: tuple[str, ...] = ()

    def config(self) -> WrittenBlob:
        """The image's configuration."""
        document: dict[str, Any] = {
            "created": "2024-01-01T00:00:00Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": dict(self.settings),
            "rootfs": {"type": "layers", "diff_ids": [layer.diff_id for layer in self.layers]},
        }
        if self.history:
            made = {"created": document["created"]}
            document["history"] = [made | {"created_by": one} for one in self.history]
        return WrittenBlob(CONFIG, json.dumps(document).encode())

    def manifest(self) -> WrittenBlob:
        """The image's manifest."""
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config().descriptor(),
            "layers": [layer.blob.descriptor() for layer in self.layers],
        }
        return WrittenBlob(MANIFEST, json.dumps(document).encode())


def index(images: Iterable[WrittenImage]) -> WrittenBlob:
    """A multi-platform index."""
    manifests = [
        image.manifest().descriptor(platform={"os": "linux", "architecture": image.architecture})
        for image in images
    ]
    return WrittenBlob(
        INDEX, json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests}).encode()
    )


class Pusher:
    """A client of one plain-http registry, just enough to fill it. Blocks; one thread at a time."""

    def __init__(self, address: str) -> None:
        self._connection = http.client.HTTPConnection(address, timeout=60)

    def _call(
        self, method: str, url: str, body: bytes | None = None, kind: str = "", *, ok: tuple[int, ...]
    ) -> str:
        self._connection.request(method, url, body=body, headers={"Content-Type": kind} if kind else {})
        answer = self._connection.getresponse()
        text = answer.read()
        if answer.status not in ok:
            raise Unavailable(f"the registry answered {answer.status} to {method} {url}: {text[:300]!r}")
        return answer.headers.get("Location", "") if answer.status != 404 else "absent"

    def _blob(self, repository: str, blob: WrittenBlob) -> None:
        if self._call("HEAD", f"/v2/{repository}/blobs/{blob.digest}", ok=(200, 404)) != "absent":
            return
        place = urlsplit(self._call("POST", f"/v2/{repository}/blobs/uploads/", b"", ok=(202,)))
        url = (
            f"{place.path}?{place.query}&digest={blob.digest}"
            if place.query
            else f"{place.path}?digest={blob.digest}"
        )
        self._call("PUT", url, blob.data, "application/octet-stream", ok=(201,))

    def _manifest(self, repository: str, reference: str, blob: WrittenBlob) -> None:
        self._call("PUT", f"/v2/{repository}/manifests/{reference}", blob.data, blob.media_type, ok=(201,))

    def push(self, repository: str, tags: Iterable[str], *images: WrittenImage) -> str:
        """Push one image, or several as an index, under the tags; the digest it got."""
        for image in images:
            for blob in (image.config(), *(layer.blob for layer in image.layers)):
                self._blob(repository, blob)
        top = images[0].manifest()
        if len(images) > 1:
            for image in images:
                self._manifest(repository, image.manifest().digest, image.manifest())
            top = index(images)
        for tag in tags:
            self._manifest(repository, tag, top)
        return top.digest
