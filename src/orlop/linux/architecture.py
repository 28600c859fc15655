"""What differs from one processor architecture to another, as a value.

The numbers of system calls are those of the kernel's headers (``asm/unistd_64.h`` for x86-64,
``asm-generic/unistd.h`` for arm64), so are the audit numbers (``linux/audit.h``). arm64 is data so far:
it has no :attr:`Architecture.walker`, without which the guest's agent starts no process.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One processor architecture."""

    machine: str
    """Its name in uname(2), which emulators go by as well."""
    debian: str
    """Its name in Debian and in an image's platform."""
    variants: tuple[str, ...]
    """The variants of an image's platform that its machines run, the best first."""
    triplet: str
    """The directory of its libraries below /usr/lib, by Debian's multiarch."""
    loader: str
    """The dynamic loader of its libc, with the directory, relative to /."""
    console: str
    """The kernel's name of the first serial port of a virtual machine."""
    kernel_arguments: tuple[str, ...]
    """What its kernel alone understands."""
    audit: int
    """AUDIT_ARCH_* of linux/audit.h, which a system-call filter sees."""
    other_abi_from: int
    """Numbers of system calls from here on are those of another ABI under the same audit number."""
    seccomp: tuple[str, ...]
    """The architectures whose calls its kernel accepts, the native one first, by libseccomp's names."""
    calls: Mapping[str, int]
    """The numbers of the system calls that the guest's agent makes by number."""
    walker: bytes
    """Machine code that clones and then walks a chain of system calls; see ``guest.launch.script``."""

    @property
    def supported(self) -> bool:
        """Whether Orlop runs on it, not merely knows of it."""
        return bool(self.walker)


# fmt: off
X86_64 = Architecture(
    machine="x86_64",
    debian="amd64",
    variants=("", "v1"),
    triplet="x86_64-linux-gnu",
    loader="lib64/ld-linux-x86-64.so.2",
    console="ttyS0",
    kernel_arguments=("tsc=reliable", "no_timer_check"),
    audit=0xC000003E,
    other_abi_from=0x40000000,  # x32
    seccomp=("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    calls={
        "read": 0, "write": 1, "close": 3, "rt_sigaction": 13, "ioctl": 16, "execve": 59, "chdir": 80,
        "fchown": 93, "umask": 95, "setsid": 112, "setgroups": 116, "setresuid": 117, "setresgid": 119,
        "capset": 126, "pivot_root": 155, "prctl": 157, "mount": 165, "umount2": 166, "exit_group": 231,
        "keyctl": 250, "openat": 257, "mkdirat": 258, "mknodat": 259, "fchownat": 260, "symlinkat": 266,
        "ppoll": 271, "unshare": 272, "dup3": 292, "prlimit64": 302, "syncfs": 306, "setns": 308,
        "seccomp": 317, "bpf": 321, "move_mount": 429, "close_range": 436, "mount_setattr": 442,
    },
    walker=bytes.fromhex(
        "b8b30100000f054885c07401c34889d3488b03488b7b08488b7310488b53184c8b53204c8b43284c8b4b300f"
        "054889435048f7d8483dff0f000077184885c074134883f83f7707480fa343387206488b5b48ebbc488b4340"
        "4885c075064883c358ebad4889c3eba8"
    ),
)

ARM64 = Architecture(
    machine="aarch64",
    debian="arm64",
    variants=("v8", "", "v8.0"),
    triplet="aarch64-linux-gnu",
    loader="lib/ld-linux-aarch64.so.1",
    console="ttyAMA0",
    kernel_arguments=(),
    audit=0xC00000B7,
    other_abi_from=0xFFFFFFFF,
    seccomp=("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
    calls={
        "dup3": 24, "ioctl": 29, "mknodat": 33, "mkdirat": 34, "symlinkat": 36, "umount2": 39, "mount": 40,
        "pivot_root": 41, "chdir": 49, "fchownat": 54, "fchown": 55, "openat": 56, "close": 57, "read": 63,
        "write": 64, "ppoll": 73, "capset": 91, "exit_group": 94, "unshare": 97, "rt_sigaction": 134,
        "setresuid": 147, "setresgid": 149, "setsid": 157, "setgroups": 159, "umask": 166, "prctl": 167,
        "keyctl": 219, "execve": 221, "prlimit64": 261, "setns": 268, "seccomp": 277, "bpf": 280,
        "syncfs": 267, "move_mount": 429, "close_range": 436, "mount_setattr": 442,
    },
    walker=b"",
)
# fmt: on

ALL = (X86_64, ARM64)


@functools.cache
def own() -> Architecture:
    """This machine's. Raises NotImplementedError for one that is not in :data:`ALL`."""
    machine = os.uname().machine
    for known in ALL:
        if known.machine == machine:
            return known
    raise NotImplementedError(f"nothing is known of machines of the kind {machine}")
