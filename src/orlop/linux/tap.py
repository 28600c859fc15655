"""Taps: network interfaces whose other end is a descriptor; linux/if_tun.h."""

from __future__ import annotations

import fcntl
import os
import struct

_TUNSETIFF = 0x400454CA
_IFF_TAP = 0x0002
_IFF_NO_PI = 0x1000
_IFF_VNET_HDR = 0x4000  # lets checksums and segmentation be left to the receiver


def open_tap(name: str) -> int:
    """A new tap in the calling thread's network namespace; it goes with the last copy of the descriptor.

    All taps are of one kind: a machine that was saved with one is restored with another, and what its
    network card offers depends on it. Raises OSError.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
