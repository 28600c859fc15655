"""What people read, sizes and times, and the environment they write."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from orlop.client.texts import seconds_of, utf8
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument

_SECONDS = re.compile(r"\d{1,12}(?:\.\d{1,9})?")


def show_size(size: int) -> str:
    """Bytes for people."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 100 else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"


def show_age(then_ns: int) -> str:
    """How long ago that was."""
    if then_ns <= 0:
        return "-"
    seconds = max(0, int(time.time() - then_ns / 1e9))
    for limit, unit, divisor in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds // divisor} {unit} ago"
    return f"{seconds // 86400} days ago"


def moment(text: str, otherwise: float) -> float:
    """A time in seconds since 1970: ``2026-01-31T12:00:00Z``, such seconds, or how long ago (``1h30m``).

    ``otherwise`` for "". A time without a zone is this machine's. Raises InvalidArgument.
    """
    if not text:
        return otherwise
    if _SECONDS.fullmatch(text):
        return float(text)
    if (ago := seconds_of(text)) is not None:
        return time.time() - ago
    try:
        return datetime.fromisoformat(text).timestamp()
    except (ValueError, OverflowError):
        raise InvalidArgument(
            f"{text} is no time: write for example 10m, 2026-01-31T12:00:00Z or seconds since 1970"
        ) from None


def parse_environment(text: str) -> pb.KeyValue:
    """``KEY=VALUE``, or ``KEY`` for the value it has here."""
    key, sign, value = text.partition("=")
    if not key:
        raise InvalidArgument(f"{text}: write -e KEY=VALUE")
    return pb.KeyValue(key=utf8(key, text), value=os.fsencode(value if sign else os.environ.get(key, "")))


def environment(texts: Iterable[str], files: Iterable[Path], *, tty: bool) -> tuple[pb.KeyValue, ...]:
    """What ``--env-file`` and then ``-e`` say, and with a terminal of what kind that is."""
    own = (f"TERM={os.environ.get('TERM', 'xterm')}",) if tty else ()
    written = [line for file in files for line in _variables(file)]
    return tuple(parse_environment(text) for text in (*own, *written, *texts))


def _variables(file: Path) -> list[str]:
    """Lines of ``KEY=VALUE`` or ``KEY``, but for empty ones and comments."""
    try:
        lines = [line.strip() for line in file.read_text(errors="surrogateescape").splitlines()]
    except OSError as error:
        raise InvalidArgument(f"the file of variables {file} cannot be read: {error.strerror}") from error
    return [line for line in lines if line and not line.startswith("#")]


def labels(texts: Iterable[str]) -> dict[str, str]:
    """``KEY=VALUE``, or ``KEY`` for no value."""
    found = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not key:
            raise InvalidArgument(f"{text}: write --label KEY=VALUE")
        found[utf8(key, text)] = utf8(value, text)
    return found
