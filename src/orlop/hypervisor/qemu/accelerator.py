"""Which accelerator runs guests here: believed only after a guest came up under it.

There are hosts whose /dev/kvm opens and answers but whose guests hang early in the boot. So KVM is
tried with all that a pod's machine goes through, once per kernel, QEMU, guest and configuration; what
came out is written down. That a guest was too slow may have been a busy moment's fault, and is not
believed for long.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import platform
import time
from pathlib import Path

import msgspec

from orlop.errors import DeadlineExceeded, Unavailable
from orlop.host import files, tasks
from orlop.hypervisor.base import Accelerator, Machine
from orlop.value import UNREADABLE

_NAME = "accelerator.json"
_KVM = Path("/dev/kvm")
_KERNEL_SPEAKS = "Linux version"
_CONSOLE = 64 << 10

# linux/kvm.h
_KVM_CHECK_EXTENSION = 0xAE03
_KVM_CAP_NR_VCPUS = 9
_MANY_VCPUS = 1 << 16

PASSING = 600.0
"""Seconds for which a trial that took too long is believed."""

# What the guest sees. Without five-level page tables (la57) every miss of an emulated TLB is a step shorter.
# Where "rep movsb" is said to be fast (erms, fsrm) kernel and libc copy and clear by it, and QEMU does that
# byte by byte; else they take eight bytes or more at a time.
TCG_CPU = "max,-la57,-erms,-fsrm"
KVM_CPUS = ("host", "host,-arch-capabilities")


class Finding(msgspec.Struct, frozen=True):
    """An accelerator, the processor model that goes with it, and what it was found for.

    ``until`` is when it is no longer believed, in seconds since the epoch; 0 is never.
    """

    accelerator: Accelerator
    cpu: str
    inputs: str = ""
    until: float = 0.0


def kvm_refusal() -> str:
    """Why KVM need not be tried at all; "" when it has to be."""
    if not _KVM.exists():
        return "there is no /dev/kvm"
    try:
        os.close(os.open(_KVM, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"/dev/kvm cannot be opened: {error.strerror}"
    return ""


def recommended_vcpus() -> int:
    """How many processors a guest should have at most, says KVM; a large number if it does not say."""
    try:
        device = os.open(_KVM, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return _MANY_VCPUS
    try:
        return fcntl.ioctl(device, _KVM_CHECK_EXTENSION, _KVM_CAP_NR_VCPUS) or _MANY_VCPUS
    except OSError:
        return _MANY_VCPUS
    finally:
        os.close(device)


def inputs(*parts: str) -> str:
    """A digest of all that the outcome of a trial depends on: ``parts``, the kernel, the processor, and the
    processor models that are tried or taken instead."""
    model = ""
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("model name", "flags", "microcode")):
            model += line
        elif not line:
            break
    every = (*parts, platform.release(), platform.version(), model, TCG_CPU, *KVM_CPUS)
    return hashlib.sha256("\0".join(every).encode()).hexdigest()


async def came_up(machine: Machine, timeout: float) -> None:
    """Return when the guest's agent has opened its port.

    Raises DeadlineExceeded: after ``timeout`` seconds, or a third of them without a word of the kernel;
    Unavailable with QEMU's own words as soon as the machine has ended."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with tasks.beside(machine.wait(), "a guest on trial") as ended:
        while _KERNEL_SPEAKS not in await machine.console_tail(_CONSOLE):
            if ended.done():
                raise Unavailable(ended.result())
            if loop.time() - begun > timeout / 3:
                raise DeadlineExceeded(f"the kernel said nothing within {timeout / 3:.0f} seconds")
            await asyncio.wait((ended,), timeout=0.2)
    await machine.wait_agent_port(timeout - (loop.time() - begun))


def remembered(root: Path, wanted: str) -> Finding | None:
    """What an earlier trial found for the same inputs, if that is to be believed still."""
    try:
        finding = msgspec.json.decode((root / _NAME).read_bytes(), type=Finding)
    except (OSError, *UNREADABLE):
        return None
    fresh = not finding.until or finding.until - PASSING <= time.time() < finding.until
    return finding if finding.inputs == wanted and fresh else None


def remember(root: Path, finding: Finding) -> None:
    """Write it down. Raises OSError."""
    root.mkdir(parents=True, exist_ok=True)
    files.save(root / _NAME, msgspec.json.encode(finding))
