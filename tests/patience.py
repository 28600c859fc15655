"""How much longer than on an ordinary machine the tests wait: ``$ORLOP_TEST_PATIENCE``, 1 if unset.

A machine that is emulated does the same things, only later. Tests that measure how quick something is
do not belong on it.
"""

from __future__ import annotations

import os
from typing import Any

from orlop.config import VmConfig
from orlop.hypervisor.qemu.settings import QemuConfig

PATIENCE = float(os.environ.get("ORLOP_TEST_PATIENCE", "1"))


def vm_section(**qemu: Any) -> dict[str, Any]:
    """Keys of ``[vm]`` with time limits as patient as the tests; ``qemu`` are keys of ``[vm.qemu]``."""
    patient = {"kvm_probe_timeout": QemuConfig().kvm_probe_timeout * PATIENCE}
    return {"boot_timeout": VmConfig().boot_timeout * PATIENCE, "qemu": patient | qemu}


def vm_config(**qemu: Any) -> VmConfig:
    """The same as a value."""
    section = vm_section(**qemu)
    return VmConfig(others={"qemu": section.pop("qemu")}, **section)
