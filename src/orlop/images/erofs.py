"""Writing an EROFS image of a layer in one pass.

The bytes of the files go to the image as they come, block by block; everything about them (inodes,
directories, small files) follows in one piece at the end, where the superblock points to it. So
nothing of the layer is kept but its tree, and the stream is never stored in between.

The format is that of Linux, Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h: blocks of
4096 bytes, no compression, extended inodes (64 bytes, nanosecond times, 32-bit owners), the ends of
directories and whole small files inline behind their inode, chunk maps for sparse files. Linux 5.15
reads all of it.
"""

from __future__ import annotations

import stat
import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import BinaryIO

from orlop.images.tarstream import ArchiveError, TooLarge
from orlop.images.tree import TreeNode

BLOCK = 4096
MAGIC = 0xE0F5E1E2
SUPERBLOCK_OFFSET = 1024
INODE = struct.Struct("<HHHHQIIIIqII16s")
DIRENT = struct.Struct("<QHBx")
SUPERBLOCK = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")

COMPAT_CHECKSUM = 0x1
COMPAT_MTIME = 0x2
INCOMPAT_CHUNKED = 0x4

PLAIN, INLINE, CHUNKED = 0, 2, 4
HOLE = 0xFFFFFFFF
MAX_CHUNKS = 1 << 20
INLINE_FILE = 2048
# In the reserved end of an inode, and as the name of the volume if there is any such inode.
IMPLIED = b"implied"
INLINE_TOTAL = 64 << 20

_SLOT = 32
_ZEROS = bytes(1 << 16)
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}
_XATTR_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)


class ErofsWriter:
    """Writes one image to ``output``, a new file that is open for buffered, seekable writing.

    Call :meth:`store` or :meth:`store_sparse` for each regular file as its bytes come, then
    :meth:`finish` once with the root of the tree. ``limit`` bounds the image, in bytes.
    """

    def __init__(self, output: BinaryIO, *, limit: int) -> None:
        self._output = output
        self._limit = limit
        self._inline = 0
        self._maps = 0
        self._chunked = False
        self._block = 1
        output.write(bytes(BLOCK))

    def store(self, node: TreeNode, pieces: Iterable[memoryview]) -> None:
        """Take the bytes of a regular file, of ``node.size`` bytes in all."""
        size = node.size
        if size <= INLINE_FILE and self._inline + size <= INLINE_TOTAL:
            self._inline += size
            node.data = b"".join(pieces)
            return
        node.block = self._reserve(-(-size // BLOCK))
        write = self._output.write
        for piece in pieces:
            write(piece)
        write(_ZEROS[: -size % BLOCK])

    def store_sparse(
        self, node: TreeNode, parts: Iterable[tuple[int, int]], pieces: Iterator[memoryview]
    ) -> None:
        """Take the stored parts of a sparse file, ``(offset, length)`` in order, from one stream."""
        bits = 12
        while -(-node.size >> bits) > MAX_CHUNKS:
            bits += 1
        chunk = 1 << bits
        whole = -(-node.size // BLOCK) * BLOCK
        # A map is written with its inode: it counts before it is made.
        self._maps += -(-node.size // chunk) * 4
        self._check(self._block * BLOCK)
        blocks = array("I", [HOLE]) * -(-node.size // chunk)
        feed = _Feed(pieces)
        position = end_of_chunk = 0
        for offset, length in parts:
            for index in range(offset // chunk, (offset + length - 1) // chunk + 1):
                if blocks[index] == HOLE:
                    if index == offset // chunk:
                        self._zeros(end_of_chunk - position)
                        position = index * chunk
                    end_of_chunk = min((index + 1) * chunk, whole)
                    blocks[index] = self._reserve((end_of_chunk - index * chunk) // BLOCK)
            self._zeros(offset - position)
            for piece in feed.take(length):
                self._output.write(piece)
            position = offset + length
        self._zeros(end_of_chunk - position)
        node.chunks, node.chunk_bits = blocks, bits - 12
        self._chunked = True

    def _reserve(self, count: int) -> int:
        block = self._block
        self._block += count
        self._check(self._block * BLOCK)
        return block

    def _check(self, size: int) -> None:
        if size + self._maps > self._limit:
            raise TooLarge(f"the layer unpacks to more than {self._limit >> 20} MiB")

    def _zeros(self, count: int) -> None:
        while count > 0:
            step = min(count, len(_ZEROS))
            self._output.write(_ZEROS[:step])
            count -= step

    def finish(self, root: TreeNode, *, uuid: bytes) -> int:
        """Write the metadata and the superblock; returns the size of the image in bytes.

        The format has no place for what :attr:`TreeNode.implied` says: it stands in reserved bytes.
        """
        layout = _Layout(self._block)
        layout.place(root)
        self._maps = 0
        self._check(layout.next_block * BLOCK + layout.length)
        for data in layout.extra_blocks():
            self._output.write(data)
        meta_block = layout.next_block
        size = layout.write(self._output, meta_block)
        # Never ends with an inode: fsck.erofs of 1.5 looks for attributes behind every one of them.
        total = meta_block + size // BLOCK + 1
        self._output.write(bytes(BLOCK - size % BLOCK))
        if total * BLOCK > self._limit or total >= HOLE:
            raise TooLarge(f"the layer unpacks to more than {self._limit >> 20} MiB")
        self._output.seek(0)
        self._output.write(
            _superblock(
                inodes=layout.inodes,
                blocks=total,
                meta_block=meta_block,
                root_nid=root.nid,
                uuid=uuid,
                name=IMPLIED if layout.implied else b"",
                incompat=INCOMPAT_CHUNKED if self._chunked else 0,
            )
        )
        self._output.flush()
        return total * BLOCK


class _Feed:
    """Cuts a stream of pieces at given lengths."""

    def __init__(self, pieces: Iterator[memoryview]) -> None:
        self._pieces = pieces
        self._rest = memoryview(b"")

    def take(self, length: int) -> Iterator[memoryview]:
        while length:
            if not self._rest:
                rest = next(self._pieces, None)
                if rest is None:
                    raise ArchiveError("the archive ends inside a sparse file")
                self._rest = rest
            piece = self._rest[:length]
            self._rest = self._rest[len(piece) :]
            length -= len(piece)
            yield piece


class _Layout:
    """Where everything about the files goes. First all places are found, then all is written."""

    def __init__(self, next_block: int) -> None:
        self.next_block = next_block
        self.inodes = 0
        self.implied = False
        # Not at 0: an inode number of 0 means "no such entry" to readers of directories.
        self._position = 2 * _SLOT
        self._order: list[tuple[TreeNode, int, int, bytes]] = []
        self._directories: dict[int, tuple[list[list[bytes]], TreeNode]] = {}
        self._separate: list[tuple[TreeNode, int]] = []

    @property
    def length(self) -> int:
        """The bytes that the inodes take, with what stands behind them."""
        return self._position

    def place(self, root: TreeNode) -> None:
        """Give every inode below ``root`` its place, parents before children."""
        stack: list[tuple[TreeNode, TreeNode]] = [(root, root)]
        while stack:
            node, parent = stack.pop()
            if node.nid:
                continue
            children = node.children
            if children is None:
                self._place(node, node.data if not node.block else b"", None)
                continue
            self._place(node, b"", parent)
            links = 2
            for name in sorted(children, reverse=True):
                child = children[name]
                if child.children is not None:
                    links += 1
                stack.append((child, node))
            node.nlink = links

    def _place(self, node: TreeNode, inline: bytes, parent: TreeNode | None) -> None:
        """Place one inode; ``parent`` is given for a directory only."""
        xattrs = _xattr_area(node.xattrs) if node.xattrs else b""
        head = INODE.size + len(xattrs)
        tail = body = len(inline)
        full = 0
        if parent is not None and node.children is not None:
            blocks, tail = _directory_blocks(node.children)
            full, body = len(blocks) - 1, tail
            node.size = full * BLOCK + tail
            self._directories[id(node)] = (blocks, parent)
        layout = INLINE if tail else PLAIN
        if node.chunks is not None:
            layout, body = CHUNKED, 4 * len(node.chunks)
        elif tail and head % BLOCK + tail > BLOCK:
            # Cannot stand behind the inode within one block: a block of its own.
            full, layout, body = full + 1, PLAIN, 0
        if full:
            node.block = self.next_block
            self.next_block += full
            self._separate.append((node, full))
        position = self._position
        if position % BLOCK > BLOCK - INODE.size:
            position += _SLOT
        if layout == INLINE and (position + head) % BLOCK + tail > BLOCK:
            position = -(-position // BLOCK) * BLOCK
        node.nid = position // _SLOT
        self._order.append((node, layout, position, xattrs))
        self.inodes += 1
        self.implied = self.implied or (node.implied and parent is not node)
        self._position = -(-(position + head + body) // _SLOT) * _SLOT

    def extra_blocks(self) -> Iterator[bytes]:
        """The blocks of large directories and of what did not fit behind its inode, in order."""
        for node, count in self._separate:
            if node.children is None:
                yield node.data + bytes(-len(node.data) % BLOCK)
                continue
            blocks, parent = self._directories[id(node)]
            for names in blocks[:count]:
                data = _directory_block(node, names, parent.nid)
                yield data + bytes(BLOCK - len(data))

    def write(self, output: BinaryIO, meta_block: int) -> int:
        """Write all inodes with what stands behind them; returns their length."""
        done = 0
        for number, (node, layout, position, xattrs) in enumerate(self._order, 1):
            if position > done:
                output.write(bytes(position - done))
            data = _inode(node, layout, xattrs, number) + xattrs
            if layout == CHUNKED and node.chunks is not None:
                data += _little(node.chunks)
            elif layout == INLINE:
                if node.children is not None:
                    blocks, parent = self._directories[id(node)]
                    data += _directory_block(node, blocks[-1], parent.nid)
                else:
                    data += node.data
            output.write(data)
            done = position + len(data)
        return done


def _inode(node: TreeNode, layout: int, xattrs: bytes, number: int) -> bytes:
    kind = stat.S_IFMT(node.mode)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        major, minor = node.rdev
        place = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    elif layout == CHUNKED:
        place = node.chunk_bits
    else:
        place = node.block or HOLE
    return INODE.pack(
        1 | layout << 1,
        (len(xattrs) - 12) // 4 + 1 if xattrs else 0,
        node.mode,
        0,
        node.size,
        place,
        number,
        node.uid,
        node.gid,
        node.mtime,
        node.mtime_ns,
        node.nlink,
        IMPLIED if node.implied else b"",
    )


def _little(numbers: array[int]) -> bytes:
    return struct.pack(f"<{len(numbers)}I", *numbers)


def _directory_blocks(children: dict[bytes, TreeNode]) -> tuple[list[list[bytes]], int]:
    """The names of each block of a directory, in order, and the length of the last block."""
    names = sorted([b".", b"..", *children])
    blocks: list[list[bytes]] = []
    current: list[bytes] = []
    used = 0
    for name in names:
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            blocks.append(current)
            current, used = [], 0
        current.append(name)
        used += need
    blocks.append(current)
    return blocks, used


def _directory_block(node: TreeNode, names: list[bytes], parent_nid: int) -> bytes:
    children = node.children
    assert children is not None
    offset = DIRENT.size * len(names)
    entries = []
    for name in names:
        if name == b".":
            nid, kind = node.nid, 2
        elif name == b"..":
            nid, kind = parent_nid, 2
        else:
            child = children[name]
            nid, kind = child.nid, _TYPES[stat.S_IFMT(child.mode)]
        entries.append(DIRENT.pack(nid, offset, kind))
        offset += len(name)
    return b"".join(entries) + b"".join(names)


def _xattr_area(xattrs: tuple[tuple[bytes, bytes], ...]) -> bytes:
    """The attributes as they stand behind the inode; those that Linux has no name space for are dropped."""
    parts = []
    for name, value in xattrs:
        for prefix, index in _XATTR_PREFIXES:
            exact = index in (2, 3)
            if name == prefix if exact else name.startswith(prefix) and len(name) > len(prefix):
                rest = name[len(prefix) :]
                entry = struct.pack("<BBH", len(rest), index, len(value)) + rest + value
                parts.append(entry + bytes(-len(entry) % 4))
                break
    if not parts:
        return b""
    area = bytes(12) + b"".join(parts)
    if (len(area) - 12) // 4 + 1 > 0xFFFF:
        raise ArchiveError("the attributes of a file are too long")
    return area


def _superblock(
    *, inodes: int, blocks: int, meta_block: int, root_nid: int, uuid: bytes, name: bytes, incompat: int
) -> bytes:
    def pack(checksum: int) -> bytes:
        return SUPERBLOCK.pack(
            MAGIC,
            checksum,
            COMPAT_CHECKSUM | COMPAT_MTIME,
            12,
            0,
            root_nid,
            inodes,
            0,
            0,
            blocks,
            meta_block,
            0,
            uuid,
            name,
            incompat,
            0,
            0,
            0,
            0,
            0,
            0,
            0,
        )

    rest = BLOCK - SUPERBLOCK_OFFSET - SUPERBLOCK.size
    head = pack(crc32c(pack(0) + bytes(rest)))
    return bytes(SUPERBLOCK_OFFSET) + head + bytes(rest)


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ 0x82F63B78 if value & 1 else value >> 1
        table.append(value)
    return table


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli) without the final inversion, as EROFS stores it."""
    table = _crc_table()
    value = 0xFFFFFFFF
    for byte in data:
        value = (value >> 8) ^ table[(value ^ byte) & 0xFF]
    return value
