"""Giving up power before exec: limits, capabilities, user, no_new_privs, seccomp. capabilities(7)."""

from __future__ import annotations

import os
import resource

from orlop.guest import syscalls
from orlop.guest.users import Identity
from orlop.wire.messages import Refused
from orlop.wire.values import Rlimit, Security

CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF",
    "CHECKPOINT_RESTORE",
)  # fmt: skip
_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}


def capability_mask(names: tuple[str, ...]) -> int:
    """The bit mask of capability names (without ``CAP_``); ``invalid`` for an unknown one."""
    mask = 0
    for name in names:
        number = _NUMBERS.get(name.upper().removeprefix("CAP_"))
        if number is None:
            raise Refused("invalid", f"unknown capability {name!r}")
        mask |= 1 << number
    return mask


def set_rlimits(rlimits: tuple[Rlimit, ...]) -> None:
    """setrlimit(2) for each; ``invalid`` for a name the kernel does not know."""
    for limit in rlimits:
        number = getattr(resource, f"RLIMIT_{limit.name.upper().removeprefix('RLIMIT_')}", None)
        if number is None:
            raise Refused("invalid", f"unknown resource limit {limit.name!r}")
        try:
            resource.setrlimit(number, (limit.soft, limit.hard))
        except (ValueError, OSError) as error:
            raise Refused(
                "invalid", f"cannot limit {limit.name} to {limit.soft}:{limit.hard}: {error}"
            ) from error


def set_oom_score(score: int) -> None:
    """Write oom_score_adj; needs the /proc of the right PID namespace."""
    fd = os.open("/proc/self/oom_score_adj", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, str(score).encode())
    except PermissionError:
        # Only the right to lower the score can be missing, and then the score stays what it was.
        return
    finally:
        os.close(fd)


def become(identity: Identity, security: Security) -> None:
    """Become ``identity`` with the capabilities of ``security``. The last steps before exec.

    Without no_new_privs a filter may only be installed by root, so it comes first; with it, last,
    so that it need not allow what happens here.
    """
    if security.seccomp and not security.no_new_privs:
        syscalls.seccomp_filter(security.seccomp, security.seccomp_flags)
    bounding = capability_mask(security.bounding)
    effective = capability_mask(security.effective) & bounding
    ambient = capability_mask(security.ambient) & effective
    last = len(CAPABILITIES)
    for number in range(last):
        if not bounding >> number & 1:
            _drop_from_bounding(number)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    syscalls.capset(effective, effective, ambient)
    syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(last):
        if ambient >> number & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    if security.no_new_privs:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if security.seccomp:
            syscalls.seccomp_filter(security.seccomp, security.seccomp_flags)


def _drop_from_bounding(number: int) -> None:
    try:
        syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
    except OSError as error:
        if error.errno != 22:  # EINVAL: this kernel does not have the capability
            raise
