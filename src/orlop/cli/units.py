"""What people read, sizes and times, and the environment they write."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable

from orlop.client.options import utf8
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument


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


def parse_environment(text: str) -> pb.KeyValue:
    """``KEY=VALUE``, or ``KEY`` for the value it has here."""
    key, sign, value = text.partition("=")
    if not key:
        raise InvalidArgument(f"{text}: write -e KEY=VALUE")
    return pb.KeyValue(key=utf8(key, text), value=os.fsencode(value if sign else os.environ.get(key, "")))


def environment(texts: Iterable[str], *, tty: bool) -> tuple[pb.KeyValue, ...]:
    """What ``-e`` says, and with a terminal of what kind that is."""
    own = (f"TERM={os.environ.get('TERM', 'xterm')}",) if tty else ()
    return tuple(parse_environment(text) for text in (*own, *texts))
