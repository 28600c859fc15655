"""The bytes of a layer: read from a pipe, checked, decompressed and checked again.

One thread reads, hashes and decompresses; the thread that asks for bytes hashes the result. Both
kinds of work release the interpreter's lock, so that two processors are used. What arrives is
bounded: in bytes, and in the ratio between what comes out and what goes in.
"""

from __future__ import annotations

import hashlib
import os
import queue
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Protocol, Self

import zstandard

from orlop.images.tarstream import ArchiveError, TooLarge

try:
    # Two to three times as fast as zlib, where there is a wheel for the machine.
    from isal import isal_zlib as _gzip
except ImportError:
    import zlib as _gzip  # type: ignore[no-redef]

_GZIP_ERRORS: tuple[type[Exception], ...] = (zlib.error, _gzip.error)  # type: ignore[assignment]

READ_SIZE = 1 << 18
CHUNK = 1 << 20
MAX_RATIO = 1100
RATIO_FREE = 1 << 28

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_DEPTH = 8


class CutOff(Exception):
    """The blob ended before the size that was announced."""


class _Member(Protocol):
    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    @property
    def unconsumed_tail(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


class _Plain:
    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data

    def finish(self) -> None:
        pass


class _Gzip:
    """gzip, of any number of members (RFC 1952, 2.2)."""

    def __init__(self) -> None:
        self._member: _Member = _gzip.decompressobj(wbits=31)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member.eof:
                data = data.lstrip(b"\0") if not self._begun else data
                if not data:
                    return
                self._member = _gzip.decompressobj(wbits=31)
            self._begun = True
            try:
                yield self._member.decompress(data, CHUNK)
            except _GZIP_ERRORS as error:
                raise ArchiveError(f"the layer's gzip stream is damaged: {error}") from error
            if self._member.eof:
                data = self._member.unused_data
                self._begun = False
            else:
                data = self._member.unconsumed_tail

    def finish(self) -> None:
        if not self._member.eof:
            raise ArchiveError("the layer's gzip stream ends early")


class _Zstd:
    """Zstandard, of any number of frames (RFC 8878), with a window of at most 128 MiB."""

    def __init__(self) -> None:
        self._context = zstandard.ZstdDecompressor(max_window_size=1 << 27)
        self._frame = self._context.decompressobj(write_size=CHUNK)
        self._inside = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        # A frame's object takes all of its input at once, so that a small input bounds the output.
        view = memoryview(data)
        for start in range(0, len(view), 4096):
            yield from self._piece(bytes(view[start : start + 4096]))

    def _piece(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._frame.eof:
                self._frame = self._context.decompressobj(write_size=CHUNK)
            self._inside = True
            try:
                yield self._frame.decompress(data)
            except zstandard.ZstdError as error:
                raise ArchiveError(f"the layer's zstd stream is damaged: {error}") from error
            data = b""
            if self._frame.eof:
                data = self._frame.unused_data
                self._inside = False

    def finish(self) -> None:
        if self._inside:
            raise ArchiveError("the layer's zstd stream ends early")


def is_packed(first: bytes) -> bool:
    """Whether a stream that begins with these four bytes is compressed, in a way that is understood."""
    return not isinstance(_decoder(first), _Plain)


def _decoder(first: bytes) -> _Plain | _Gzip | _Zstd:
    if first.startswith(_GZIP):
        return _Gzip()
    if first.startswith(_ZSTD) or (first[1:4] == b"\x2a\x4d\x18" and 0x50 <= first[0] <= 0x5F):
        return _Zstd()
    return _Plain()


class LayerStream:
    """A :class:`~orlop.images.tarstream.Source` over a file descriptor.

    The compression is told by the first bytes, as the media type of a layer is not always right.
    It reads through a descriptor of its own, a duplicate, until it is closed: leave it as a context
    manager. Exactly ``size`` bytes are read, whether or not the other end is closed behind them; fewer
    raise CutOff. ``limit`` bounds what they unpack to, beyond it TooLarge is raised. After the end has been
    read, :attr:`digest` and :attr:`diff_id` hold what was seen. ``progress`` is told, from another
    thread, how many bytes have been read so far and whether these were all.
    """

    def __init__(
        self,
        descriptor: int,
        *,
        size: int,
        limit: int,
        progress: Callable[[int, bool], None] | None = None,
    ) -> None:
        # The thread may outlive its caller by one read: the number of a descriptor that the caller
        # closes could by then be another file's.
        self._descriptor = os.dup(descriptor)
        self._size = size
        self._limit = limit
        self._progress = progress
        self._queue: queue.Queue[bytes | BaseException | None] = queue.Queue(_DEPTH)
        self._compressed = hashlib.sha256()
        self._plain = hashlib.sha256()
        self._chunk = b""
        self._position = 0
        self._ended = False
        self._closed = False
        self.read_bytes = 0
        self.plain_bytes = 0
        threading.Thread(target=self._pump, name="inflate", daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Let the thread end; nothing is waited for, as its read may never return."""
        self._closed = True
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()

    @property
    def digest(self) -> str:
        """The digest of the bytes as they came."""
        return "sha256:" + self._compressed.hexdigest()

    @property
    def diff_id(self) -> str:
        """The digest of the bytes as they are decompressed."""
        return "sha256:" + self._plain.hexdigest()

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes, or fewer at the end of the stream."""
        chunk, start = self._chunk, self._position
        end = start + size
        if end <= len(chunk):
            self._position = end
            return chunk[start:end]
        parts = [chunk[start:]]
        missing = size - (len(chunk) - start)
        while missing and self._next():
            part = self._chunk[:missing]
            self._position = len(part)
            missing -= len(part)
            parts.append(part)
        return b"".join(parts)

    def chunks(self, size: int) -> Iterator[memoryview]:
        """The next ``size`` bytes in pieces; raises ArchiveError if the stream ends before."""
        while size:
            if self._position == len(self._chunk) and not self._next():
                raise ArchiveError("the archive ends inside a file")
            stop = min(self._position + size, len(self._chunk))
            piece = memoryview(self._chunk)[self._position : stop]
            size -= stop - self._position
            self._position = stop
            yield piece

    def _next(self) -> bool:
        if self._ended:
            return False
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        if item is None:
            self._ended = True
            self._chunk, self._position = b"", 0
            return False
        self._plain.update(item)
        self._chunk, self._position = item, 0
        return True

    def _pump(self) -> None:
        try:
            decoder: _Plain | _Gzip | _Zstd | None = None
            begin = b""
            while data := self._read_some():
                if decoder is None:
                    begin += data
                    if len(begin) < 4 and self.read_bytes < self._size:
                        continue
                    decoder, data = _decoder(begin), begin
                for part in decoder.feed(data):
                    if self._closed:
                        return
                    if part:
                        self._count(len(part))
                        self._queue.put(part)
            if decoder is not None:
                decoder.finish()
            self._queue.put(None)
        except BaseException as error:
            self._queue.put(error)
        finally:
            os.close(self._descriptor)

    def _read_some(self) -> bytes:
        left = self._size - self.read_bytes
        if not left:
            return b""
        data = os.read(self._descriptor, min(READ_SIZE, left))
        if not data:
            raise CutOff(f"the layer ended after {self.read_bytes} of {self._size} bytes")
        self._compressed.update(data)
        self.read_bytes += len(data)
        if self._progress is not None:
            self._progress(self.read_bytes, self.read_bytes == self._size)
        return data

    def _count(self, size: int) -> None:
        self.plain_bytes += size
        if self.plain_bytes > self._limit:
            raise TooLarge(f"the layer unpacks to more than {self._limit >> 20} MiB")
        if self.plain_bytes > RATIO_FREE and self.plain_bytes > MAX_RATIO * self.read_bytes:
            raise TooLarge(f"the layer unpacks to more than {MAX_RATIO} times its size")
