"""SPDY/3.1 frames, without any input or output.

kubectl, the kubelet and crictl still speak SPDY/3.1 for exec, attach and port-forward, and no
maintained Python library does, so the dozen frame types that these clients use are here.
Source: the SPDY protocol, draft 3.1 (https://www.chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1/).

:class:`FrameParser` turns received bytes into frames, bounded in size; :class:`FrameWriter`
makes frames to send. Both keep the state of the shared header compression, so there is one of
each for a connection. The peers of this field send no flow-control frames and expect none:
back-pressure is that of the transport below.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum

from orlop.errors import InvalidArgument

VERSION = 3
FLAG_FIN = 0x01
MAX_FRAME = 1 << 20
MAX_HEADER_BLOCK = 4 << 10
"""Bytes, inflated. The streams of this field have three headers of a word each."""
MAX_HEADERS = 16

_HEAD = struct.Struct("!II")
_WORD = struct.Struct("!I")


class ControlKind(IntEnum):
    """Control frame types (draft 3.1, section 2.6)."""

    SYN_STREAM = 1
    SYN_REPLY = 2
    RST_STREAM = 3
    SETTINGS = 4
    PING = 6
    GOAWAY = 7
    HEADERS = 8
    WINDOW_UPDATE = 9


class ResetStatus(IntEnum):
    """Why a stream was reset (draft 3.1, section 2.6.3)."""

    PROTOCOL_ERROR = 1
    INVALID_STREAM = 2
    REFUSED_STREAM = 3
    CANCEL = 5


class SpdyError(InvalidArgument):
    """The peer sent bytes that are not SPDY/3.1, or more of them than allowed."""


@dataclass(frozen=True)
class SynStream:
    """The peer opens a stream."""

    stream: int
    headers: dict[str, str]
    fin: bool


@dataclass(frozen=True)
class Headers:
    """More headers for a stream; also a SYN_REPLY's."""

    stream: int
    headers: dict[str, str]
    fin: bool


@dataclass(frozen=True)
class Data:
    """Bytes of a stream."""

    stream: int
    data: bytes
    fin: bool


@dataclass(frozen=True)
class Reset:
    """The peer gave a stream up."""

    stream: int
    status: int


@dataclass(frozen=True)
class PingFrame:
    """To be sent back unchanged when its id is odd at a server."""

    id: int


@dataclass(frozen=True)
class GoAway:
    """The peer will open no more streams."""

    last_stream: int


Frame = SynStream | Headers | Data | Reset | PingFrame | GoAway


def _words() -> bytes:
    names = (  # noqa: SIM905 - a word list reads better than eighty literals
        "options head post put delete trace accept accept-charset accept-encoding accept-language "
        "accept-ranges age allow authorization cache-control connection content-base content-encoding "
        "content-language content-length content-location content-md5 content-range content-type date etag "
        "expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since "
        "last-modified location max-forwards pragma proxy-authenticate proxy-authorization range referer "
        "retry-after server te trailer transfer-encoding upgrade user-agent vary via warning "
        "www-authenticate method get status"
    ).split()
    tail = ["200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie", "keep-alive", "origin"]
    return b"".join(_WORD.pack(len(name)) + name.encode() for name in names + tail)


#: The compression dictionary both ends start from (draft 3.1, section 2.6.10.1).
DICTIONARY = _words() + (
    b"100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    b"203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized"
    b"403 Forbidden404 Not Found500 Internal Server Error501 Not Implemented503 Service Unavailable"
    b"Jan Feb Mar Apr May Jun Jul Aug Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMT"
    b"chunked,text/html,image/png,image/jpg,image/gif,application/xml,application/xhtml+xml,text/plain,"
    b"text/javascript,publicprivatemax-age=gzip,deflate,sdchcharset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)


class FrameParser:
    """Received bytes in, frames out. Raises :class:`SpdyError` once and is of no use after that."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._inflate = zlib.decompressobj(zdict=DICTIONARY)

    def feed(self, data: bytes) -> list[Frame]:
        """Take received bytes; return the frames that they complete."""
        self._buffer += data
        frames: list[Frame] = []
        while len(self._buffer) >= _HEAD.size:
            first, second = _HEAD.unpack_from(self._buffer)
            flags, length = second >> 24, second & 0xFFFFFF
            if length > MAX_FRAME:
                raise SpdyError(f"SPDY frame of {length} bytes is larger than {MAX_FRAME}")
            end = _HEAD.size + length
            if len(self._buffer) < end:
                break
            payload = bytes(self._buffer[_HEAD.size : end])
            del self._buffer[:end]
            if not first & 0x80000000:
                frames.append(Data(first, payload, bool(flags & FLAG_FIN)))
                continue
            if (version := (first >> 16) & 0x7FFF) != VERSION:
                raise SpdyError(f"SPDY version {version} is not supported, only {VERSION}")
            frame = self._control(first & 0xFFFF, flags, payload)
            if frame is not None:
                frames.append(frame)
        return frames

    def _control(self, kind: int, flags: int, payload: bytes) -> Frame | None:
        fin = bool(flags & FLAG_FIN)
        match kind:
            case ControlKind.SYN_STREAM:
                stream = _word(payload, 0, "SYN_STREAM")
                return SynStream(stream, self._headers(payload[10:]), fin)
            case ControlKind.SYN_REPLY | ControlKind.HEADERS:
                stream = _word(payload, 0, "HEADERS")
                return Headers(stream, self._headers(payload[4:]), fin)
            case ControlKind.RST_STREAM:
                return Reset(_word(payload, 0, "RST_STREAM"), _word(payload, 4, "RST_STREAM"))
            case ControlKind.PING:
                return PingFrame(_word(payload, 0, "PING"))
            case ControlKind.GOAWAY:
                return GoAway(_word(payload, 0, "GOAWAY"))
            case _:
                return None

    def _headers(self, block: bytes) -> dict[str, str]:
        try:
            plain = self._inflate.decompress(block, MAX_HEADER_BLOCK)
        except zlib.error as error:
            raise SpdyError(f"SPDY header block does not decompress: {error}") from error
        if self._inflate.unconsumed_tail or self._inflate.eof:
            raise SpdyError(f"SPDY header block is larger than {MAX_HEADER_BLOCK} bytes or was ended")
        count = _word(plain, 0, "header block")
        if count > MAX_HEADERS:
            raise SpdyError(f"SPDY frame has {count} headers, more than {MAX_HEADERS}")
        headers: dict[str, str] = {}
        offset = 4
        for _ in range(count):
            name, offset = _text(plain, offset)
            value, offset = _text(plain, offset)
            headers[name.lower()] = value
        return headers


class FrameWriter:
    """Makes the bytes of frames to send."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj(zdict=DICTIONARY)

    def syn_stream(self, stream: int, headers: dict[str, str], *, fin: bool = False) -> bytes:
        """Open a stream (a client does)."""
        body = struct.pack("!IIBB", stream, 0, 0, 0) + self._block(headers)
        return _control(ControlKind.SYN_STREAM, body, FLAG_FIN if fin else 0)

    def syn_reply(self, stream: int, headers: dict[str, str] | None = None) -> bytes:
        """Accept a stream."""
        return _control(ControlKind.SYN_REPLY, _WORD.pack(stream) + self._block(headers or {}))

    def data(self, stream: int, data: bytes, *, fin: bool = False) -> bytes:
        """Bytes of a stream, at most :data:`MAX_FRAME` of them."""
        return _HEAD.pack(stream, (FLAG_FIN if fin else 0) << 24 | len(data)) + data

    def reset(self, stream: int, status: ResetStatus) -> bytes:
        """Give a stream up."""
        return _control(ControlKind.RST_STREAM, struct.pack("!II", stream, status))

    def ping(self, identifier: int) -> bytes:
        """A ping, or the answer to one."""
        return _control(ControlKind.PING, _WORD.pack(identifier))

    def go_away(self, last_stream: int) -> bytes:
        """Say that no more streams will be accepted."""
        return _control(ControlKind.GOAWAY, struct.pack("!II", last_stream, 0))

    def _block(self, headers: dict[str, str]) -> bytes:
        plain = bytearray(_WORD.pack(len(headers)))
        for name, value in headers.items():
            for text in (name.lower().encode(), value.encode()):
                plain += _WORD.pack(len(text)) + text
        return self._deflate.compress(bytes(plain)) + self._deflate.flush(zlib.Z_SYNC_FLUSH)


def _control(kind: ControlKind, body: bytes, flags: int = 0) -> bytes:
    return _HEAD.pack(0x80000000 | VERSION << 16 | kind, flags << 24 | len(body)) + body


def _word(data: bytes, offset: int, what: str) -> int:
    if len(data) < offset + 4:
        raise SpdyError(f"SPDY {what} is cut short")
    value: int = _WORD.unpack_from(data, offset)[0]
    return value & 0x7FFFFFFF


def _text(plain: bytes, offset: int) -> tuple[str, int]:
    end = offset + 4 + _word(plain, offset, "header block")
    if end > len(plain):
        raise SpdyError("SPDY header block is cut short")
    return plain[offset + 4 : end].decode("latin-1"), end
