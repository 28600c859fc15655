"""A tap that leads nowhere: for a machine that has no network yet.

The network card is part of every saved machine, and what it offers to the guest depends on the tap
behind it; so the template is made with a real one, in a network namespace that nothing else is in.
"""

from __future__ import annotations

import fcntl
import os
import struct

from orlop.errors import FailedPrecondition
from orlop.host import threads
from orlop.linux import syscalls

# linux/if_tun.h
_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000
_IFREQ_SIZE = 40


async def placeholder() -> int:
    """Open such a tap; it and its namespace are gone when the descriptor is closed.

    Raises FailedPrecondition when this machine has no /dev/net/tun or we may not use it."""
    try:
        return await threads.in_own_thread(_open, name="orlop-tap", unwanted=os.close)
    except OSError as error:
        raise FailedPrecondition(f"no tap can be made with /dev/net/tun: {error.strerror}") from error


def _open() -> int:
    syscalls.unshare(syscalls.CLONE_NEWNET)
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH", b"tap0", _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request.ljust(_IFREQ_SIZE, b"\0"))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
