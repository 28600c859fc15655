"""A process that gives up all that it does not need before it reads what nobody trusts.

What is left to it: the descriptors that it has, processor time, memory and output within bounds, and a
list of system calls that opens nothing, starts nothing and speaks to nobody.
"""

from __future__ import annotations

import ctypes
import os
import resource
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from orlop.linux import syscalls

NOBODY = 65534

_ERRNO_EPERM = 0x00050001
_ALLOW = 0x7FFF0000
_NAMESPACES = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWNET | syscalls.CLONE_NEWIPC | syscalls.CLONE_NEWUTS

COMPUTE = (
    "brk", "clock_gettime", "clock_nanosleep", "clone", "clone3", "close", "exit", "exit_group",
    "fcntl", "fstat", "futex", "futex_waitv", "getpid", "getrandom", "gettid", "ioctl", "lseek",
    "madvise", "membarrier", "mmap", "mprotect", "mremap", "munmap", "nanosleep", "newfstatat", "poll",
    "ppoll", "pread64", "pwrite64", "read", "readv", "restart_syscall", "rseq", "rt_sigaction",
    "rt_sigprocmask", "rt_sigreturn", "sched_getaffinity", "sched_yield", "set_robust_list",
    "sigaltstack", "write", "writev",
)  # fmt: skip
"""What a program needs that computes, in threads, from open descriptors to open descriptors."""


def bound(*, memory: int, output: int, seconds: int) -> None:
    """Bound what this process may use: bytes of address space, bytes of a file, seconds of processor time.

    Beyond its time it is killed, other bounds are errors (MemoryError, EFBIG). When the machine
    runs out of memory, it is the first to go. Raises OSError, ValueError.
    """
    for what, most in (
        (resource.RLIMIT_AS, memory),
        (resource.RLIMIT_FSIZE, output),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (least, least))
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", encoding="ascii")


def confine(root: str, allowed: Iterable[str] = COMPUTE) -> None:
    """Keep nothing but the open descriptors and the system calls ``allowed``; for good.

    Root becomes nobody in namespaces of its own, with ``root``, an empty directory, as all there is of files.
    All modules must have been imported. Raises OSError when any part of it cannot be done.
    """
    library = _libseccomp()  # while files can be opened
    if os.geteuid() == 0:
        syscalls.unshare(_NAMESPACES)
        os.chroot(root)
        os.chdir("/")
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _filter(library, allowed)


def _filter(library: ctypes.CDLL, allowed: Iterable[str]) -> None:
    """Let everything fail (EPERM) that is not ``allowed``."""
    context = ctypes.c_void_p(library.seccomp_init(ctypes.c_uint32(_ERRNO_EPERM)))
    if not context:
        raise OSError("libseccomp cannot make a filter")
    try:
        for name in allowed:
            number = library.seccomp_syscall_resolve_name(name.encode())
            if number < 0:
                continue  # not on this architecture, or not known to this libseccomp
            _checked(library.seccomp_rule_add(context, ctypes.c_uint32(_ALLOW), number, 0))
        _checked(library.seccomp_load(context))  # sets no_new_privs as well
    finally:
        library.seccomp_release(context)


def _libseccomp() -> ctypes.CDLL:
    library = ctypes.CDLL("libseccomp.so.2")
    library.seccomp_init.restype = ctypes.c_void_p
    return library


def _checked(result: int) -> None:
    if result < 0:
        raise OSError(-result, f"the system-call filter is refused: {os.strerror(-result)}")
