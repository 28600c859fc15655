"""Directories that an upper layer only implies keep what a lower layer says about them.

An archive may hold ``tmp/x`` without an entry for ``tmp``. Unpacked on top of the layers below, that
leaves the mode and owner of ``tmp`` as they were. In an overlay the topmost directory decides, so the
implied one would make ``/tmp`` 0755. A small layer on top, of nothing but such directories as they
should be, puts that right. Few images need one.

The layers are walked as one tree, each directory of each layer read once, so that the work is linear in what
they hold. :func:`needed` alone runs in the daemon: it looks at the roots and no further.
"""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator, Sequence
from typing import BinaryIO, NamedTuple

from orlop.images.erofs import ErofsWriter
from orlop.images.erofsread import ErofsReader, Inode
from orlop.images.tree import OPAQUE, TreeNode

LIMIT = 64 << 20

Attributes = tuple[int, int, int, int, int, tuple[tuple[bytes, bytes], ...]]


class _View(NamedTuple):
    """A directory as one layer has it."""

    layer: ErofsReader
    inode: Inode


_Views = list[_View]
"""A directory as all layers have it that show through, the topmost first."""


class _Place:
    """A directory of the whole. No path is kept: a chain of long names would take its length squared."""

    __slots__ = ("name", "node", "parent", "views")

    def __init__(self, views: _Views, parent: _Place | None = None, name: bytes = b"") -> None:
        self.views = views
        self.parent = parent
        self.name = name
        self.node: TreeNode | None = None


def needed(layers: Sequence[ErofsReader]) -> bool:
    """Whether the layers, bottom first, could need one on top; False for almost every image."""
    return any(layer.has_implied for layer in layers[1:]) or _right(_roots(layers)) is not None


def repaired(layers: Sequence[ErofsReader]) -> TreeNode | None:
    """The root of what must stand on top of the layers; None when nothing must."""
    top: _Place | None = None
    changed = False
    for place in _walk(layers):
        top = top or place
        if (right := _right(place.views)) is not None:
            _node_at(place)
            place.node = _described(place.node, right)
            changed = True
    return _node_at(top) if top is not None and changed else None


def build(root: TreeNode, output: BinaryIO, *, uuid: bytes) -> None:
    """Write the layer."""
    ErofsWriter(output, limit=LIMIT).finish(root, uuid=uuid)


def name(diff_ids: Sequence[str]) -> str:
    """A name for the layer on top of others, of the form of a digest, that the same layers always get."""
    return "sha256:" + hashlib.sha256(repr(("on top of", tuple(diff_ids))).encode()).hexdigest()


def _node_at(place: _Place) -> TreeNode:
    """The node of a directory, made with those above it as the layers show them."""
    missing = []
    here: _Place | None = place
    while here is not None and here.node is None:
        missing.append(here)
        here = here.parent
    for each in reversed(missing):
        each.node = _described(TreeNode(stat.S_IFDIR), _attributes(each.views[0]))
        if each.parent is not None and each.parent.node is not None:
            assert each.parent.node.children is not None
            each.parent.node.children[each.name] = each.node
    assert place.node is not None
    return place.node


def _roots(layers: Sequence[ErofsReader]) -> _Views:
    return _showing(_View(layer, layer.root) for layer in reversed(layers))


def _showing(views: Iterator[_View]) -> _Views:
    """Views down to the one that hides what is below it."""
    found: _Views = []
    for view in views:
        found.append(view)
        if OPAQUE in view.layer.xattrs(view.inode):
            break
    return found


def _walk(layers: Sequence[ErofsReader]) -> Iterator[_Place]:
    """The root and each directory that may be implied or be above one; parents before children.

    A directory that only layers without any implied ones have is left out, with all below it.
    """
    doubtful = {id(layer) for layer in layers[1:] if layer.has_implied}
    stack = [_Place(_roots(layers))]
    while stack:
        place = stack.pop()
        yield place
        if not any(id(view.layer) in doubtful for view in place.views):
            continue
        children = [(view.layer, view.layer.children(view.inode)) for view in place.views]
        names = {part for layer, inside in children if id(layer) in doubtful for part in inside}
        for part in names:
            if below := _showing(_same(children, part)):
                stack.append(_Place(below, place, part))


def _same(children: list[tuple[ErofsReader, dict[bytes, int]]], part: bytes) -> Iterator[_View]:
    """The directory of one name in each layer, the topmost first, down to what is no directory."""
    for layer, inside in children:
        nid = inside.get(part)
        if nid is None:
            continue
        inode = layer.inode(nid)
        if not inode.is_directory:
            return
        yield _View(layer, inode)


def _right(views: _Views) -> Attributes | None:
    """What a described directory below an implied one says, if that is not what the implied one says."""
    if not views[0].inode.implied:
        return None
    for view in views[1:]:
        if not view.inode.implied:
            right = _attributes(view)
            return None if _looks_implied(right) else right
    return None


def _attributes(view: _View) -> Attributes:
    layer, inode = view
    xattrs = tuple(pair for pair in layer.xattrs(inode) if not pair[0].startswith(b"trusted.overlay."))
    return (stat.S_IMODE(inode.mode), inode.uid, inode.gid, inode.mtime, inode.mtime_ns, xattrs)


def _looks_implied(attributes: Attributes) -> bool:
    mode, uid, gid, _, _, xattrs = attributes
    return (mode, uid, gid, xattrs) == (0o755, 0, 0, ())


def _described(node: TreeNode | None, attributes: Attributes) -> TreeNode:
    node = node or TreeNode(stat.S_IFDIR)
    mode, node.uid, node.gid, node.mtime, node.mtime_ns, node.xattrs = attributes
    node.mode = stat.S_IFDIR | mode
    return node
