"""Looking into an EROFS image that :mod:`orlop.images.erofs` wrote, without mounting it.

Only what that writer makes is understood: no compression, extended inodes, no shared attributes.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

import msgspec

from orlop.errors import DataLoss
from orlop.images.erofs import (
    BLOCK,
    CHUNKED,
    DIRENT,
    HOLE,
    IMPLIED,
    INLINE,
    INODE,
    MAGIC,
    PLAIN,
    SUPERBLOCK,
    SUPERBLOCK_OFFSET,
)

_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}


_PIECE = 1 << 20


class Inode(msgspec.Struct, frozen=True):
    """One file. ``nid`` is its number; two names with the same one are hard links.

    ``implied`` marks a directory that no entry of the archive described.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    mtime_ns: int
    nlink: int
    layout: int
    place: int
    xattr_size: int
    implied: bool

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_whiteout(self) -> bool:
        """Whether it hides a file of a lower layer (overlayfs: a character device 0:0)."""
        return stat.S_ISCHR(self.mode) and self.place == 0


class ErofsReader:
    """An open image; a context manager. Every method raises DataLoss when the image is damaged."""

    def __init__(self, path: Path | int) -> None:
        """Open the image at a path, or one that is open already, which is closed at the end as well."""
        self._path = path
        self._descriptor = path if isinstance(path, int) else os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = SUPERBLOCK.unpack(self._pread(SUPERBLOCK.size, SUPERBLOCK_OFFSET))
        except BaseException:
            os.close(self._descriptor)
            raise
        if fields[0] != MAGIC or fields[3] != 12:
            os.close(self._descriptor)
            raise DataLoss(f"{path} is no EROFS image of ours")
        self._meta = fields[10] * BLOCK
        #: Whether any directory but the root is there only because a file in it is.
        self.has_implied = fields[13].startswith(IMPLIED)
        self.root = self.inode(fields[5])

    def __enter__(self) -> ErofsReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._descriptor)

    def inode(self, nid: int) -> Inode:
        """The inode of that number."""
        data = self._pread(INODE.size, self._meta + 32 * nid)
        (shape, xattrs, mode, _, size, place, _, uid, gid, mtime, mtime_ns, nlink, mark) = INODE.unpack(data)
        return Inode(
            nid=nid,
            mode=mode,
            uid=uid,
            gid=gid,
            size=size,
            mtime=mtime,
            mtime_ns=mtime_ns,
            nlink=nlink,
            layout=shape >> 1,
            place=place,
            xattr_size=12 + 4 * (xattrs - 1) if xattrs else 0,
            implied=mark.startswith(IMPLIED),
        )

    def read(self, inode: Inode) -> bytes:
        """The bytes of a file, a symbolic link or a directory. For what is known to be small."""
        behind = self._meta + 32 * inode.nid + INODE.size + inode.xattr_size
        if inode.layout == PLAIN:
            return self._pread(inode.size, inode.place * BLOCK) if inode.size else b""
        if inode.layout == INLINE:
            full = inode.size // BLOCK * BLOCK
            head = self._pread(full, inode.place * BLOCK) if full else b""
            return head + self._pread(inode.size - full, behind)
        return b"".join(data or bytes(size) for size, data in self._chunks(inode))

    def pieces(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        """The bytes of a file of any size, in pieces; where there is a hole, only its size."""
        if inode.layout == CHUNKED:
            yield from self._chunks(inode)
        elif inode.layout == PLAIN and inode.size > _PIECE:
            for offset in range(0, inode.size, _PIECE):
                size = min(_PIECE, inode.size - offset)
                yield size, self._pread(size, inode.place * BLOCK + offset)
        elif inode.size:
            yield inode.size, self.read(inode)

    def _chunks(self, inode: Inode) -> Iterator[tuple[int, bytes]]:
        if inode.layout != CHUNKED:
            raise DataLoss(f"{self._path} holds a file of an unknown layout")
        behind = self._meta + 32 * inode.nid + INODE.size + inode.xattr_size
        chunk = BLOCK << (inode.place & 0x1F)
        for index in range(-(-inode.size // chunk)):
            (block,) = struct.unpack("<I", self._pread(4, behind + 4 * index))
            length = min(chunk, inode.size - index * chunk)
            yield length, b"" if block == HOLE else self._pread(length, block * BLOCK)

    def children(self, inode: Inode) -> dict[bytes, int]:
        """The names in a directory with their inode numbers, without ``.`` and ``..``."""
        found: dict[bytes, int] = {}
        data = self.read(inode)
        for start in range(0, len(data), BLOCK):
            block = data[start : start + BLOCK]
            count = DIRENT.unpack_from(block)[1] // DIRENT.size
            entries = [DIRENT.unpack_from(block, DIRENT.size * index) for index in range(count)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (nid, offset, _), end in zip(entries, ends, strict=True):
                found[block[offset:end].rstrip(b"\0")] = nid
        found.pop(b".", None)
        found.pop(b"..", None)
        return found

    def lookup(self, path: bytes) -> Inode | None:
        """The file of that name; symbolic links are not followed."""
        inode = self.root
        for part in path.split(b"/"):
            if not part:
                continue
            if not inode.is_directory:
                return None
            nid = self.children(inode).get(part)
            if nid is None:
                return None
            inode = self.inode(nid)
        return inode

    def xattrs(self, inode: Inode) -> tuple[tuple[bytes, bytes], ...]:
        """The extended attributes of a file."""
        if not inode.xattr_size:
            return ()
        area = self._pread(inode.xattr_size, self._meta + 32 * inode.nid + INODE.size)
        found = []
        position = 12
        while position + 4 <= len(area):
            name_size, index, value_size = struct.unpack_from("<BBH", area, position)
            name = area[position + 4 : position + 4 + name_size]
            begin = position + 4 + name_size
            found.append((_PREFIXES.get(index, b"?") + name, area[begin : begin + value_size]))
            position = -(-(begin + value_size) // 4) * 4
        return tuple(found)

    def _pread(self, size: int, offset: int) -> bytes:
        data = os.pread(self._descriptor, size, offset)
        if len(data) < size:
            raise DataLoss(f"{self._path} is shorter than it says")
        return data
