"""What registries may send: documents, layers, errors."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

import msgspec
import zstandard

from orlop.errors import OrlopError
from orlop.images import convert, documents, failures, reference, repair
from orlop.images.erofs import ErofsWriter
from orlop.images.erofsread import ErofsReader, Inode
from orlop.images.inflate import CutOff, LayerStream
from orlop.images.tarstream import ArchiveError, TarReader, TooLarge, parse_pax, parse_time
from orlop.images.tree import Tree
from tests.fuzz.kit import target

LIMIT = 4 << 20
DIGEST = "sha256:" + "a" * 64
MANIFEST = {
    "schemaVersion": 2,
    "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 7},
    "layers": [{"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 9}],
}
INDEX = {
    "schemaVersion": 2,
    "manifests": [
        {"digest": DIGEST, "size": 7, "platform": {"os": "linux", "architecture": "amd64", "variant": ""}}
    ],
}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "User": "web",
        "Env": ["A=b"],
        "Cmd": "sh",
        "ExposedPorts": {"80/tcp": {}},
        "Labels": {"a": "b"},
    },
    "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
}
AMD64 = documents.Platform(architecture="amd64", os="linux")


def archive(kind: int = tarfile.PAX_FORMAT) -> bytes:
    """A layer with one of everything."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as tar:

        def add(name: str, what: bytes = tarfile.REGTYPE, data: bytes = b"", **fields: object) -> None:
            info = tarfile.TarInfo(name)
            info.type, info.size = what, len(data)
            for field, value in fields.items():
                setattr(info, field, value)
            tar.addfile(info, io.BytesIO(data))

        add("d", tarfile.DIRTYPE, mode=0o1777)
        add("d/f", data=b"hello", mode=0o4755, pax_headers={"mtime": "1.5", "SCHILY.xattr.user.a": "b"})
        add("n" * 80 + "/" + "n" * 80, data=b"long")
        add("link", tarfile.SYMTYPE, linkname="d/f")
        add("hard", tarfile.LNKTYPE, linkname="d/f")
        add("chr", tarfile.CHRTYPE, devmajor=1, devminor=3)
        add("d/.wh.gone")
        add("d/.wh..wh..opq")
    return buffer.getvalue()


def sparse() -> bytes:
    """A file with holes, as GNU tar 1.0 writes it."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        table = b"2\n0\n512\n100000\n512\n".ljust(512, b"\0")
        info = tarfile.TarInfo("GNUSparseFile.0/holes")
        info.size = len(table) + 1024
        info.pax_headers = {
            "GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "holes",
            "GNU.sparse.realsize": "100512",
        }  # fmt: skip
        tar.addfile(info, io.BytesIO(table + bytes(1024)))
    return buffer.getvalue()


PLAIN = archive()
LAYERS = [PLAIN, archive(tarfile.GNU_FORMAT), archive(tarfile.USTAR_FORMAT), sparse()]


@target(OrlopError, seeds=[json.dumps(one).encode() for one in (MANIFEST, INDEX)])
def manifest(data: bytes) -> None:
    documents.choose(data, "example.com/image:1", AMD64)


@target(OrlopError, seeds=[json.dumps(CONFIG).encode()])
def configuration(data: bytes) -> None:
    """What is understood can be kept in the record of an image and read again."""
    found, _ = documents.read_config(data, "example.com/image:1", AMD64, 1)
    kept = msgspec.json.encode(found)
    assert msgspec.json.decode(kept, type=type(found)) == found


@target(OrlopError, seeds=[b"busybox", b"example.com:5000/a/b:tag", b"a@" + DIGEST.encode(), b"a" * 1000])
def name(data: bytes) -> None:
    """A name that is understood is understood again as it is written."""
    found = reference.parse(data.decode("utf-8", "surrogateescape"))
    again = reference.parse(str(found))
    assert (again.name, again.digest) == (found.name, found.digest)


@target(
    seeds=[
        b'time="x" level=fatal msg="reading manifest: 404 (Not Found)"',
        b"dial tcp 10.0.0.1:5000: connect: connection refused",
        b"a" * 20000,
        b"a." * 10000,
        b"[" + b"1:" * 10000,
    ]
)
def complaint(data: bytes) -> None:
    """The error of a registry, as skopeo tells it."""
    text = data.decode("utf-8", "replace")
    failures.failure("example.com/image:1", text)
    failures.last_message(text)


@target(ArchiveError, seeds=[b"20 path=some/where/a\n", b"15 mtime=1.55\n\0", b"12 GNU.sparse.offset=1\n"])
def pax(data: bytes) -> None:
    for value in parse_pax(data).values():
        parse_time(value)


@target(
    ArchiveError,
    CutOff,
    TooLarge,
    seeds=[
        gzip.compress(PLAIN, mtime=0),
        zstandard.compress(PLAIN),
        PLAIN,
        gzip.compress(bytes(1 << 20), mtime=0),
    ],
)
def inflate(data: bytes) -> None:
    """Any compression, to its end."""
    with _file(data) as file, LayerStream(file.fileno(), size=len(data), limit=LIMIT) as stream:
        while stream.read(1 << 16):
            pass


@target(ArchiveError, CutOff, TooLarge, seeds=LAYERS)
def tar(data: bytes) -> None:
    """A layer becomes an image in which each file can be found and read; every entry is one of the tree's."""
    found = io.BytesIO()
    tree = Tree()
    writer = ErofsWriter(found, limit=convert.output_limit(LIMIT))
    with _file(data) as file, LayerStream(file.fileno(), size=len(data), limit=LIMIT) as stream:
        reader = TarReader(stream, max_entries=10_000)
        for entry in reader:
            node = tree.add(entry)
            if node is None:
                continue
            if entry.sparse is None:
                writer.store(node, reader.body())
            else:
                writer.store_sparse(node, entry.sparse, reader.body())
    tree.finish()
    writer.finish(tree.root, uuid=hashlib.sha256(data).digest()[:16])
    _readable(found.getvalue())


CHECKER = shutil.which("fsck.erofs") or ""


def _readable(image: bytes) -> None:
    with _file(image) as file:
        with ErofsReader(os.dup(file.fileno())) as reader:
            pending: list[Inode] = [reader.root]
            while pending:
                inode = pending.pop()
                reader.xattrs(inode)
                if inode.is_directory:
                    pending += [reader.inode(nid) for nid in reader.children(inode).values()]
                elif inode.size < 1 << 20:
                    assert len(reader.read(inode)) == inode.size or not (inode.mode & 0o100000)
            repair.repaired([reader, reader])
        if CHECKER and int.from_bytes(hashlib.sha256(image).digest()[:2], "big") % CHECK_ONE_IN == 0:
            done = subprocess.run([CHECKER, file.name], capture_output=True, check=False)
            assert done.returncode == 0, (done.stdout + done.stderr).decode(errors="replace")


CHECK_ONE_IN = int(os.environ.get("ORLOP_FUZZ_FSCK", "50"))
"""A child process for every image would be most of the time."""


def _file(data: bytes) -> tempfile._TemporaryFileWrapper[bytes]:
    file = tempfile.NamedTemporaryFile(dir=_memory())  # noqa: SIM115
    file.write(data)
    file.flush()
    file.seek(0)
    return file


def _memory() -> Path | None:
    shm = Path("/dev/shm")
    return shm if os.access(shm, os.W_OK) else None
