"""What came for one stream and was not taken yet; bounded, since ttrpc itself has no flow control."""

from __future__ import annotations

import asyncio
from collections import deque

from orlop.errors import OrlopError, ResourceExhausted
from orlop.ttrpc.frames import MAX_MESSAGE, TtrpcFrame

MAX_FRAMES = 64
MAX_BYTES = 2 * MAX_MESSAGE
PATIENCE = 1.0
"""Seconds that a whole connection waits for a reader who lags; then that one's stream has failed."""


class Inbox:
    """A queue of frames with an end."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._frames: deque[TtrpcFrame] = deque()
        self._bytes = 0
        self._patience = patience
        self._changed = asyncio.Condition()
        self._end: OrlopError | None = None
        self._ended = False

    async def put(self, frame: TtrpcFrame) -> None:
        """Add a frame; one for a stream that has ended is dropped. Raises ResourceExhausted."""
        try:
            async with asyncio.timeout(self._patience), self._changed:
                await self._changed.wait_for(lambda: self._ended or self._fits(frame))
                if not self._ended:
                    self._frames.append(frame)
                    self._bytes += len(frame.data)
                    self._changed.notify_all()
        except TimeoutError:
            error = ResourceExhausted(
                f"a stream was not read for {self._patience:g} s, with {len(self._frames)} messages waiting"
            )
            await self.end(error)
            raise error from None

    def _fits(self, frame: TtrpcFrame) -> bool:
        if not self._frames:
            return True
        return len(self._frames) < MAX_FRAMES and self._bytes + len(frame.data) <= MAX_BYTES

    async def end(self, error: OrlopError | None = None) -> None:
        """No more comes; whoever reads on gets ``error``, or None. What is there can still be read."""
        async with self._changed:
            if not self._ended:
                self._ended, self._end = True, error
            self._changed.notify_all()

    async def get(self) -> TtrpcFrame | None:
        """The next frame, None at the end. Raises what :meth:`end` was given."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._frames or self._ended)
            if self._frames:
                frame = self._frames.popleft()
                self._bytes -= len(frame.data)
                self._changed.notify_all()
                return frame
            if self._end is not None:
                raise self._end
            return None
