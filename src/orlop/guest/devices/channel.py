"""The line to the daemon: ``virtio:NAME`` is the virtio-serial port of that name."""

from __future__ import annotations

import os
from contextlib import suppress

from orlop.guest.paths import read_text

_PARAMETER = "orlop.channel="
_PORTS = "/sys/class/virtio-ports"


def connect() -> int:
    """Open the channel that the kernel's command line names. Raises FileNotFoundError."""
    for word in read_text("/proc/cmdline").split():
        if word.startswith(_PARAMETER):
            return os.open(device(word[len(_PARAMETER) :]), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    raise FileNotFoundError(f"the kernel's command line has no {_PARAMETER}")


def device(address: str, ports: str = _PORTS) -> str:
    """The device node of a channel. Raises FileNotFoundError."""
    scheme, _, name = address.partition(":")
    if scheme == "virtio":
        for entry in sorted(os.listdir(ports)) if os.path.isdir(ports) else []:
            with suppress(OSError):
                if read_text(f"{ports}/{entry}/name").strip() == name:
                    return f"/dev/{entry}"
    raise FileNotFoundError(f"there is no channel {address}")
