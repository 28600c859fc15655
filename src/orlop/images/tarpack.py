"""A layer as a tar archive again, as other runtimes read it: pax headers, and whiteouts by name.

The same layer always makes the same archive, byte for byte, and an archive that was made here makes the same
layer: what is saved and loaded again and again stays one image. It is not the archive that the layer was once
made of, whose order and padding nobody has kept.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from orlop.images.erofs import CHUNKED
from orlop.images.erofsread import ErofsReader, Inode
from orlop.images.tarstream import BLOCK
from orlop.images.tree import OPAQUE
from orlop.linux.packing import KINDS

MAX_HOLES = 1 << 13
"""A file with more of them is written whole: what lists them must fit into a header that readers accept."""


def pack(layer: ErofsReader, output: BinaryIO) -> str:
    """Write a layer's archive; returns its digest. Raises OSError, DataLoss."""
    return _Packer(layer, output).pack()


class _Packer:
    def __init__(self, layer: ErofsReader, output: BinaryIO) -> None:
        self._layer = layer
        self._output = output
        self._digest = hashlib.sha256()
        self._first_names: dict[int, bytes] = {}

    def pack(self) -> str:
        # A chain of directories may be deeper than functions may call each other.
        stack = [(b"", self._layer.root)]
        while stack:
            path, inode = stack.pop()
            if inode.is_directory:
                stack += reversed(list(self._directory(path, inode)))
            else:
                self._file(path, inode)
        self._write(bytes(2 * BLOCK))
        return "sha256:" + self._digest.hexdigest()

    def _directory(self, path: bytes, inode: Inode) -> Iterator[tuple[bytes, Inode]]:
        """Write a directory and what it hides; what else is in it is to follow."""
        if not inode.implied:
            self._entry(self._described(path + b"/" if path else b"./", inode))
        prefix = path + b"/" if path else b""
        if OPAQUE in self._layer.xattrs(inode):
            self._entry(tarfile.TarInfo(os.fsdecode(prefix + b".wh..wh..opq")))
        for name, nid in sorted(self._layer.children(inode).items()):
            yield prefix + name, self._layer.inode(nid)

    def _file(self, path: bytes, inode: Inode) -> None:
        if inode.is_whiteout:
            parent, slash, name = path.rpartition(b"/")
            self._entry(tarfile.TarInfo(os.fsdecode(parent + slash + b".wh." + name)))
            return
        info = self._described(path, inode)
        first = self._first_names.setdefault(inode.nid, path) if inode.nlink > 1 else path
        if first != path:
            info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(first)
            info.size = 0
        if info.type == tarfile.REGTYPE:
            self._regular(info, inode)
        else:
            self._entry(info)

    def _described(self, path: bytes, inode: Inode) -> tarfile.TarInfo:
        info = tarfile.TarInfo(os.fsdecode(path))
        info.type = KINDS[stat.S_IFMT(inode.mode)]
        info.mode = stat.S_IMODE(inode.mode)
        info.uid, info.gid = inode.uid, inode.gid
        info.mtime = inode.mtime
        further = {
            "SCHILY.xattr." + os.fsdecode(name): os.fsdecode(value)
            for name, value in self._layer.xattrs(inode)
            if not name.startswith(b"trusted.overlay.")
        }
        if inode.mtime_ns or inode.mtime < 0:
            further["mtime"] = _decimal(inode.mtime, inode.mtime_ns)
        info.pax_headers = further
        if stat.S_ISLNK(inode.mode):
            info.linkname = os.fsdecode(self._layer.read(inode))
        elif info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            info.devmajor, info.devminor = _device(inode.place)
        return info

    def _regular(self, info: tarfile.TarInfo, inode: Inode) -> None:
        parts = self._parts(inode)
        if parts is None:
            info.size = inode.size
        else:
            info.size = sum(length for _, length in parts)
            info.pax_headers = {
                **info.pax_headers,
                "GNU.sparse.size": str(inode.size),
                "GNU.sparse.numblocks": str(len(parts)),
                "GNU.sparse.name": info.name,
                "GNU.sparse.map": ",".join(f"{offset},{length}" for offset, length in parts),
            }
        self._entry(info)
        for size, data in self._layer.pieces(inode):
            if data:
                self._write(data)
            elif parts is None:
                self._zeros(size)
        self._write(bytes(-info.size % BLOCK))

    def _parts(self, inode: Inode) -> list[tuple[int, int]] | None:
        """Where a file with holes has data; None for one without."""
        parts: list[tuple[int, int]] = []
        position = 0
        holes = False
        for size, data in self._layer.pieces(inode) if inode.layout == CHUNKED else ():
            if not data:
                holes = True
            elif parts and sum(parts[-1]) == position:
                parts[-1] = (parts[-1][0], parts[-1][1] + size)
            else:
                parts.append((position, size))
            position += size
        if not holes or len(parts) > MAX_HOLES:
            return None
        # Readers take the size of the file from where the last part ends.
        return parts if parts and sum(parts[-1]) == position else [*parts, (position, 0)]

    def _entry(self, info: tarfile.TarInfo) -> None:
        self._write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))

    def _zeros(self, size: int) -> None:
        for start in range(0, size, BLOCK * BLOCK):
            self._write(bytes(min(BLOCK * BLOCK, size - start)))

    def _write(self, data: bytes) -> None:
        self._digest.update(data)
        self._output.write(data)


def _decimal(seconds: int, nanoseconds: int) -> str:
    """A time as pax has it: the fraction of one before 1970 leads further from it."""
    if seconds < 0 and nanoseconds:
        return f"-{-seconds - 1}.{1_000_000_000 - nanoseconds:09}"
    return f"{seconds}.{nanoseconds:09}" if nanoseconds else str(seconds)


def _device(number: int) -> tuple[int, int]:
    """The numbers of a device, as the kernel packs them into 32 bits (new_encode_dev)."""
    return (number >> 8) & 0xFFF, (number & 0xFF) | ((number >> 12) & 0xFFF00)
