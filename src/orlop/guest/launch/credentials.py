"""Giving up power before exec: limits, capabilities, user, no_new_privs, seccomp. capabilities(7)."""

from __future__ import annotations

import errno
import functools
import resource
import struct
from collections.abc import Iterator

from orlop.guest.launch.script import Script, errors
from orlop.linux import syscalls
from orlop.linux.capabilities import CAPABILITIES
from orlop.linux.users import Identity
from orlop.wire.messages import Refused
from orlop.wire.values import GuestRlimit, GuestSecurity

_NUMBERS = {name: number for number, name in enumerate(CAPABILITIES)}
_CAPABILITY_VERSION = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_INFINITY = (1 << 64) - 1


def capability_mask(names: tuple[str, ...]) -> int:
    """The bit mask of capability names (without ``CAP_``); ``invalid`` for an unknown one."""
    mask = 0
    for name in names:
        number = _NUMBERS.get(name.upper().removeprefix("CAP_"))
        if number is None:
            raise Refused("invalid", f"unknown capability {name!r}")
        mask |= 1 << number
    return mask


def rlimits(limits: tuple[GuestRlimit, ...]) -> Iterator[tuple[int, str, int, int]]:
    """Number, name, soft and hard limit for prlimit(2); ``invalid`` for a name the kernel does not know."""
    for limit in limits:
        name = limit.name.upper().removeprefix("RLIMIT_")
        number = getattr(resource, f"RLIMIT_{name}", None)
        if number is None:
            raise Refused("invalid", f"unknown resource limit {limit.name!r}")
        soft, hard = (_INFINITY if value < 0 else value for value in (limit.soft, limit.hard))
        yield number, name, soft, hard


def capability_words(effective: int, permitted: int, inheritable: int) -> bytes:
    """The data of capset(2), version 3."""
    low, high = 0xFFFFFFFF, 32
    masks = (effective, permitted, inheritable)
    return struct.pack("=6I", *(mask & low for mask in masks), *(mask >> high for mask in masks))


@functools.lru_cache(maxsize=32)
def steps_to_become(identity: Identity, security: GuestSecurity) -> Script:
    """Become ``identity`` with the capabilities of ``security``. Raises Refused for what is not valid.

    Without no_new_privs a filter may only be installed by root, so it comes first; with it, last,
    so that it need not allow what happens here.
    """
    steps = Script()
    for number, name, soft, hard in rlimits(security.rlimits):
        limit = struct.pack("=2Q", soft, hard)
        steps.add("prlimit64", 0, number, limit, 0, what=f"limit {name}", code="invalid")
    bounding = capability_mask(security.bounding)
    effective = capability_mask(security.effective) & bounding
    ambient = capability_mask(security.ambient) & effective
    if security.seccomp and not security.no_new_privs:
        _add_filter(steps, security)
    for number in range(len(CAPABILITIES)):
        if not bounding >> number & 1:
            # EINVAL: this kernel does not have the capability.
            steps.add(
                "prctl", syscalls.PR_CAPBSET_DROP, number, tolerate=errors(errno.EINVAL), what="bounding set"
            )
    steps.add("prctl", syscalls.PR_SET_KEEPCAPS, 1)
    groups = struct.pack(f"={len(identity.groups)}I", *identity.groups)
    steps.add("setgroups", len(identity.groups), groups, what="setgroups")
    steps.add("setresgid", identity.gid, identity.gid, identity.gid, what=f"become group {identity.gid}")
    steps.add("setresuid", identity.uid, identity.uid, identity.uid, what=f"become user {identity.uid}")
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    steps.add("capset", header, capability_words(effective, effective, ambient), what="set capabilities")
    steps.add("prctl", syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_CLEAR_ALL)
    for number in range(len(CAPABILITIES)):
        if ambient >> number & 1:
            steps.add("prctl", syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
    steps.add("prctl", syscalls.PR_SET_KEEPCAPS, 0)
    if security.no_new_privs:
        steps.add("prctl", syscalls.PR_SET_NO_NEW_PRIVS, 1)
        if security.seccomp:
            _add_filter(steps, security)
    return steps


def _add_filter(steps: Script, security: GuestSecurity) -> None:
    program = steps.pointer(security.seccomp)
    fprog = struct.pack("=HxxxxxxQ", len(security.seccomp) // 8, program)
    steps.add(
        "seccomp", _SECCOMP_SET_MODE_FILTER, security.seccomp_flags, fprog, what="install the seccomp filter",
        code="invalid",
    )  # fmt: skip
