"""What a container writes: from the guest into the log, and to whoever is attached.

The guest is told that bytes were taken only after they are in the log file, so a daemon that
dies loses nothing: the next one asks for what follows the last line that it finds in the file.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator

from orlop.errors import OrlopError
from orlop.host.tasks import Tasks, uncancelled
from orlop.sandbox.crilog import CriLog
from orlop.sandbox.rawoutput import RawOutput
from orlop.sandbox.vm.streams import Incoming

log = logging.getLogger(__name__)

_TAP_LIMIT = 1 << 20
_BATCH = 128 << 10


class Tap:
    """One who is attached. A slow one holds up the container, not the daemon."""

    def __init__(self) -> None:
        self._chunks: deque[tuple[int, bytes]] = deque()
        self._size = 0
        self._ended = False
        self._changed = asyncio.Condition()

    async def put(self, number: int, data: bytes) -> None:
        """Hand over a chunk; waits while too much lies here already."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._size < _TAP_LIMIT or self._ended)
            if not self._ended:
                self._chunks.append((number, data))
                self._size += len(data)
                self._changed.notify_all()

    async def end(self) -> None:
        """Nothing more will come, or nothing more is wanted. Idempotent."""
        async with self._changed:
            self._ended = True
            self._changed.notify_all()

    async def chunks(self) -> AsyncIterator[tuple[int, bytes]]:
        """What was put here, until the end."""
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda: bool(self._chunks) or self._ended)
                if not self._chunks:
                    return
                number, data = self._chunks.popleft()
                self._size -= len(data)
                self._changed.notify_all()
            yield number, data


class Output:
    """The pump between a container's streams and its log. :meth:`start` it, and :meth:`stop` it."""

    def __init__(
        self, name: str, log_file: CriLog | RawOutput, streams: dict[int, Incoming], wake: asyncio.Event
    ) -> None:
        self._name = name
        self._log = log_file
        self._streams = streams
        self._settled = {number: stream.offset for number, stream in streams.items()}
        self._wake = wake
        self._taps: set[Tap] = set()
        self._tasks = Tasks()
        self.ended = asyncio.Event()
        """Set when all output is in the log."""

    def start(self) -> None:
        """Begin to pump."""
        self._tasks.spawn(self._run(), f"the output of {self._name}")

    async def stop(self) -> None:
        """Stop at once and close the log; bytes not in it stay with the guest. Idempotent."""
        await self._tasks.close()
        await self._end_taps()
        await self._log.close()

    async def reopen(self) -> None:
        """Go on in a new log file."""
        await self._log.reopen()

    def tap(self) -> Tap:
        """Attach: the output from now on."""
        tap = Tap()
        self._taps.add(tap)
        return tap

    async def untap(self, tap: Tap) -> None:
        """Detach. Idempotent."""
        self._taps.discard(tap)
        await tap.end()

    async def _run(self) -> None:
        live = dict(self._streams)
        try:
            while live:
                self._wake.clear()
                moved = False
                for number, stream in list(live.items()):
                    moved |= await self._move(number, stream)
                    if stream.ended:
                        del live[number]
                        await self._finish(number, stream)
                if live and not moved:
                    await self._wake.wait()
        except OrlopError:
            # The connection, most likely the whole VM, is gone. What it said last is worth a line.
            for number in live:
                await self._log.end(number)
        except Exception:
            log.exception("output of container %s: the pump failed", self._name)
        await self._end_taps()
        await self._log.close()
        self.ended.set()

    async def _move(self, number: int, stream: Incoming) -> bool:
        chunks = []
        size = 0
        chunk = stream.take()  # raises when nothing is left and the connection is gone
        while chunk:
            chunks.append(chunk)
            size += len(chunk)
            chunk = stream.take() if stream.waiting and size < _BATCH else b""
        if not chunks:
            return False
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        # What is in the log is told to the guest, even if we are stopped in between.
        await uncancelled(self._write(number, stream, data))
        for tap in list(self._taps):
            await tap.put(number, data)
        return True

    async def _finish(self, number: int, stream: Incoming) -> None:
        self._acknowledge(number, stream, await self._log.end(number))
        stream.end_consumed()

    async def _write(self, number: int, stream: Incoming, data: bytes) -> None:
        self._acknowledge(number, stream, await self._log.write(number, data))

    def _acknowledge(self, number: int, stream: Incoming, settled: int) -> None:
        fresh = settled - self._settled[number]
        self._settled[number] = settled
        if fresh > 0:
            stream.consumed(fresh)

    async def _end_taps(self) -> None:
        for tap in tuple(self._taps):  # they may go as they hear of it
            await tap.end()
        self._taps.clear()
