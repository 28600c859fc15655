"""Reading a tar stream once, front to back, as a layer of an image needs it.

The formats are those of POSIX.1-2017 ``pax`` (ustar headers, extended headers ``x`` and ``g``)
and of GNU tar (long names, base-256 numbers, sparse files in all four forms). The standard
library's ``tarfile`` is not used: it decodes names to text, seeks, and takes five times as long
per entry.

Names stay bytes, exactly as they came; what they mean is the caller's business. Everything in
the stream is hostile: sizes and counts are bounded here, and a header that cannot be understood
is an :class:`ArchiveError`, never a guess.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Protocol

BLOCK = 512
MAX_EXTENSION = 1 << 20
MAX_GLOBAL = 1 << 16
MAX_SPARSE_ENTRIES = 1 << 16
MAX_FILE = 1 << 44
"""Bytes of a file, sparse or not: what file systems of Linux commonly take."""

_USED = (b"path", b"linkpath", b"mtime", b"size", b"uid", b"gid")
_USED_PREFIXES = (b"SCHILY.xattr.", b"GNU.sparse.")

_HEADER = struct.Struct("100s8s8s8s12s12s8s1s100s8s32s32s8s8s155s12x")
_ZERO = bytes(BLOCK)


class ArchiveError(Exception):
    """The archive is damaged, hostile or of an unknown kind; the message says how."""


class TooLarge(Exception):
    """The layer is larger than the bound that was set."""


class Source(Protocol):
    """Where the bytes of the archive come from."""

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end of the stream."""
        ...

    def chunks(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes in pieces; raises ArchiveError if the stream ends before."""
        ...


class TarEntry:
    """One member of the archive. ``kind`` is the type flag of its header, as one byte.

    ``size`` is what the file has once written; ``stored`` is what the archive holds of it.
    ``sparse`` lists ``(offset, length)`` of the parts that are stored, or is None when all is.
    """

    __slots__ = (
        "gid",
        "kind",
        "link",
        "mode",
        "mtime",
        "mtime_ns",
        "name",
        "rdev",
        "size",
        "sparse",
        "stored",
        "uid",
        "xattrs",
    )

    def __init__(self) -> None:
        self.name = b""
        self.kind = b"0"
        self.mode = 0
        self.uid = 0
        self.gid = 0
        self.size = 0
        self.stored = 0
        self.mtime = 0
        self.mtime_ns = 0
        self.link = b""
        self.rdev = (0, 0)
        self.xattrs: tuple[tuple[bytes, bytes], ...] = ()
        self.sparse: tuple[tuple[int, int], ...] | None = None


def parse_number(field: bytes, what: str) -> int:
    """A numeric header field: octal digits, or base-256 when its first bit is set (GNU)."""
    first = field[0]
    if first & 0x80:
        value = int.from_bytes(field, "big", signed=False)
        bits = 8 * len(field)
        return value - (1 << bits) if first & 0x40 else value - (1 << (bits - 1))
    text = field.strip(b" \0")
    if not text:
        return 0
    try:
        value = int(text, 8)
    except ValueError:
        cut = field.split(b"\0", 1)[0].strip(b" ")
        if not cut.isdigit():
            raise ArchiveError(f"the field {what} of a header is not a number: {field!r}") from None
        try:
            value = int(cut, 8)
        except ValueError:
            raise ArchiveError(f"the field {what} of a header is not octal: {field!r}") from None
    if value < 0:
        raise ArchiveError(f"the field {what} of a header is negative: {field!r}")
    return value


def parse_pax(data: bytes) -> dict[bytes, bytes]:
    """The records of an extended header (POSIX pax: "length key=value\\n")."""
    records: dict[bytes, bytes] = {}
    sparse: list[bytes] = []
    position = 0
    end = len(data)
    while position < end:
        space = data.find(b" ", position, position + 20)
        if space < 0:
            if not data[position:].strip(b"\0"):
                break
            raise ArchiveError("an extended header has a record without length")
        digits = data[position:space]
        if not digits.isdigit():
            raise ArchiveError("an extended header has a record whose length is not a number")
        stop = position + int(digits)
        if stop > end or stop <= space + 1 or data[stop - 1] != 0x0A:
            raise ArchiveError("an extended header has a record of the wrong length")
        key, equals, value = data[space + 1 : stop - 1].partition(b"=")
        if not equals or not key:
            raise ArchiveError("an extended header has a record without '='")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            sparse.append(value)
            if len(sparse) > 2 * MAX_SPARSE_ENTRIES:
                raise ArchiveError("a sparse file has too many parts")
        records[key] = value
        position = stop
    if sparse:
        records.setdefault(b"GNU.sparse.map", b",".join(sparse))
    return records


def parse_time(value: bytes) -> tuple[int, int]:
    """A pax time, decimal seconds with any number of digits, as seconds and nanoseconds."""
    whole, _, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    digits = whole[1:] if negative else whole
    if not digits.isdigit() or len(digits) > 18 or (fraction and not fraction.isdigit()):
        raise ArchiveError(f"the time {value[:40]!r} in an extended header is not a number")
    seconds = int(digits)
    nanoseconds = int((fraction + b"000000000")[:9])
    if negative:
        seconds = -seconds
        if nanoseconds:
            seconds, nanoseconds = seconds - 1, 1_000_000_000 - nanoseconds
    return seconds, nanoseconds


def _decimal(value: bytes, what: str) -> int:
    if not value.isdigit() or len(value) > 19:
        raise ArchiveError(f"{what} {value[:40]!r} in an extended header is not a number")
    return int(value)


def _cut(field: bytes) -> bytes:
    end = field.find(b"\0")
    return field if end < 0 else field[:end]


def _check_sum(block: bytes, stored: bytes) -> None:
    expected = parse_number(stored, "checksum")
    actual = sum(block) - sum(stored) + 8 * 0x20
    if actual == expected:
        return
    signed = actual - 256 * sum(1 for byte in block[:148] + block[156:] if byte >= 0x80)
    if signed != expected:
        raise ArchiveError("a header's checksum does not match: this is no tar archive, or it is damaged")


def check_sparse(parts: list[tuple[int, int]], size: int) -> tuple[tuple[int, int], ...]:
    """Sparse parts must be in order, apart and inside the file."""
    if not 0 <= size <= MAX_FILE:
        raise ArchiveError("a sparse file has an impossible size")
    position = 0
    for offset, length in parts:
        if offset < position or length < 0 or offset + length > size:
            raise ArchiveError("the parts of a sparse file overlap or lie outside it")
        position = offset + length
    return tuple(part for part in parts if part[1])


class TarReader:
    """Iterates over the entries of an archive. After each one, ``body`` gives its stored bytes.

    An entry whose ``body`` is not asked for is skipped; one that is asked for must be read to its end.
    """

    def __init__(self, source: Source, *, max_entries: int) -> None:
        self._source = source
        self._max_entries = max_entries
        self._left = 0
        self._padding = 0
        self._global: dict[bytes, bytes] = {}
        self.entries = 0

    def __iter__(self) -> Iterator[TarEntry]:
        pax: dict[bytes, bytes] = {}
        long_name: bytes | None = None
        long_link: bytes | None = None
        while True:
            self._skip_body()
            block = self._source.read(BLOCK)
            if not block or block == _ZERO:
                if block:
                    self._drain()
                if pax or long_name is not None or long_link is not None:
                    raise ArchiveError("the archive ends after an extended header")
                return
            if len(block) < BLOCK:
                raise ArchiveError("the archive ends inside a header")
            entry = self._header(block)
            if entry.kind in b"xgLKX":
                data = self._extension(entry.size)
                if entry.kind == b"g":
                    self._remember(parse_pax(data))
                elif entry.kind in b"xX":
                    pax = parse_pax(data)
                elif entry.kind == b"L":
                    long_name = _cut(data)
                else:
                    long_link = _cut(data)
                continue
            if entry.kind == b"S":
                self._old_sparse(entry, block)
            if long_name is not None:
                entry.name = long_name
            if long_link is not None:
                entry.link = long_link
            if pax or self._global:
                self._apply(entry, {**self._global, **pax})
            pax, long_name, long_link = {}, None, None
            self._begin_body(entry)
            if entry.kind != b"V":
                yield entry

    def _remember(self, records: dict[bytes, bytes]) -> None:
        """Keep what holds for all entries to come: only what means something, and not much of it."""
        self._global |= {
            key: value for key, value in records.items() if key in _USED or key.startswith(_USED_PREFIXES)
        }
        if sum(len(key) + len(value) for key, value in self._global.items()) > MAX_GLOBAL:
            raise ArchiveError(f"the archive's global extended headers are longer than {MAX_GLOBAL} bytes")

    def body(self) -> Iterator[memoryview]:
        """The stored bytes of the entry that was yielded last, in pieces."""
        left, self._left = self._left, 0
        return self._source.chunks(left)

    def read_body(self, size: int) -> bytes:
        """The next ``size`` stored bytes of the entry, at once."""
        if size > self._left:
            raise ArchiveError("a sparse file's map is longer than the file")
        self._left -= size
        data = self._source.read(size)
        if len(data) < size:
            raise ArchiveError("the archive ends inside a file")
        return data

    def _header(self, block: bytes) -> TarEntry:
        self.entries += 1
        if self.entries > self._max_entries:
            raise ArchiveError(f"the archive has more than {self._max_entries} entries")
        (name, mode, uid, gid, size, mtime, checksum, kind, link, magic, _, _, major, minor, prefix) = (
            _HEADER.unpack(block)
        )
        _check_sum(block, checksum)
        entry = TarEntry()
        entry.name = _cut(name)
        if magic.startswith(b"ustar\0") and prefix[0]:
            entry.name = _cut(prefix) + b"/" + entry.name
        entry.mode = parse_number(mode, "mode")
        entry.uid = parse_number(uid, "uid")
        entry.gid = parse_number(gid, "gid")
        entry.size = parse_number(size, "size")
        if not 0 <= entry.size <= MAX_FILE:
            raise ArchiveError("an entry has an impossible size")
        entry.mtime = parse_number(mtime, "mtime")
        entry.kind = b"0" if kind in b"\0007" else kind
        entry.link = _cut(link)
        if kind in b"34":
            entry.rdev = (parse_number(major, "devmajor"), parse_number(minor, "devminor"))
        return entry

    def _extension(self, size: int) -> bytes:
        if size > MAX_EXTENSION:
            raise ArchiveError(f"an extended header of {size} bytes is longer than {MAX_EXTENSION}")
        padded = -(-size // BLOCK) * BLOCK
        data = self._source.read(padded)
        if len(data) < padded:
            raise ArchiveError("the archive ends inside an extended header")
        return data[:size]

    def _apply(self, entry: TarEntry, pax: dict[bytes, bytes]) -> None:
        xattrs: list[tuple[bytes, bytes]] = []
        for key, value in pax.items():
            if key == b"path":
                entry.name = value
            elif key == b"linkpath":
                entry.link = value
            elif key == b"mtime":
                entry.mtime, entry.mtime_ns = parse_time(value)
            elif key == b"size" and entry.sparse is None:
                entry.size = _decimal(value, "size")
                if entry.size > MAX_FILE:
                    raise ArchiveError("an entry has an impossible size")
            elif key == b"uid":
                entry.uid = _decimal(value, "uid")
            elif key == b"gid":
                entry.gid = _decimal(value, "gid")
            elif key.startswith(b"SCHILY.xattr."):
                xattrs.append((key[13:], value))
        if b"\0" in entry.name or b"\0" in entry.link:
            raise ArchiveError("a name in an extended header holds a zero byte")
        entry.xattrs = tuple(sorted(xattrs))
        if b"GNU.sparse.map" in pax or b"GNU.sparse.major" in pax:
            self._pax_sparse(entry, pax)

    def _pax_sparse(self, entry: TarEntry, pax: dict[bytes, bytes]) -> None:
        entry.name = pax.get(b"GNU.sparse.name", entry.name)
        entry.stored = entry.size
        real = pax.get(b"GNU.sparse.realsize", pax.get(b"GNU.sparse.size", b""))
        self._begin_body(entry)
        if b"GNU.sparse.map" in pax:
            text = pax[b"GNU.sparse.map"]
            numbers = [_decimal(part, "sparse map") for part in text.split(b",")] if text else []
            if len(numbers) > 2 * MAX_SPARSE_ENTRIES:
                raise ArchiveError("a sparse file has too many parts")
        else:
            numbers = self._sparse_map_1_0()
        if len(numbers) % 2:
            raise ArchiveError("a sparse file's map is incomplete")
        entry.size = _decimal(real, "sparse size")
        parts = list(zip(numbers[::2], numbers[1::2], strict=True))
        entry.sparse = check_sparse(parts, entry.size)
        entry.stored = self._left
        if sum(length for _, length in entry.sparse) != entry.stored:
            raise ArchiveError("a sparse file's map does not match its size")

    def _sparse_map_1_0(self) -> list[int]:
        """GNU sparse format 1.0: the map stands before the data, numbers one a line, in blocks."""
        text = b""
        numbers: list[int] = []
        wanted = -1
        while wanted < 0 or len(numbers) < wanted:
            while b"\n" not in text:
                if len(text) > 64:
                    raise ArchiveError("a sparse file's map is not made of numbers")
                text += self.read_body(BLOCK)
            line, _, text = text.partition(b"\n")
            value = _decimal(line, "sparse map")
            if wanted < 0:
                wanted = 2 * value
                if value > MAX_SPARSE_ENTRIES:
                    raise ArchiveError("a sparse file has too many parts")
            else:
                numbers.append(value)
        return numbers

    def _old_sparse(self, entry: TarEntry, block: bytes) -> None:
        """Old GNU format: four parts in the header, 21 in each block that follows."""
        parts: list[tuple[int, int]] = []
        real = parse_number(block[483:495], "realsize")
        area, more = block[386:482], block[482]
        while True:
            for start in range(0, len(area) - 23, 24):
                if area[start] == 0:
                    break
                offset = parse_number(area[start : start + 12], "sparse offset")
                parts.append((offset, parse_number(area[start + 12 : start + 24], "sparse length")))
            if not more:
                break
            if len(parts) > MAX_SPARSE_ENTRIES:
                raise ArchiveError("a sparse file has too many parts")
            extra = self._source.read(BLOCK)
            if len(extra) < BLOCK:
                raise ArchiveError("the archive ends inside a sparse file's map")
            area, more = extra[:504], extra[504]
        stored = entry.size
        entry.kind = b"0"
        entry.size = real
        entry.sparse = check_sparse(parts, real)
        if sum(length for _, length in entry.sparse) != stored:
            raise ArchiveError("a sparse file's map does not match its size")
        entry.stored = stored

    def _begin_body(self, entry: TarEntry) -> None:
        if entry.sparse is not None:
            # The map of a pax sparse file may already have been read off its body.
            if self._padding or self._left:
                return
            stored = entry.stored
        else:
            if entry.kind in b"123456":
                # Links, devices and directories have no body, whatever their size field says.
                entry.size = 0
            stored = entry.stored = entry.size
        self._left = stored
        self._padding = -stored % BLOCK

    def _skip_body(self) -> None:
        if self._left:
            for _ in self.body():
                pass
        if self._padding:
            if len(self._source.read(self._padding)) < self._padding:
                raise ArchiveError("the archive ends inside a file")
            self._padding = 0

    def _drain(self) -> None:
        """Read what follows the end mark, so that the digest covers the whole stream."""
        while self._source.read(1 << 16):
            pass
