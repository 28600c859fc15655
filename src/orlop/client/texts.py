"""Sizes, durations, and texts that a request can carry."""

from __future__ import annotations

import re

from orlop.errors import InvalidArgument

_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?$", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}
_DIGITS = 20

_PART = re.compile(r"(\d{1,12}(?:\.\d{1,9})?)(ms|s|m|h|d)")
_DURATION = re.compile(rf"(?:{_PART.pattern})+")
_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def parse_size(text: str) -> int:
    """``512m``, ``1.5g``, ``1048576`` in bytes; units are powers of 1024."""
    match = _SIZE.match(text.strip())
    if match is None or len(match[1]) > _DIGITS:
        raise InvalidArgument(f"{text} is not a size: write for example 512m or 2g")
    return int(float(match[1]) * 1024 ** _POWERS[match[2].lower()])


def parse_duration(text: str) -> float:
    """``30s``, ``1m30s``, ``1.5h`` in seconds, and ``0``."""
    if (seconds := seconds_of(text.strip())) is None:
        raise InvalidArgument(f"{text} is no time: write for example 30s or 1m30s")
    return seconds


def seconds_of(text: str) -> float | None:
    """The same; None for what is no such text."""
    if text == "0":
        return 0.0
    if not _DURATION.fullmatch(text):
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))


def utf8(part: str, whole: str) -> str:
    """What a request can carry: an argument may be any bytes, CRI's texts are UTF-8."""
    try:
        part.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{whole!a}: {part!a} is not UTF-8") from None
    return part
