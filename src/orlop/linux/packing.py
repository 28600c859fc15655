"""A directory tree as a tar archive: owners by number, modes, links, devices, extended attributes.

It is what ``podman export`` writes of a container's root, and of an overlay's upper directory the layer of an
image (OCI image-spec, layer.md): what hides a name below it becomes an entry ``.wh.NAME``, and a directory
that hides all below it has one named ``.wh..wh..opq``. Times are whole seconds, sockets are left out.

Who writes to the tree may do so meanwhile, and is not trusted: a directory is opened from the one that it is
in, and no link is followed. A file is as long in the archive as it was when its turn came.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Collection, Generator, Iterator

from orlop.linux.changes import MAX_DEPTH, MAX_PATH, hides, is_opaque

PIECE = 1 << 18
"""Bytes that are told at once, about."""

MAX_LINKED = 1 << 18
"""Files with several names of which some are still to come."""

_BLOCK = tarfile.BLOCKSIZE
KINDS = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}
"""What archives call a kind of files."""

_CAPABILITY = "security.capability"
_OF_USERS = "user."
_OF_OVERLAYS = "user.overlay."
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def tree(directory: int) -> Generator[bytes, None, None]:
    """The archive of all below an open directory, in pieces.

    Raises OSError, and ValueError for a tree that is too deep or has too many files with several names.
    """
    return _gathered(_TreePacker(as_layer=False, without=frozenset()).archive(directory))


def layer(upper: int, without: Collection[bytes]) -> Generator[bytes, None, None]:
    """The layer of what is in an overlay's upper directory, but for the paths ``without`` and all below them.

    Paths begin with a slash. Raises what :func:`tree` raises.
    """
    return _gathered(_TreePacker(as_layer=True, without=frozenset(without)).archive(upper))


def _gathered(parts: Generator[bytes, None, None]) -> Generator[bytes, None, None]:
    """Pieces that are worth being sent."""
    piece = bytearray()
    try:
        for part in parts:
            piece += part
            if len(piece) >= PIECE:
                yield bytes(piece)
                piece.clear()
        yield bytes(piece)
    finally:
        parts.close()


class _TreePacker:
    def __init__(self, *, as_layer: bool, without: frozenset[bytes]) -> None:
        self._as_layer = as_layer
        self._without = without
        self._first: dict[tuple[int, int], tuple[bytes, int]] = {}

    def archive(self, directory: int) -> Generator[bytes, None, None]:
        yield from self._below(directory, b"", 1)
        yield bytes(2 * _BLOCK)

    def _below(self, directory: int, path: bytes, depth: int) -> Iterator[bytes]:
        if depth > MAX_DEPTH:
            raise ValueError(f"there are more than {MAX_DEPTH} directories in one another")
        if self._as_layer and is_opaque(directory):
            yield _header(tarfile.TarInfo(os.fsdecode(path + b".wh..wh..opq")))
        for name in sorted(os.fsencode(each) for each in os.listdir(directory)):
            place = path + name
            if len(place) > MAX_PATH:
                raise ValueError(f"a path is longer than {MAX_PATH} bytes")
            if b"/" + place in self._without:
                continue
            try:
                yield from self._entry(directory, name, place, depth)
            except FileNotFoundError:  # it has just gone
                continue

    def _entry(self, directory: int, name: bytes, path: bytes, depth: int) -> Iterator[bytes]:
        found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        if self._as_layer and hides(found):
            parent, slash, last = path.rpartition(b"/")
            yield _header(tarfile.TarInfo(os.fsdecode(parent + slash + b".wh." + last)))
        elif stat.S_ISDIR(found.st_mode):
            yield from self._directory(directory, name, path, depth)
        elif stat.S_ISREG(found.st_mode):
            yield from self._file(directory, name, path)
        elif stat.S_IFMT(found.st_mode) in KINDS:
            info = _described(path, found)
            if stat.S_ISLNK(found.st_mode):
                info.linkname = os.fsdecode(os.readlink(name, dir_fd=directory))
            self._link_to_first(info, path, found)
            yield _header(info)

    def _directory(self, above: int, name: bytes, path: bytes, depth: int) -> Iterator[bytes]:
        try:
            inner = os.open(name, _OPEN | os.O_DIRECTORY, dir_fd=above)
        except NotADirectoryError:  # something else has taken its place
            return
        try:
            info = _described(path + b"/", os.fstat(inner))
            info.pax_headers = _attributes(inner)
            yield _header(info)
            yield from self._below(inner, path + b"/", depth + 1)
        finally:
            os.close(inner)

    def _file(self, directory: int, name: bytes, path: bytes) -> Iterator[bytes]:
        # What has taken its place may be a FIFO, whose other end nobody opens.
        file = os.open(name, _OPEN | os.O_NONBLOCK, dir_fd=directory)
        try:
            found = os.fstat(file)
            if not stat.S_ISREG(found.st_mode):
                return
            info = _described(path, found)
            if self._link_to_first(info, path, found):
                yield _header(info)
                return
            info.size = left = found.st_size
            info.pax_headers = _attributes(file)
            yield _header(info)
            while left:
                data = os.read(file, min(left, PIECE)) or bytes(min(left, PIECE))
                left -= len(data)
                yield data
            yield bytes(-info.size % _BLOCK)
        finally:
            os.close(file)

    def _link_to_first(self, info: tarfile.TarInfo, path: bytes, found: os.stat_result) -> bool:
        """Whether the file is in the archive already, by another name, which ``info`` leads to then."""
        if found.st_nlink < 2:
            return False
        key = found.st_dev, found.st_ino
        first, more = self._first.pop(key, (b"", found.st_nlink))
        if more > 1:
            self._first[key] = first or path, more - 1
        if len(self._first) > MAX_LINKED:
            raise ValueError(f"more than {MAX_LINKED} files have names elsewhere")
        if first:
            info.type, info.linkname, info.size = tarfile.LNKTYPE, os.fsdecode(first), 0
        return bool(first)


def _described(path: bytes, found: os.stat_result) -> tarfile.TarInfo:
    info = tarfile.TarInfo(os.fsdecode(path))
    info.type = KINDS[stat.S_IFMT(found.st_mode)]
    info.mode = stat.S_IMODE(found.st_mode)
    info.uid, info.gid = found.st_uid, found.st_gid
    info.mtime = int(found.st_mtime)
    if info.type in (tarfile.CHRTYPE, tarfile.BLKTYPE):
        info.devmajor, info.devminor = os.major(found.st_rdev), os.minor(found.st_rdev)
    return info


def _attributes(file: int) -> dict[str, str]:
    try:
        names = os.listxattr(file)
    except OSError:  # its file system has none
        return {}
    found = {}
    for name in names:
        if name == _CAPABILITY or (name.startswith(_OF_USERS) and not name.startswith(_OF_OVERLAYS)):
            try:
                found["SCHILY.xattr." + name] = os.fsdecode(os.getxattr(file, name))
            except OSError:  # it has just been taken away
                continue
    return found


def _header(info: tarfile.TarInfo) -> bytes:
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
