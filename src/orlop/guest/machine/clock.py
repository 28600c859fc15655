"""The guest's wall clock: told, stepped, or led to the right time while it goes on; adjtimex(2)."""

from __future__ import annotations

import time

from orlop.linux import syscalls

_SECOND = 10**9
_MOST_SLEWED = _SECOND // 2
"""What the kernel takes for one slew."""


def correct(shift: int, *, step: bool) -> int:
    """Move the clock by ``shift`` nanoseconds and return its time.

    At once with ``step``, else by half a thousandth of the time that passes, so that no program sees it jump;
    a slew that is under way is replaced.
    """
    if shift and step:
        syscalls.step_clock(shift)
    elif shift:
        syscalls.slew_clock(max(-_MOST_SLEWED, min(shift, _MOST_SLEWED)))
    return time.time_ns()
