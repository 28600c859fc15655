"""Reading a container's log file, which is in the CRI log format (see ``orlop.sandbox.crilog``)."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, NamedTuple

POLL = 0.05
CHUNK = 1 << 16


class Line(NamedTuple):
    """One entry: when, which stream, and its bytes (with the newline where the line ends)."""

    time: str
    stream: str
    content: bytes


def parse(raw: bytes) -> Line | None:
    """One line of the file, without its newline; None when it is not in the format."""
    parts = raw.split(b" ", 3)
    if len(parts) < 3 or parts[1] not in (b"stdout", b"stderr"):
        return None
    content = parts[3] if len(parts) == 4 else b""
    # Tags may be joined by ":"; P marks a line that goes on in the next entry.
    whole = b"P" not in parts[2].split(b":")
    return Line(parts[0].decode("ascii", "replace"), parts[1].decode(), content + (b"\n" if whole else b""))


class Period(NamedTuple):
    """From when to when, in seconds since 1970."""

    since: float = 0.0
    until: float = math.inf

    def holds(self, line: Line) -> bool:
        """Whether the entry came then; one whose time cannot be read did."""
        if self.since <= 0 and self.until == math.inf:
            return True
        try:
            return self.since <= datetime.fromisoformat(line.time).timestamp() <= self.until
        except ValueError:
            return True


def before_last(path: Path, tail: int, span: Period) -> int:
    """How many entries of that time the file holds now before the last ``tail``."""
    return max(0, sum(span.holds(line) for line in read_all(path)) - tail)


def read_all(path: Path) -> list[Line]:
    """Every entry that the file holds now."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    return [line for one in raw.split(b"\n") if one and (line := parse(one)) is not None]


class _Follower:
    """Keeps its place in a file that grows, and that may be rotated."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def _open(self) -> BinaryIO | None:
        if self._file is None:
            try:
                self._file = self._path.open("rb")
            except FileNotFoundError:
                return None
        return self._file

    def lines(self) -> list[Line]:
        """What came since the last call."""
        file = self._open()
        if file is None:
            return []
        found: list[Line] = []
        while chunk := file.read(CHUNK):
            pieces = (self._rest + chunk).split(b"\n")
            self._rest = pieces.pop()
            found += [line for one in pieces if (line := parse(one)) is not None]
        return found

    def rotated(self) -> bool:
        """Whether the name now stands for another file; that one is read next."""
        if self._file is None:
            return False
        try:
            now = self._path.stat()
        except FileNotFoundError:
            return False
        old = os.fstat(self._file.fileno())
        if (now.st_dev, now.st_ino) == (old.st_dev, old.st_ino):
            return False
        self.close()
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file, self._rest = None, b""


async def follow(path: Path, ended: Callable[[], Awaitable[bool]]) -> AsyncIterator[Line]:
    """Yield entries as they come, until ``ended`` says that the container is done and all is read."""
    follower = _Follower(path)
    try:
        while True:
            last = await ended()
            for line in follower.lines():
                yield line
            if follower.rotated():
                continue
            if last:
                return
            await asyncio.sleep(POLL)
    finally:
        follower.close()
