"""How long the tests wait.

``$ORLOP_TEST_PATIENCE`` says how many times slower than an ordinary one the machine is, 1 if unset: one that
is emulated does the same things, only later. Beyond that everybody waits a few times longer than what is
waited for has ever taken where nothing else ran: that other work was in the way is no failure, and what comes
in time costs nothing. Tests that measure how quick something is do not belong on such machines.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from typing import Any

from orlop.config import VmConfig
from orlop.hypervisor.qemu.settings import QemuConfig

SLOWNESS = float(os.environ.get("ORLOP_TEST_PATIENCE", "1"))
"""For what takes its whole time when all is well, too."""

PATIENCE = 3.0 * SLOWNESS
"""For what ends as soon as what is waited for is there."""


def vm_section(**qemu: Any) -> dict[str, Any]:
    """Keys of ``[vm]`` with time limits as patient as the tests; ``qemu`` are keys of ``[vm.qemu]``."""
    # A KVM that does not work is waited for to the end.
    patient = {"kvm_probe_timeout": QemuConfig().kvm_probe_timeout * SLOWNESS}
    return {"boot_timeout": VmConfig().boot_timeout * PATIENCE, "qemu": patient | qemu}


def vm_config(**qemu: Any) -> VmConfig:
    """The same as a value."""
    section = vm_section(**qemu)
    return VmConfig(others={"qemu": section.pop("qemu")}, **section)


async def until(condition: Callable[[], object]) -> None:
    """Wait for what sets no event. Raises TimeoutError."""
    async with asyncio.timeout(30 * PATIENCE):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)
