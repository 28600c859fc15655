"""Byte streams with an end, as the session code sees them, whatever carries them.

A :class:`Reader` yields what the client sends, a :class:`Writer` takes what it is to get.
:class:`Pipe` is the bounded buffer between the task that reads a connection and the task that
uses one of its streams: a slow consumer stops the connection, it never grows the daemon.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from orlop.errors import OrlopError

PIPE_LIMIT = 256 << 10


class Reader(Protocol):
    """What the client sends on one stream."""

    async def read(self) -> bytes:
        """Some bytes, or none at the end of the stream."""
        ...


class Writer(Protocol):
    """What the client receives on one stream."""

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; waits while the client does not read."""
        ...

    async def close(self) -> None:
        """End the stream; idempotent."""
        ...


class Transport(Protocol):
    """A connection after its upgrade: raw TCP, or a WebSocket that carries SPDY."""

    async def read(self) -> bytes:
        """Some bytes, or none when the client is gone."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of ``data``. Raises ConnectionError when the client is gone."""
        ...


@dataclass(frozen=True)
class Channels:
    """The streams of one exec or attach; those that were not asked for are None."""

    error: Writer
    stdin: Reader | None = None
    stdout: Writer | None = None
    stderr: Writer | None = None
    resize: Reader | None = None


class Pipe:
    """A bounded buffer between one producer task and one consumer task."""

    def __init__(self, limit: int = PIPE_LIMIT) -> None:
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._limit = limit
        self._ended = False
        self._discard = False
        self._changed = asyncio.Event()

    async def put(self, data: bytes) -> None:
        """Add bytes; waits while the buffer is full. Bytes after the end are dropped."""
        while self._size >= self._limit and not self._ended and not self._discard:
            self._changed.clear()
            await self._changed.wait()
        if data and not self._ended and not self._discard:
            self._chunks.append(data)
            self._size += len(data)
            self._changed.set()

    def end(self) -> None:
        """Nothing more will come."""
        self._ended = True
        self._changed.set()

    def discard(self) -> None:
        """Nobody will read any more: drop what is here and what comes."""
        self._discard = True
        self._chunks.clear()
        self._size = 0
        self._changed.set()

    async def read(self) -> bytes:
        """Some bytes, or none at the end."""
        while not self._chunks:
            if self._ended or self._discard:
                return b""
            self._changed.clear()
            await self._changed.wait()
        chunk = self._chunks.popleft()
        self._size -= len(chunk)
        self._changed.set()
        return chunk


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure of a task group that a client is to hear of: one with words for people, else the first."""
    for failure in failures.exceptions:
        if isinstance(failure, OrlopError):
            return failure
    first = failures.exceptions[0]
    return first_failure(first) if isinstance(first, BaseExceptionGroup) else first
