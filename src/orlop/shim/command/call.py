"""One call of ttrpc over a Unix socket, and its answer."""

from __future__ import annotations

import os
import struct

from orlop.errors import Code, OrlopError, Unavailable
from orlop.shim import places
from orlop.shim.command import protobuf

# The name tells type checkers: importing either would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

HEADER = struct.Struct(">IIBB")
REQUEST, RESPONSE = 1, 2
MAX_MESSAGE = 4 << 20
CALL_TIME = 120.0
_READ = 1 << 16


class ToldByDaemon(OrlopError):
    """The daemon's answer was an error; ``kind`` is its code."""

    def __init__(self, message: str, kind: int) -> None:
        super().__init__(message)
        self.kind = kind


def call(link: socket, service: str, method: str, payload: bytes) -> bytes:
    """The answer's payload. Raises ToldByDaemon, or Unavailable when nobody answers."""
    request = protobuf.text(1, service) + protobuf.text(2, method) + protobuf.text(3, payload)
    try:
        link.sendall(HEADER.pack(len(request), 1, REQUEST, 0) + request)
        length, _, kind, _ = HEADER.unpack(_exactly(link, HEADER.size))
        if kind != RESPONSE or length > MAX_MESSAGE:
            raise Unavailable(f"orlopd answered {method} with something that is no response")
        answer = _exactly(link, length)
    except OSError as error:
        raise Unavailable(f"orlopd does not answer {method}: {error.strerror or error}") from error
    return _payload(answer, method)


def _payload(answer: bytes, method: str) -> bytes:
    found: dict[int, int | bytes] = dict(protobuf.fields(answer))
    status, payload = found.get(1, b""), found.get(2, b"")
    if isinstance(status, bytes) and status:
        parts = dict(protobuf.fields(status))
        code, message = parts.get(1, 0), parts.get(2, b"")
        if isinstance(code, int) and isinstance(message, bytes) and code:
            raise ToldByDaemon(message.decode(errors="replace") or f"{method} failed", code)
    return payload if isinstance(payload, bytes) else b""


def absent(state: str | os.PathLike[str]) -> Unavailable:
    """The error for a daemon that does not run."""
    return Unavailable(
        f"no orlopd listens at {os.path.join(state, places.DAEMON_SOCKET)}: start it with "
        "'systemctl start orlopd', or run 'orlopd' in the foreground"
    )


def refusal(message: str, code: int = Code.UNAVAILABLE) -> bytes:
    """The response that is an error, as a message."""
    return protobuf.text(1, protobuf.number(1, code) + protobuf.text(2, message))


def _exactly(link: socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = link.recv(min(_READ, count - len(data)))
        if not chunk:
            raise ConnectionResetError("it closed the connection")
        data += chunk
    return bytes(data)
