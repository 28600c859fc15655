"""System-call filters as programs for the kernel, from rules; through libseccomp.

Actions, operators and flags have the names of the OCI runtime specification (``linux.seccomp``).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from functools import lru_cache
from typing import Final

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.linux import architecture
from orlop.value import Value

_MAX_PROGRAM = 4096
_EPERM, _ENOSYS = 1, 38
ACTIONS = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
_WITH_DATA = ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE")
OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_HIGHEST_NUMBER: Final = 1023


class Filter(Value, frozen=True):
    """A classic BPF program (``struct sock_filter[]``; empty for no filter) and flags of seccomp(2)."""

    program: bytes = b""
    flags: int = 0


class Argument(msgspec.Struct, rename="camel", frozen=True):
    """A condition on one argument of a call. ``value_two`` is what MASKED_EQ compares with."""

    index: int
    value: int
    op: str
    value_two: int = 0


class CallRule(msgspec.Struct, rename="camel", frozen=True):
    """What happens to calls by these names; names that an architecture does not know are passed over.

    Conditions on different arguments must all hold; several on one argument are alternatives.
    """

    action: str
    names: tuple[str, ...] = ()
    errno_ret: int | None = None
    args: tuple[Argument, ...] | None = ()


class Profile(msgspec.Struct, frozen=True):
    """A whole filter; without ``architectures``, those whose calls this machine's kernel accepts."""

    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    syscalls: tuple[CallRule, ...] = ()


def compile_profile(profile: Profile, source: str) -> Filter:
    """The profile as a program for a kernel of this architecture.

    Raises InvalidArgument naming ``source``, FailedPrecondition without libseccomp.
    """
    library = _library()
    standard = _action(profile.default_action, profile.default_errno_ret)
    context = library.seccomp_init(standard)
    if not context:
        raise InvalidArgument(f"seccomp profile {source}: libseccomp refuses its default action")
    try:
        for name in profile.architectures or architecture.own().seccomp:
            token = library.seccomp_arch_resolve_name(name.removeprefix("SCMP_ARCH_").lower().encode())
            if not token:
                raise InvalidArgument(f"seccomp profile {source}: unknown architecture {name[:40]!r}")
            library.seccomp_arch_add(context, token)  # EEXIST for the native one
        for rule in profile.syscalls:
            _add_rule(library, context, rule, standard, source)
        library.seccomp_attr_set(context, 8, 2)  # SCMP_FLTATR_CTL_OPTIMIZE: a binary tree
        program = _export(library, context, source)
    finally:
        library.seccomp_release(context)
    if profile.default_action == "SCMP_ACT_ERRNO":
        program = _unknown_calls(_last_known(library)) + program
    if len(program) > 8 * _MAX_PROGRAM:
        raise InvalidArgument(f"seccomp profile {source}: it takes more than {_MAX_PROGRAM} instructions")
    flags = sum(FLAGS[flag] for flag in set(profile.flags))
    return Filter(program=program, flags=flags)


class _Compare(ctypes.Structure):
    _fields_ = (
        ("arg", ctypes.c_uint),
        ("op", ctypes.c_int),
        ("datum_a", ctypes.c_uint64),
        ("datum_b", ctypes.c_uint64),
    )


@lru_cache(maxsize=1)
def _library() -> ctypes.CDLL:
    try:
        found = ctypes.CDLL("libseccomp.so.2")
    except OSError as error:
        raise FailedPrecondition("libseccomp.so.2 is missing: install the package libseccomp2") from error
    found.seccomp_init.restype = ctypes.c_void_p
    found.seccomp_init.argtypes = (ctypes.c_uint32,)
    found.seccomp_release.argtypes = (ctypes.c_void_p,)
    found.seccomp_release.restype = None
    found.seccomp_arch_resolve_name.restype = ctypes.c_uint32
    found.seccomp_arch_resolve_name.argtypes = (ctypes.c_char_p,)
    found.seccomp_arch_add.argtypes = (ctypes.c_void_p, ctypes.c_uint32)
    found.seccomp_attr_set.argtypes = (ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32)
    found.seccomp_syscall_resolve_name.argtypes = (ctypes.c_char_p,)
    found.seccomp_syscall_resolve_num_arch.argtypes = (ctypes.c_uint32, ctypes.c_int)
    found.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
    found.free.argtypes = (ctypes.c_void_p,)
    found.seccomp_rule_add_array.argtypes = (
        ctypes.c_void_p,
        ctypes.c_uint32,
        ctypes.c_int,
        ctypes.c_uint,
        ctypes.POINTER(_Compare),
    )
    found.seccomp_export_bpf.argtypes = (ctypes.c_void_p, ctypes.c_int)
    return found


def _action(name: str, number: int | None) -> int:
    data = (_EPERM if number is None else number) & 0xFFFF if name in _WITH_DATA else 0
    return ACTIONS[name] | data


def _add_rule(library: ctypes.CDLL, context: int, rule: CallRule, standard: int, source: str) -> None:
    action = _action(rule.action, rule.errno_ret)
    if action == standard:
        return  # says nothing new, and libseccomp refuses it
    for name in rule.names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == -1:
            continue
        for compares in _alternatives(rule.args or ()):
            array = (_Compare * max(len(compares), 1))(*compares)
            result = library.seccomp_rule_add_array(context, action, number, len(compares), array)
            if result < 0:
                raise InvalidArgument(
                    f"seccomp profile {source}: rule for {name[:40]}: {os.strerror(-result)}"
                )


def _alternatives(arguments: tuple[Argument, ...]) -> Iterator[list[_Compare]]:
    """Conditions on different arguments must all hold; several on one argument are alternatives."""
    compares = [
        _Compare(a.index, 1 + OPERATORS.index(a.op.removeprefix("SCMP_CMP_")), a.value, a.value_two)
        for a in arguments
    ]
    if len({a.index for a in arguments}) == len(arguments):
        yield compares
    else:
        yield from ([compare] for compare in compares)


def _export(library: ctypes.CDLL, context: int, source: str) -> bytes:
    descriptor = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        result = library.seccomp_export_bpf(context, descriptor)
        if result < 0:
            raise InvalidArgument(f"seccomp profile {source}: {os.strerror(-result)}")
        return os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    finally:
        os.close(descriptor)


def _last_known(library: ctypes.CDLL) -> int:
    """The highest number of a system call that this libseccomp has a name for."""
    for number in range(_HIGHEST_NUMBER, 0, -1):
        name = library.seccomp_syscall_resolve_num_arch(architecture.own().audit, number)
        if name:
            library.free(name)
            return number
    return _HIGHEST_NUMBER


def _unknown_calls(last: int) -> bytes:
    """Instructions that answer ENOSYS to calls newer than any that the profile could have meant.

    Libraries take that answer as "use the older call", EPERM as a failure.
    """
    own = architecture.own()
    load, jump_equal, jump_above, jump_from, give = 0x20, 0x15, 0x25, 0x35, 0x06
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (load, 0, 0, 4),  # the architecture
            (jump_equal, 0, 4, own.audit),
            (load, 0, 0, 0),  # the call's number
            (jump_from, 2, 0, own.other_abi_from),
            (jump_above, 0, 1, last),
            (give, 0, 0, ACTIONS["SCMP_ACT_ERRNO"] | _ENOSYS),
        )
    )
