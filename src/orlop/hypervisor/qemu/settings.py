"""The section ``[vm.qemu]`` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from orlop.config import Command, Section, Timeout, VmConfig, backend_section

NAME = "qemu"
PACKAGE = "qemu-system-x86"
"""The distribution's."""

MachineType = Annotated[str, Meta(pattern=r"\A[\w.+-]+\Z", description="a machine type of QEMU")]
CpuModel = Annotated[
    str, Meta(pattern=r"\A([\w.+-]+(,[\w.+=-]+)*)?\Z", description="a CPU model of QEMU, or empty")
]

# What the keys that stood in [vm] are called here.
_MOVED = {
    "accelerator": "accelerator",
    "qemu": "binary",
    "machine": "machine",
    "kvm_probe_timeout": "kvm_probe_timeout",
}


class QemuConfig(Section, frozen=True):
    """How QEMU is run. ``cpu`` is what the guest sees; empty takes what suits the accelerator. ``seccomp``
    is what happens to system calls that QEMU has no need of."""

    accelerator: Literal["auto", "kvm", "tcg"] = "auto"
    binary: Command = "qemu-system-x86_64"
    machine: MachineType = "pc"
    cpu: CpuModel = ""
    kvm_probe_timeout: Timeout = 20.0
    seccomp: Literal["enforce", "log", "off"] = "enforce"


def read(vm: VmConfig) -> QemuConfig:
    """Raises InvalidArgument when a key is wrong or stands where it stood once."""
    return backend_section(vm, NAME, QemuConfig, moved=_MOVED)
