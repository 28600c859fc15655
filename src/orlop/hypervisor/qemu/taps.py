"""A tap that leads nowhere: for a machine that has no network yet.

The network card is part of every saved machine, and what it offers to the guest depends on the tap
behind it; so the template is made with a real one, in a network namespace that nothing else is in.
"""

from __future__ import annotations

import os

from orlop.errors import FailedPrecondition
from orlop.host import threads
from orlop.linux import syscalls
from orlop.linux.tap import open_tap


async def placeholder() -> int:
    """Open such a tap; it and its namespace are gone when the descriptor is closed.

    Raises FailedPrecondition when this machine has no /dev/net/tun or we may not use it."""
    try:
        return await threads.in_own_thread(_open, name="orlop-tap", unwanted=os.close)
    except OSError as error:
        raise FailedPrecondition(f"no tap can be made with /dev/net/tun: {error.strerror}") from error


def _open() -> int:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    return open_tap("tap0")
