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
CONNECTION_BYTES = 8 << 20
"""What all streams of a connection may have waiting for their readers, but for one last message."""
OWN_BYTES = 64 << 10
ALL_BYTES = 256 << 20
"""The same for all connections together, beyond each one's first :data:`OWN_BYTES`."""


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
class CommandChannels:
    """The streams of one exec or attach; those that were not asked for are None."""

    error: Writer
    stdin: Reader | None = None
    stdout: Writer | None = None
    stderr: Writer | None = None
    resize: Reader | None = None


class ByteBudget:
    """Bytes that the buffers of one connection may hold, and within ``parent`` those of all connections.

    A buffer asks before it takes bytes and gives back what was read; whoever must wait stops reading
    its connection. The first :data:`OWN_BYTES` of each connection are not the parent's business, so
    that those who hold much cannot stop the others.
    """

    def __init__(self, limit: int, parent: ByteBudget | None = None) -> None:
        self._limit = limit
        self._parent = parent
        self._used = 0
        self._borrowed = 0
        self._freed = asyncio.Event()

    async def take(self, count: int) -> None:
        """Wait until there is room, then take ``count``, which may pass the limit once."""
        while self._used >= self._limit:
            self._freed.clear()
            await self._freed.wait()
        more = self._used + count - OWN_BYTES - self._borrowed
        if self._parent is not None and more > 0:
            await self._parent.take(more)
            self._borrowed += more
        self._used += count

    def give(self, count: int) -> None:
        """Give ``count`` bytes back; no more than were taken."""
        self._used = max(0, self._used - count)
        self._freed.set()
        surplus = self._borrowed - max(0, self._used - OWN_BYTES)
        if self._parent is not None and surplus > 0:
            self._borrowed -= surplus
            self._parent.give(surplus)

    def close(self) -> None:
        """Give everything back: nobody will read it any more."""
        self.give(self._used)


class Pipe:
    """A bounded buffer between one producer task and one consumer task."""

    def __init__(self, limit: int = PIPE_LIMIT, budget: ByteBudget | None = None) -> None:
        self._budget = budget or ByteBudget(limit)
        self._chunks: deque[bytes] = deque()
        self._size = 0
        self._limit = limit
        self._ended = False
        self._discard = False
        self._changed = asyncio.Event()

    @property
    def size(self) -> int:
        """Bytes that wait to be read."""
        return self._size

    async def put(self, data: bytes) -> None:
        """Add bytes; waits while the buffer is full. Bytes after the end are dropped."""
        while self._size >= self._limit and not self._ended and not self._discard:
            self._changed.clear()
            await self._changed.wait()
        if not data or self._ended or self._discard:
            return
        await self._budget.take(len(data))
        if self._ended or self._discard:
            self._budget.give(len(data))
            return
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
        self._budget.give(self._size)
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
        self._budget.give(len(chunk))
        self._changed.set()
        return chunk


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The failure of a task group that a client is to hear of: one with words for people, else the first."""
    for failure in failures.exceptions:
        if isinstance(failure, OrlopError):
            return failure
    first = failures.exceptions[0]
    return first_failure(first) if isinstance(first, BaseExceptionGroup) else first
