"""Frames: ten bytes of header (length, stream, kind, flags), then the message."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

from orlop.errors import ResourceExhausted, Unavailable

MAX_MESSAGE = 4 << 20
"""Bytes of a message, header not counted. The first byte of a length is reserved, so always 0."""

HEADER = struct.Struct(">IIBB")

REMOTE_CLOSED = 0x1
REMOTE_OPEN = 0x2
NO_DATA = 0x4

_RESERVED = 1 << 24
_DISCARD = 1 << 16


class FrameType(IntEnum):
    """What a frame is. One of another number is ignored, for peers to come."""

    REQUEST = 1
    RESPONSE = 2
    DATA = 3


class LinkLost(Unavailable):
    """The connection has ended, or what came through it is no ttrpc."""


class Oversized(ResourceExhausted):
    """A message was too long; it was skipped, and the connection goes on."""

    def __init__(self, stream: int, length: int) -> None:
        super().__init__(f"a message of {length} bytes is longer than the {MAX_MESSAGE} that ttrpc allows")
        self.stream = stream


@dataclass(frozen=True, slots=True)
class TtrpcFrame:
    """One message of a stream."""

    stream: int
    kind: int
    data: bytes = b""
    flags: int = 0

    def encode(self) -> bytes:
        """The frame as bytes. Raises Oversized."""
        if len(self.data) > MAX_MESSAGE:
            raise Oversized(self.stream, len(self.data))
        return HEADER.pack(len(self.data), self.stream, self.kind, self.flags) + self.data


class FrameStream(Protocol):
    """A reliable stream of bytes in both directions."""

    async def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises LinkLost when the stream ends before."""
        ...

    async def write(self, data: bytes) -> None:
        """Send a whole frame; those of several callers do not mix. Raises LinkLost."""
        ...

    async def close(self) -> None:
        """Let go of it. Idempotent."""
        ...


async def read(link: FrameStream) -> TtrpcFrame:
    """The next frame. Raises LinkLost, or Oversized for one that was skipped."""
    length, stream, kind, flags = HEADER.unpack(await link.read(HEADER.size))
    if length >= _RESERVED:
        raise LinkLost(f"a frame of {length} bytes: this is not ttrpc")
    if length > MAX_MESSAGE:
        left = length
        while left:
            left -= len(await link.read(min(left, _DISCARD)))
        raise Oversized(stream, length)
    return TtrpcFrame(stream, kind, await link.read(length) if length else b"", flags)
