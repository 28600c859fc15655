"""How much of the daemon's time one guest may have.

All guests share the daemon's one event loop, and what a guest sends costs the daemon most by the
message: a few bytes that say nothing take as long as 64 KiB of output. So each message is charged, less
by as much as it moves: fresh bytes of a stream, or bytes of ours that it acknowledges. Output at full
speed costs nothing, a flood of anything else (events, acknowledgements, resets, repeats) is paid for.

A guest that has spent its allowance is read more slowly, and its channel pushes back on it. An agent
that is only busy catches up, since what it sends late comes in larger pieces; one that does not within
:data:`FLOOD_TIME` is no agent any more.
"""

from __future__ import annotations

import time

from orlop.wire.framing import ProtocolError

RATE = 1000.0
"""Units that a guest is allowed each second: as many messages, some 10 ms of the daemon's time."""

BURST = 4096.0
"""Units that it can save up."""

FLOOD_TIME = 30.0
"""Seconds for which a guest may want more than it is allowed."""

_UNIT = 1024
"""Bytes that are worth a message."""


class Budget:
    """The account of one guest. Charge it for each message, then wait :attr:`owed` before the next."""

    def __init__(self) -> None:
        self._units = BURST
        self._at = time.monotonic()
        self._poor_since: float | None = None

    def charge(self, size: int, moved: int) -> None:
        """A message of ``size`` bytes came in, by which ``moved`` bytes of a stream got further.

        Of those, a kilobyte pays for the message that brought it.
        """
        self._units -= max(0.0, 1 + (size - 2 * moved) / _UNIT)

    def owed(self) -> float:
        """Seconds in which to read nothing. Raises ProtocolError when the guest has flooded for too long."""
        now = time.monotonic()
        self._units = min(BURST, self._units + (now - self._at) * RATE)
        self._at = now
        if self._units >= BURST / 2:
            self._poor_since = None
        if self._units >= 0:
            return 0.0
        if self._poor_since is None:
            self._poor_since = now
        elif now - self._poor_since > FLOOD_TIME:
            raise ProtocolError(f"it floods the daemon with messages, for more than {FLOOD_TIME:g} s now")
        return -self._units / RATE
