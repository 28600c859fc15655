"""Network interfaces: ``pci:ADDRESS`` is the virtio network card at that place of the PCI bus."""

from __future__ import annotations

import os
from contextlib import suppress

from orlop.wire.messages import Refused

_PCI = "/sys/bus/pci/devices"


def interface(address: str, devices: str = _PCI) -> str:
    """What the kernel calls the interface now. Raises Refused."""
    scheme, _, place = address.partition(":")
    if scheme == "pci" and "/" not in place:
        with suppress(OSError):
            for name in os.listdir(f"{devices}/{place}"):
                if name.startswith("virtio"):
                    return os.listdir(f"{devices}/{place}/{name}/net")[0]
    raise Refused("invalid", f"there is no network interface at {address}")
