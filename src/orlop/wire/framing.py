"""Frames on a byte pipe that may have been cut anywhere.

Header, 20 bytes, big endian: payload length (u32), offset (u64), stream (u32), kind (u8), three
zero bytes. After the payload comes one more zero byte. ``offset`` is the position of the first
payload byte in its stream (DATA), what was consumed (ACK) or the stream's final length (EOF); 0
otherwise. ``stream`` is the stream's id, or the id of a request and its reply.

A pipe that outlives one of its ends carries the first half of a frame now and then. So whoever
connects sends a preamble, :data:`MAGIC` and a nonce, and the magic can occur nowhere else:

- a header starts and ends with a zero byte, and the magic has none, so it cannot span one;
- a frame that was cut and is filled up by the beginning of a preamble lacks its last zero byte, so
  it is never taken for a whole one;
- JSON payloads are ASCII, and the magic is not;
- DATA payloads that hold the magic are cut within it, so a header comes between the halves.

The parser therefore looks for the magic always, and drops the unfinished frame before it.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from orlop.wire.codec import ProtocolError

__all__ = [
    "HEADER", "MAGIC", "MAX_DATA", "MAX_EVENT", "MAX_MESSAGE", "MAX_REASON", "MAX_STREAM", "NONCE_SIZE",
    "Frame", "Kind", "Parser", "ProtocolError", "data_frames", "frame", "preamble",
]  # fmt: skip

MAGIC = b"\xffORLOP\xfe\xf5wire\xfd\xf7\xfb\xf9"
NONCE_SIZE = 16
HEADER = struct.Struct(">IQIB3s")
MAX_MESSAGE = 4 << 20
MAX_EVENT = 64 << 10
MAX_DATA = 64 << 10
MAX_REASON = 4096
MAX_STREAM = (1 << 24) - 1
MAX_OFFSET = 1 << 56


class Kind(IntEnum):
    """What a frame is. SYNC is not on the wire as a frame: the parser reports a preamble so."""

    SYNC = 0
    HELLO = 1
    REQUEST = 2
    REPLY = 3
    EVENT = 4
    DATA = 5
    ACK = 6
    EOF = 7
    RESET = 8


_LIMITS = {
    Kind.HELLO: MAX_EVENT,
    Kind.REQUEST: MAX_MESSAGE,
    Kind.REPLY: MAX_MESSAGE,
    Kind.EVENT: MAX_EVENT,
    Kind.DATA: MAX_DATA,
    Kind.ACK: 0,
    Kind.EOF: 0,
    Kind.RESET: MAX_REASON,
}
_ABOUT_A_STREAM = frozenset({Kind.DATA, Kind.ACK, Kind.EOF, Kind.RESET})
_WITH_OFFSET = frozenset({Kind.DATA, Kind.ACK, Kind.EOF})
_KINDS = {int(kind): kind for kind in _LIMITS}


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame. For SYNC the payload is the peer's nonce."""

    kind: Kind
    stream: int = 0
    payload: bytes = b""
    offset: int = 0


def _is_nonce(value: bytes) -> bool:
    return len(value) == NONCE_SIZE and not value.strip(b"0123456789abcdef")


def preamble(nonce: bytes) -> bytes:
    """What goes before HELLO. The guest answers with the nonce the host chose.

    A nonce is 16 hex digits (``secrets.token_hex(8).encode()``): ASCII, so that a preamble that
    was cut within its nonce cannot hide the magic of the next one.
    """
    if not _is_nonce(nonce):
        raise ValueError(f"a nonce is {NONCE_SIZE} hex digits, not {nonce!r}")
    return MAGIC + nonce


def frame(kind: Kind, stream: int = 0, payload: bytes = b"", offset: int = 0) -> bytes:
    """Encode one frame; ValueError if it is out of bounds. For DATA use :func:`data_frames`."""
    if len(payload) > _LIMITS[kind]:
        raise ValueError(f"{kind.name} payload of {len(payload)} bytes exceeds {_LIMITS[kind]}")
    if not 0 <= stream <= MAX_STREAM or not 0 <= offset < MAX_OFFSET:
        raise ValueError(f"stream {stream} or offset {offset} is out of range")
    return HEADER.pack(len(payload), offset, stream, kind, b"\0\0\0") + payload + b"\0"


def data_frames(stream: int, offset: int, data: bytes) -> Iterator[bytes]:
    """Encode stream bytes as DATA frames of at most MAX_DATA, never with the magic inside one."""
    start = 0
    while start < len(data):
        end = min(start + MAX_DATA, len(data))
        found = data.find(MAGIC, start, end)
        if found >= 0:
            end = found + 1
        yield frame(Kind.DATA, stream, data[start:end], offset + start)
        start = end


class Parser:
    """Turns bytes into frames. A fresh parser is out of step: it drops all until a preamble.

    With ``nonce``, only the preamble that carries it counts (the host's side after connecting:
    the agent's answers to an earlier connection are dropped).
    """

    def __init__(self, nonce: bytes | None = None) -> None:
        self._nonce = nonce
        self._buffer = bytearray()
        self._position = 0
        self._scanned = 0
        self._in_step = False
        self._most = sys.maxsize

    @property
    def in_step(self) -> bool:
        """Whether a preamble was seen and no error since."""
        return self._in_step

    def feed(self, data: bytes, most: int = sys.maxsize) -> list[Frame]:
        """Take bytes as they came, return the frames they complete, ``most`` at a time.

        When as many were returned there may be more: feed nothing to get them.

        Raises :class:`ProtocolError` for anything out of bounds; frames before it in the same
        call are lost, and so is everything until the next preamble.
        """
        self._buffer += data
        self._most = most
        frames: list[Frame] = []
        try:
            while len(frames) < most and self._step(frames):
                pass
        except ProtocolError:
            self._in_step = False
            raise
        finally:
            del self._buffer[: self._position]
            self._scanned = max(0, self._scanned - self._position)
            self._position = 0
        return frames

    def _step(self, frames: list[Frame]) -> bool:
        """Take one preamble or everything before the next one; False when more bytes are needed."""
        found = self._buffer.find(MAGIC, max(self._position, self._scanned))
        if found < 0:
            # A magic may be half here: look again from where it could start.
            self._scanned = max(self._position, len(self._buffer) - len(MAGIC) + 1)
            self._take_frames(len(self._buffer), frames)
            if not self._in_step:
                self._position = max(self._position, self._scanned)
            return False
        self._take_frames(found, frames)
        if len(frames) >= self._most:
            self._scanned = found
            return False
        end = found + len(MAGIC) + NONCE_SIZE
        self._position = self._scanned = found
        if len(self._buffer) < end:
            self._in_step = False
            return False
        nonce = bytes(self._buffer[found + len(MAGIC) : end])
        if not _is_nonce(nonce):
            self._in_step = False
            self._position = self._scanned = found + len(MAGIC)
            return True
        self._position = self._scanned = end
        self._in_step = self._nonce is None or nonce == self._nonce
        if self._in_step:
            frames.append(Frame(Kind.SYNC, 0, nonce))
        return True

    def _take_frames(self, end: int, frames: list[Frame]) -> None:
        """Take the complete frames that lie before ``end``."""
        while self._in_step and len(frames) < self._most and self._position + HEADER.size <= end:
            length, offset, stream, number, zeros = HEADER.unpack_from(self._buffer, self._position)
            kind = _KINDS.get(number)
            start = self._position + HEADER.size
            self._check(kind, length, offset, stream, zeros)
            assert kind is not None
            if start + length >= end:
                return
            if self._buffer[start + length] != 0:
                raise ProtocolError(f"{kind.name} of {length} bytes does not end where it should")
            payload = bytes(self._buffer[start : start + length])
            self._position = start + length + 1
            frames.append(Frame(kind, stream, payload, offset))

    def _check(self, kind: Kind | None, length: int, offset: int, stream: int, zeros: bytes) -> None:
        if kind is None or zeros != b"\0\0\0":
            raise ProtocolError("header of an unknown kind")
        if length > _LIMITS[kind]:
            raise ProtocolError(f"{kind.name} of {length} bytes exceeds {_LIMITS[kind]}")
        if kind is Kind.DATA and length == 0:
            raise ProtocolError("DATA without bytes")
        if stream > MAX_STREAM or (kind in _ABOUT_A_STREAM and stream == 0):
            raise ProtocolError(f"{kind.name} for stream {stream}")
        if offset >= MAX_OFFSET or (offset and kind not in _WITH_OFFSET):
            raise ProtocolError(f"{kind.name} at offset {offset}")
