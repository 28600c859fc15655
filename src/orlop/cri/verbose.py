"""The ``info`` maps of verbose answers: JSON in strings, as crictl shows and parses them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import msgspec


def text(value: Mapping[str, object]) -> str:
    """``value`` as a JSON object, the only kind that crictl does not show as a string.

    What JSON has no word for becomes text.
    """
    return msgspec.json.encode(value, enc_hook=str).decode()


def info(values: Mapping[str, object]) -> dict[str, str]:
    """One entry named "info", where tools look for it."""
    return {"info": text(values)}


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()
