"""Sizes, and texts that a request can carry."""

from __future__ import annotations

import re

from orlop.errors import InvalidArgument

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DIGITS = 20


def parse_size(text: str) -> int:
    """``512m``, ``1.5g``, ``1048576`` in bytes; units are powers of 1024."""
    match = _SIZE.match(text.strip())
    if match is None or len(match[1]) > _DIGITS:
        raise InvalidArgument(f"{text} is not a size: write for example 512m or 2g")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def utf8(part: str, whole: str) -> str:
    """What a request can carry: an argument may be any bytes, CRI's texts are UTF-8."""
    try:
        part.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{whole!a}: {part!a} is not UTF-8") from None
    return part
