"""Which accelerator runs guests here: believed only after a guest came up under it.

There are hosts whose /dev/kvm opens and answers but whose guests hang early in the boot. So KVM is
tried with a whole boot, once per kernel, QEMU and guest; what came out is written down.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import platform
from pathlib import Path

import msgspec

from orlop.errors import DeadlineExceeded
from orlop.host import files
from orlop.hypervisor.base import Accelerator, Machine

_NAME = "accelerator.json"
_KVM = Path("/dev/kvm")
_KERNEL_SPEAKS = "Linux version"
_CONSOLE = 64 << 10

# What the guest sees. Without five-level page tables (la57) every miss of an emulated TLB is a step shorter.
TCG_CPU = "max,-la57"
KVM_CPUS = ("host", "host,-arch-capabilities")


class Finding(msgspec.Struct, frozen=True):
    """An accelerator, the processor model that goes with it, and what it was found for."""

    accelerator: Accelerator
    cpu: str
    inputs: str


def kvm_refusal() -> str:
    """Why KVM need not be tried at all; "" when it has to be."""
    if not _KVM.exists():
        return "there is no /dev/kvm"
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm cannot be opened: {error.strerror}"
    return ""


def inputs(qemu: str, guest: str) -> str:
    """A digest of all that the outcome of a trial depends on."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "flags", "microcode")):
            model += line
        elif not line:
            break
    parts = (qemu, guest, platform.release(), platform.version(), model)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


async def came_up(machine: Machine, timeout: float) -> None:
    """Return when the guest's agent has opened its port.

    Raises DeadlineExceeded: after ``timeout`` seconds, or a third of them without a word of the kernel."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    while _KERNEL_SPEAKS not in await machine.console_tail(_CONSOLE):
        if loop.time() - begun > timeout / 3:
            raise DeadlineExceeded(f"the kernel said nothing within {timeout / 3:.0f} seconds")
        await asyncio.sleep(0.2)
    await machine.wait_agent_port(timeout - (loop.time() - begun))


def remembered(root: Path, wanted: str) -> Finding | None:
    """What an earlier trial found for the same inputs."""
    try:
        finding = msgspec.json.decode((root / _NAME).read_bytes(), type=Finding)
    except (OSError, msgspec.DecodeError):
        return None
    return finding if finding.inputs == wanted else None


def remember(root: Path, finding: Finding) -> None:
    """Write it down. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    files.save(root / _NAME, msgspec.json.encode(finding))
