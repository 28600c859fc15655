"""Route netlink (rtnetlink(7)): the few requests that joining a tap and counting bytes need.

A general netlink library costs 13 MB of the daemon's memory and a tenth of a second at start;
what is needed here is a header, nested attributes and an acknowledgement. Calls are synchronous
and take microseconds. A socket belongs to the network namespace of the thread that made it.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from types import TracebackType

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_NLMSG_ERROR = 2
_NLMSG_DONE = 3
_F_REQUEST = 0x1
_F_ACK = 0x4
_F_DUMP = 0x300
_F_CREATE = 0x400
_F_EXCLUSIVE = 0x200
_SOL_NETLINK = 270
_EXT_ACK = 11
_ERROR_MESSAGE = 1
_BUFFER = 1 << 16
_TYPE_MASK = 0x3FFF  # without the flags "nested" and "network byte order"


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded to four bytes; nest by passing packed attributes as ``value``."""
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(-length % 4)


def text(value: str) -> bytes:
    """A zero-terminated string, as the kernel's string attributes are."""
    return value.encode() + b"\0"


def attributes(data: bytes) -> dict[int, bytes]:
    """Unpack a run of attributes by kind; the last one of a kind wins."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size or offset + length > len(data):
            break
        found[kind & _TYPE_MASK] = data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


class Netlink:
    """A route netlink socket of the calling thread's network namespace; a context manager."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
        self._socket.setsockopt(_SOL_NETLINK, _EXT_ACK, 1)
        self._socket.bind((0, 0))
        self._sequence = 0

    def __enter__(self) -> Netlink:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def change(self, kind: int, payload: bytes, *, create: bool = False) -> None:
        """Send a request and wait for its acknowledgement. Raises OSError with the kernel's words."""
        flags = _F_ACK | (_F_CREATE | _F_EXCLUSIVE if create else 0)
        for _ in self._ask(kind, flags, payload):
            pass

    def dump(self, kind: int, payload: bytes) -> list[tuple[int, bytes]]:
        """All objects of a kind, as (message type, payload). Raises OSError."""
        return list(self._ask(kind, _F_DUMP, payload))

    def _ask(self, kind: int, flags: int, payload: bytes) -> Iterator[tuple[int, bytes]]:
        self._sequence += 1
        sequence = self._sequence
        header = _HEADER.pack(_HEADER.size + len(payload), kind, _F_REQUEST | flags, sequence, 0)
        self._socket.sendto(header + payload, (0, 0))
        while True:
            for message, number, data in _messages(self._socket.recv(_BUFFER)):
                if number != sequence:
                    continue
                if message == _NLMSG_DONE:
                    return
                if message == _NLMSG_ERROR:
                    _raise_error(data)
                    return
                yield message, data


def _messages(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _flags, sequence, _pid = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size:
            return
        yield kind, sequence, data[offset + _HEADER.size : offset + length]
        offset += (length + 3) & ~3


def _raise_error(data: bytes) -> None:
    (number,) = struct.unpack_from("=i", data)
    if number == 0:
        return
    (original,) = struct.unpack_from("=I", data, 4)
    # The request may or may not be echoed; the attributes follow whichever it is.
    words = b""
    for skip in (4 + _HEADER.size, 4 + ((original + 3) & ~3)):
        words = words or attributes(data[skip:]).get(_ERROR_MESSAGE, b"")
    said = words.rstrip(b"\0").decode(errors="replace")
    raise OSError(-number, said or os.strerror(-number))
