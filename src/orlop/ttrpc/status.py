"""Errors as they travel: gRPC's codes with a text."""

from __future__ import annotations

import logging

from orlop.errors import Code, Internal, OrlopError
from orlop.ttrpc.messages_pb2 import Response, Status

log = logging.getLogger(__name__)

MAX_TEXT = 2048
"""Most characters of an error message that are sent, or taken."""


def _family(kind: type[OrlopError]) -> dict[int, type[OrlopError]]:
    found = {one.code: one for one in kind.__subclasses__() if one.__module__ == OrlopError.__module__}
    return {code: one for code, one in found.items() if code != Code.UNKNOWN}


_KINDS = _family(OrlopError)


def refusal(error: Exception, method: str) -> Response:
    """The response that says why a call failed; what is no error of ours is a fault, and logged."""
    if not isinstance(error, OrlopError):
        log.error("%s failed unexpectedly", method, exc_info=error)
        error = Internal(f"{method}: {type(error).__name__}: {error}")
    text = " ".join(str(error).split())[:MAX_TEXT]
    return Response(status=Status(code=error.code, message=text))


def error_of(status: Status) -> OrlopError:
    """The error that a peer told."""
    text = " ".join(status.message.split())[:MAX_TEXT] or f"an error with the code {status.code}"
    return _KINDS.get(status.code, OrlopError)(text)
