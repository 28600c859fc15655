"""Directories that an upper layer only implies keep what a lower layer says about them.

An archive may hold ``tmp/x`` without an entry for ``tmp``. Unpacked on top of the layers below, that
leaves the mode and owner of ``tmp`` as they were. In an overlay the topmost directory decides, so the
implied one would make ``/tmp`` 0755. A small layer on top, of nothing but such directories as they
should be, puts that right. Few images need one.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from orlop.images.erofs import ErofsWriter
from orlop.images.erofsread import ErofsReader, Inode
from orlop.images.tree import OPAQUE, TreeNode

LIMIT = 64 << 20

_Attributes = tuple[int, int, int, int, int, tuple[tuple[bytes, bytes], ...]]


class Repair:
    """What a stack of layers, bottom first, needs on top; a context manager for the open layers."""

    def __init__(self, layers: Sequence[Path]) -> None:
        self._paths = layers
        self._stack = ExitStack()
        self._layers: list[ErofsReader] = []

    def __enter__(self) -> Repair:
        with ExitStack() as stack:
            self._layers = [stack.enter_context(ErofsReader(path)) for path in self._paths]
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def directories(self) -> dict[bytes, _Attributes]:
        """The directories to be set right, by path (b"" is the root). Empty for almost every image."""
        found: dict[bytes, _Attributes] = {}
        for number, layer in enumerate(self._layers):
            if number and layer.has_implied:
                for path in _implied(layer):
                    if path not in found and (right := self._differs(path)) is not None:
                        found[path] = right
        if (right := self._differs(b"")) is not None:
            found[b""] = right
        return found

    def build(self, directories: dict[bytes, _Attributes], output: BinaryIO) -> None:
        """Write the layer."""
        root = _directory(directories.get(b"") or self._shown(b""))
        for path in sorted(filter(None, directories)):
            here, parts = root, path.split(b"/")
            for depth, part in enumerate(parts, 1):
                assert here.children is not None
                child = here.children.get(part)
                if child is None:
                    above = b"/".join(parts[:depth])
                    child = _directory(directories.get(above) or self._shown(above))
                    here.children[part] = child
                here = child
        ErofsWriter(output, limit=LIMIT).finish(
            root, uuid=hashlib.sha256(repr(directories).encode()).digest()[:16]
        )

    def _differs(self, path: bytes) -> _Attributes | None:
        """What a described directory below an implied one says, if that is not what the implied one says."""
        first: Inode | None = None
        for layer in reversed(self._layers):
            inode, covered = _walk(layer, path)
            if inode is not None:
                if not inode.implied:
                    right = self._attributes(layer, inode)
                    return right if first is not None and not _looks_implied(right) else None
                first = inode
            if covered:
                return None
        return None

    def _shown(self, path: bytes) -> _Attributes:
        """What the overlay shows of a directory: what its topmost layer says."""
        for layer in reversed(self._layers):
            inode, _ = _walk(layer, path)
            if inode is not None:
                return self._attributes(layer, inode)
        return (0o755, 0, 0, 0, 0, ())

    def _attributes(self, layer: ErofsReader, inode: Inode) -> _Attributes:
        xattrs = tuple(pair for pair in layer.xattrs(inode) if not pair[0].startswith(b"trusted.overlay."))
        return (stat.S_IMODE(inode.mode), inode.uid, inode.gid, inode.mtime, inode.mtime_ns, xattrs)


def name(diff_ids: Sequence[str], directories: dict[bytes, _Attributes]) -> str:
    """A name for the layer, of the form of a digest, that the same image always gets."""
    what = repr((tuple(diff_ids), sorted(directories.items())))
    return "sha256:" + hashlib.sha256(what.encode()).hexdigest()


def _walk(layer: ErofsReader, path: bytes) -> tuple[Inode | None, bool]:
    """The directory ``path`` of a layer, and whether the layer hides what lower ones have there."""
    inode = layer.root
    covered = False
    for part in path.split(b"/") if path else ():
        nid = layer.children(inode).get(part)
        if nid is None:
            return None, covered
        inode = layer.inode(nid)
        if not inode.is_directory:
            return None, True
        covered = covered or OPAQUE in layer.xattrs(inode)
    return inode, covered


def _implied(layer: ErofsReader) -> Iterator[bytes]:
    stack: list[tuple[bytes, Inode]] = [(b"", layer.root)]
    while stack:
        above, inode = stack.pop()
        for part, nid in layer.children(inode).items():
            child = layer.inode(nid)
            if child.is_directory:
                path = above + b"/" + part if above else part
                stack.append((path, child))
                if child.implied:
                    yield path


def _looks_implied(attributes: _Attributes) -> bool:
    mode, uid, gid, _, _, xattrs = attributes
    return (mode, uid, gid, xattrs) == (0o755, 0, 0, ())


def _directory(attributes: _Attributes) -> TreeNode:
    node = TreeNode(stat.S_IFDIR)
    mode, node.uid, node.gid, node.mtime, node.mtime_ns, node.xattrs = attributes
    node.mode |= mode
    return node
