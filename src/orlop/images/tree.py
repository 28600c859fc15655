"""The file tree of one layer, built from the entries of its archive.

Nothing is ever created on the host: names are resolved inside this tree alone. ``..`` above the
root is refused; a name that leads through a symbolic link of the same layer is followed within
the layer's root, as an unpacker that is confined to the container's root would do. A later entry
replaces an earlier one of the same name.

Whiteouts (OCI image-spec, layer.md) become what overlayfs reads: a character device 0:0, or the
attribute ``trusted.overlay.opaque`` on a directory.
"""

from __future__ import annotations

import stat
from array import array

from orlop.images.tarstream import ArchiveError, TarEntry

MAX_NAME = 255
MAX_DEPTH = 1024
MAX_LINKS = 40
MAX_SYMLINK = 4095
MAX_XATTR = (1 << 16) - 1
MAX_XATTRS = 64 << 20
"""Bytes of extended attributes in all; what labels and capabilities take of a million files."""

OPAQUE = (b"trusted.overlay.opaque", b"y")

_WHITEOUT = b".wh."
_META = b".wh..wh."
_OPAQUE_MARK = b".wh..wh..opq"
_DIRECTORY_KINDS = b"5D"
_SPECIAL = {b"3": stat.S_IFCHR, b"4": stat.S_IFBLK, b"6": stat.S_IFIFO}


class TreeNode:
    """One inode. ``mode`` holds type and permissions; ``children`` is a dict for a directory only.

    A regular file's bytes are in ``data`` (small ones) or at block ``block`` of the image.
    ``chunks`` maps a sparse file instead, chunk by chunk of ``4096 << chunk_bits`` bytes. ``nid`` is
    set when the image is laid out. ``implied`` marks a directory that no entry of the archive described.
    """

    __slots__ = (
        "block",
        "children",
        "chunk_bits",
        "chunks",
        "data",
        "gid",
        "implied",
        "mode",
        "mtime",
        "mtime_ns",
        "nid",
        "nlink",
        "rdev",
        "size",
        "uid",
        "xattrs",
    )

    def __init__(self, mode: int) -> None:
        self.mode = mode
        self.uid = 0
        self.gid = 0
        self.mtime = 0
        self.mtime_ns = 0
        self.size = 0
        self.block = 0
        self.data = b""
        self.rdev = (0, 0)
        self.nlink = 1
        self.nid = 0
        self.chunks: array[int] | None = None
        self.chunk_bits = 0
        self.xattrs: tuple[tuple[bytes, bytes], ...] = ()
        self.children: dict[bytes, TreeNode] | None = {} if stat.S_ISDIR(mode) else None
        self.implied = False


def split(name: bytes) -> list[bytes]:
    """The components of an entry's name, without ``.`` and with ``..`` taken off.

    Raises ArchiveError for a name that leads above the root.
    """
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if not part or part == b".":
            continue
        if part == b"..":
            if not parts:
                raise ArchiveError(f"the entry {shown(name)} leads out of the layer's root")
            parts.pop()
            continue
        if len(part) > MAX_NAME:
            raise ArchiveError(f"the entry {shown(name)} has a component longer than {MAX_NAME} bytes")
        parts.append(part)
    if len(parts) > MAX_DEPTH:
        raise ArchiveError(f"the entry {shown(name)} is deeper than {MAX_DEPTH} directories")
    return parts


def shown(name: bytes) -> str:
    """A name from an archive, fit for a message."""
    text = name[:120].decode("utf-8", "backslashreplace")
    return repr(text) + ("..." if len(name) > 120 else "")


class Tree:
    """Builds the tree. :meth:`add` takes entries in the archive's order, :meth:`finish` ends it."""

    def __init__(self, *, max_nodes: int = 1 << 21) -> None:
        self._nodes_left = max_nodes
        self._xattrs_left = MAX_XATTRS
        self.root = TreeNode(stat.S_IFDIR | 0o755)
        self.root.implied = True
        self._whiteouts: dict[tuple[int, bytes], TreeNode] = {}
        self._parent_name = b""
        self._parent: TreeNode | None = None

    def add(self, entry: TarEntry) -> TreeNode | None:
        """Place an entry; returns the node whose bytes follow, for a regular file."""
        name, kind = entry.name, entry.kind
        if _META in name and _is_bookkeeping(name):
            return None
        if kind == b"0" and name.endswith(b"/"):
            kind = b"5"
        parent, base = self._locate(name)
        if parent is None:
            if kind in _DIRECTORY_KINDS:
                self._describe(self.root, entry)
            return None
        if base.startswith(_WHITEOUT):
            self._white_out(parent, base, name)
            return None
        if kind == b"1":
            self._hard_link(parent, base, entry)
            return None
        return self._place(parent, base, kind, entry)

    def finish(self) -> None:
        """Turn the whiteouts that are left into nodes."""
        for (_, name), parent in self._whiteouts.items():
            assert parent.children is not None
            child = parent.children.get(name)
            if child is None:
                white = TreeNode(stat.S_IFCHR)  # device 0:0
                white.mtime, white.mtime_ns = parent.mtime, parent.mtime_ns
                parent.children[name] = white
            elif child.children is not None:
                make_opaque(child)
        self._whiteouts.clear()

    def lookup(self, name: bytes) -> TreeNode | None:
        """The node of that name, not following a symbolic link in its last component."""
        parts = split(name)
        if not parts:
            return self.root
        parent = self._walk(parts[:-1], name, create=False)
        return None if parent is None or parent.children is None else parent.children.get(parts[-1])

    def _place(self, parent: TreeNode, base: bytes, kind: bytes, entry: TarEntry) -> TreeNode | None:
        assert parent.children is not None
        if kind in _DIRECTORY_KINDS:
            node = parent.children.get(base)
            if node is None or node.children is None:
                node = TreeNode(stat.S_IFDIR)
                self._replace(parent, base, node)
            self._describe(node, entry)
            return None
        if kind == b"0":
            node = TreeNode(stat.S_IFREG)
            node.size = entry.size
        elif kind == b"2":
            if not entry.link or len(entry.link) > MAX_SYMLINK:
                raise ArchiveError(f"the symbolic link {shown(entry.name)} has no usable target")
            node = TreeNode(stat.S_IFLNK)
            node.data = entry.link
            node.size = len(entry.link)
        elif kind in _SPECIAL:
            node = TreeNode(_SPECIAL[kind])
            node.rdev = _device(entry) if kind != b"6" else (0, 0)
        else:
            raise ArchiveError(f"the entry {shown(entry.name)} is of the unknown kind {kind!r}")
        self._describe(node, entry)
        self._replace(parent, base, node)
        return node if kind == b"0" else None

    def _replace(self, parent: TreeNode, base: bytes, node: TreeNode) -> None:
        assert parent.children is not None
        self._nodes_left -= 1
        if self._nodes_left < 0:
            raise ArchiveError("the archive makes too many files")
        old = parent.children.get(base)
        if old is not None:
            old.nlink -= 1
            if old.children is not None:
                # The remembered parent may lie below what goes.
                self._parent = None
        parent.children[base] = node

    def _describe(self, node: TreeNode, entry: TarEntry) -> None:
        node.mode = stat.S_IFMT(node.mode) | (entry.mode & 0o7777)
        if not (0 <= entry.uid <= 0xFFFFFFFE and 0 <= entry.gid <= 0xFFFFFFFE):
            raise ArchiveError(f"the owner of {shown(entry.name)} is not a valid number")
        node.uid, node.gid = entry.uid, entry.gid
        node.mtime, node.mtime_ns = entry.mtime, entry.mtime_ns
        opaque = OPAQUE in node.xattrs
        if not -(1 << 63) <= entry.mtime < 1 << 63:
            raise ArchiveError(f"the time of {shown(entry.name)} is not a valid number")
        node.xattrs = _clean_xattrs(entry) if entry.xattrs else ()
        self._xattrs_left -= sum(len(name) + len(value) for name, value in node.xattrs)
        if self._xattrs_left < 0:
            raise ArchiveError(f"the archive has more than {MAX_XATTRS >> 20} MiB of extended attributes")
        if opaque:
            make_opaque(node)
        node.implied = False

    def _hard_link(self, parent: TreeNode, base: bytes, entry: TarEntry) -> None:
        assert parent.children is not None
        target = self.lookup(entry.link)
        if target is None:
            raise ArchiveError(
                f"the hard link {shown(entry.name)} names {shown(entry.link)}, which this layer does not hold"
            )
        if target.children is not None:
            raise ArchiveError(f"the hard link {shown(entry.name)} names a directory")
        if parent.children.get(base) is target:
            return
        target.nlink += 1
        self._replace(parent, base, target)

    def _white_out(self, parent: TreeNode, base: bytes, name: bytes) -> None:
        if base == _OPAQUE_MARK:
            make_opaque(parent)
            return
        hidden = base[len(_WHITEOUT) :]
        if hidden in (b"", b".", b".."):
            raise ArchiveError(f"the whiteout {shown(name)} names nothing")
        self._whiteouts[id(parent), hidden] = parent

    def _locate(self, name: bytes) -> tuple[TreeNode | None, bytes]:
        """The parent directory, made if need be, and the last component; (None, "") for the root."""
        head, slash, base = name.rpartition(b"/")
        if slash and head == self._parent_name and self._parent is not None and _simple(base):
            return self._parent, base
        parts = split(name)
        if not parts:
            return None, b""
        parent = self._walk(parts[:-1], name, create=True)
        assert parent is not None
        if slash and _simple(base):
            self._parent_name, self._parent = head, parent
        return parent, parts[-1]

    def _walk(self, parts: list[bytes], name: bytes, *, create: bool) -> TreeNode | None:
        """Follow directories from the root; symbolic links are followed inside this tree."""
        path: list[TreeNode] = [self.root]
        todo = list(reversed(parts))
        hops = 0
        while todo:
            part = todo.pop()
            if part == b"..":
                if len(path) > 1:
                    path.pop()
                continue
            here = path[-1]
            assert here.children is not None
            child = here.children.get(part)
            if child is not None and stat.S_ISLNK(child.mode):
                hops += 1
                if hops > MAX_LINKS:
                    raise ArchiveError(f"the entry {shown(name)} leads through too many symbolic links")
                if child.data.startswith(b"/"):
                    del path[1:]
                todo.extend(p for p in reversed(child.data.split(b"/")) if p not in (b"", b"."))
                if len(todo) > 2 * MAX_DEPTH:
                    raise ArchiveError(f"the entry {shown(name)} leads through too many symbolic links")
                continue
            if child is None or child.children is None:
                if not create:
                    return None
                child = self._imply(here, part, name)
            path.append(child)
            if len(path) > MAX_DEPTH + 1:
                raise ArchiveError(f"the entry {shown(name)} is deeper than {MAX_DEPTH} directories")
        return path[-1]

    def _imply(self, parent: TreeNode, part: bytes, name: bytes) -> TreeNode:
        if part.startswith(_WHITEOUT) or len(part) > MAX_NAME:
            raise ArchiveError(f"the entry {shown(name)} leads through a whiteout or an overlong name")
        child = TreeNode(stat.S_IFDIR | 0o755)
        child.implied = True
        self._replace(parent, part, child)
        return child


def make_opaque(node: TreeNode) -> None:
    """Hide what lower layers hold in a directory."""
    if OPAQUE not in node.xattrs:
        node.xattrs = tuple(sorted((*node.xattrs, OPAQUE)))


def _is_bookkeeping(name: bytes) -> bool:
    """Whether a name belongs to an old union file system; that is never content."""
    parts = name.rstrip(b"/").split(b"/")
    return any(part.startswith(_META) for part in parts[:-1]) or (
        parts[-1].startswith(_META) and parts[-1] != _OPAQUE_MARK
    )


def _simple(base: bytes) -> bool:
    return base not in (b"", b".", b"..") and len(base) <= MAX_NAME


def _device(entry: TarEntry) -> tuple[int, int]:
    major, minor = entry.rdev
    if not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
        raise ArchiveError(f"the device {shown(entry.name)} has impossible numbers")
    return major, minor


def _clean_xattrs(entry: TarEntry) -> tuple[tuple[bytes, bytes], ...]:
    """Drop what steers overlayfs: only this module may set that."""
    kept = []
    for name, value in entry.xattrs:
        if name.startswith((b"trusted.overlay.", b"user.overlay.")):
            continue
        if len(name) > MAX_NAME or len(value) > MAX_XATTR:
            raise ArchiveError(f"an extended attribute of {shown(entry.name)} is too long")
        kept.append((name, value))
    return tuple(kept)
