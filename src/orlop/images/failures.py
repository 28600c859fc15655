"""What a message of skopeo means.

skopeo tells its errors as text only. The words below are those of the distribution API's error codes
(OCI distribution-spec, "Error Codes"), of HTTP and of the operating system, as its library passes them on.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress

from orlop.errors import (
    Code,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

# What the text of an error tells, tried in order. Kubernetes looks for the first word of some messages.
_MEANINGS: tuple[tuple[tuple[str, ...], type[OrlopError], str], ...] = (
    (("no space left on device", "disk quota exceeded"), ResourceExhausted, "the disk is full"),
    (
        ("source image rejected", "signature"),
        PermissionDenied,
        "SignatureValidationFailed: the policy forbids it",
    ),
    (("invalid reference format", "invalid port"), InvalidArgument, "this is no name of an image"),
    (("toomanyrequests", "too many requests"), ResourceExhausted, "the registry allows no more requests now"),
    (
        ("http response to https client", "x509:", "tls:", "certificate"),
        FailedPrecondition,
        (
            "RegistryUnavailable: no secure connection "
            "(a plain-http registry must be marked insecure in registries.conf)"
        ),
    ),
    (
        ("invalid username/password", "authentication required", "unauthorized", "401"),
        Unauthenticated,
        "the registry wants other credentials",
    ),
    (
        ("manifest unknown", "name unknown", "repository name not known", "not found", "404"),
        NotFound,
        "the registry does not have it",
    ),
    (("denied", "forbidden", "403"), PermissionDenied, "the registry forbids it"),
    (("corrupted blob", "digest", "does not match"), DataLoss, "what came does not match its digest"),
    (("",), Unavailable, "RegistryUnavailable: the registry cannot be reached"),
)


# Names say nothing about what went wrong, though "401" or "signature" may be part of one: addresses,
# hosts with their ports, references that begin with a host, digests. Each begins where no part of it can
# come before, so that a long word is looked at once and not from each of its letters.
_NAMES = re.compile(
    r"""(?<![a-z])[a-z]+://[^\s"]+|(?<![\w.:-])[\w-]*[.:][\w.:-]*/[^\s"]*|(?<![\w.-])[\w.-]+:[0-9]+\b"""
    r"""|\[[0-9a-f:]+\]:[0-9]+|sha256:[0-9a-f]+"""
)

_LONGEST = 16 << 10
"""Characters of a message that are looked at: some registries send a page."""


def failure(name: str, message: str) -> OrlopError:
    """The error that a message of skopeo stands for."""
    said = _NAMES.sub("", message[:_LONGEST].lower())
    for words, kind, meaning in _MEANINGS:
        if any(not word or re.search(rf"(?<![0-9]){re.escape(word)}(?![0-9])", said) for word in words):
            label, colon, rest = meaning.partition(": ")
            prefix = f"{label}: " if colon else ""
            return kind(f"{prefix}image {name} cannot be pulled: {rest or label} ({_shorten(message)})")
    raise AssertionError("the last meaning fits everything")


def _shorten(message: str) -> str:
    message = " ".join(message.split())
    return message if len(message) <= 400 else "..." + message[-400:]


def retryable(error: OrlopError) -> bool:
    """Whether trying again soon may help."""
    return error.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


def last_message(text: str) -> str:
    """The message of the last log line; logrus writes ``time="..." level=fatal msg="..."``."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1]
    begin = line.find('msg="')
    if begin < 0:
        return line
    with suppress(ValueError):
        found = json.JSONDecoder().raw_decode(line[begin + 4 :])[0]
        return str(found)
    return line[begin + 5 :].rstrip('"')
