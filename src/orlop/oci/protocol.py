"""What the command and the daemon say to one another: one question and one answer for a connection.

Both are JSON, after four bytes with its length, the most significant first. A question is
``{"verb": "start", ...}`` as :mod:`orlop.oci.questions` has it; an answer ``{"answer": ...}``, or
``{"error": "a sentence", "code": 5}`` with the number of an :class:`orlop.errors.Code`. A connection that the
caller closes before the answer takes the question back. Of the standard library alone: the command is started
for each call.
"""

from __future__ import annotations

import _socket as socket  # The one without the underscore first makes enumerations of all its constants.

from orlop.errors import Code, FailedPrecondition, Internal, OrlopError, Unavailable
from orlop.oci import plainjson

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

FRONT = "oci"
"""Whose pods those of this front are."""

SOCKET = "oci.sock"
"""Its name in the state directory."""

STANDINS = "oci-standins"
"""The directory beside it that all stand-ins work in, by which they are known."""

HEAD = 4
MAX_MESSAGE = 8 << 20
_CONNECT_TIME = 10.0
_READ = 1 << 16


class RefusedByDaemon(OrlopError):
    """The daemon's answer was an error; ``kind`` is its code."""

    def __init__(self, message: str, kind: int) -> None:
        super().__init__(message)
        self.kind = kind


def framed(message: dict[str, Any]) -> bytes:
    """A message as it travels. Raises FailedPrecondition for one that is too long."""
    data = plainjson.written(message).encode("ascii")
    if len(data) > MAX_MESSAGE:
        raise FailedPrecondition(f"a message of {len(data)} bytes is longer than {MAX_MESSAGE}")
    return len(data).to_bytes(HEAD, "big") + data


def absent(path: str) -> Unavailable:
    """The error for a daemon that does not run."""
    return Unavailable(
        f"no orlopd listens at {path}: start it with 'systemctl start orlopd', or run 'orlopd' "
        "in the foreground"
    )


def ask(path: str, verb: str, **question: Any) -> Any:
    """The daemon's answer. Raises RefusedByDaemon, or Unavailable when there is no daemon."""
    link = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        link.settimeout(_CONNECT_TIME)
        try:
            link.connect(path)
        except OSError as error:
            raise absent(path) from error
        link.settimeout(None)
        try:
            link.sendall(framed({"verb": verb, **question}))
            length = int.from_bytes(_exactly(link, HEAD), "big")
            if length > MAX_MESSAGE:
                raise Internal(f"the answer of orlopd has {length} bytes")
            answer = plainjson.read(_exactly(link, length).decode())
        except OSError as error:
            raise Unavailable(f"orlopd went away during {verb}: {error.strerror or error}") from error
    finally:
        link.close()
    if "error" in answer:
        raise RefusedByDaemon(str(answer["error"]), int(answer.get("code", Code.UNKNOWN)))
    return answer.get("answer")


def _exactly(link: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        chunk = link.recv(min(_READ, count - len(data)))
        if not chunk:
            raise ConnectionResetError("it closed the connection")
        data += chunk
    return bytes(data)
