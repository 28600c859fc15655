"""System-call filters: profiles read and made, for an OCI runtime or as a program for the kernel.

A profile is kept in the form of the OCI runtime specification (``linux.seccomp``); profiles of
users may also have the conditions (``includes``, ``excludes``, ``archMap``) that container engines
have added to it. Compiling goes through libseccomp.
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.linux import architecture
from orlop.sandbox import seccomp_default as default
from orlop.sandbox.spec import Seccomp, SeccompMode
from orlop.value import Value

_MAX_PROFILE = 1 << 20
_MAX_PROGRAM = 4096
_EPERM, _ENOSYS = 1, 38
_ACTIONS = {
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
_OPERATORS = ("NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ")
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 1,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
_HIGHEST_NUMBER: Final = 1023


class Filter(Value, frozen=True):
    """A classic BPF program (``struct sock_filter[]``; empty for no filter) and flags of seccomp(2)."""

    program: bytes = b""
    flags: int = 0


class _Argument(msgspec.Struct, rename="camel", frozen=True):
    index: int
    value: int
    op: str
    value_two: int = 0


class _Condition(msgspec.Struct, rename="camel", frozen=True):
    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: str = ""


class _Rule(msgspec.Struct, rename="camel", frozen=True):
    action: str
    names: tuple[str, ...] = ()
    name: str = ""
    errno_ret: int | None = None
    args: tuple[_Argument, ...] | None = ()
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchMap(msgspec.Struct, rename="camel", frozen=True):
    architecture: str
    sub_architectures: tuple[str, ...] | None = ()


class _Profile(msgspec.Struct, rename="camel", frozen=True):
    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = ()
    arch_map: tuple[_ArchMap, ...] | None = ()
    flags: tuple[str, ...] | None = ()
    syscalls: tuple[_Rule, ...] | None = ()


def oci_seccomp(choice: Seccomp, *, capabilities: Collection[str]) -> dict[str, Any] | None:
    """``linux.seccomp`` of the OCI runtime specification, or None for no filter.

    ``capabilities`` are the container's, without ``CAP_``. Reads a file for LOCALHOST: call it
    off the event loop. Raises NotFound or InvalidArgument naming the profile.
    """
    profile = _resolve(choice, frozenset(capabilities))
    if profile is None:
        return None
    found: dict[str, Any] = {
        "defaultAction": profile.default_action,
        "architectures": list(profile.architectures or architecture.own().seccomp),
        "syscalls": [_oci_rule(rule) for rule in profile.syscalls or ()],
    }
    if profile.default_errno_ret is not None:
        found["defaultErrnoRet"] = profile.default_errno_ret
    if profile.flags:
        found["flags"] = list(profile.flags)
    return found


def _oci_rule(rule: _Rule) -> dict[str, Any]:
    found: dict[str, Any] = {"names": list(rule.names), "action": rule.action}
    if rule.errno_ret is not None:
        found["errnoRet"] = rule.errno_ret
    if rule.args:
        found["args"] = [
            {"index": a.index, "value": a.value, "valueTwo": a.value_two, "op": a.op} for a in rule.args
        ]
    return found


def compile_bpf(choice: Seccomp, *, capabilities: Collection[str]) -> Filter:
    """The filter as a program for a kernel of this architecture; cached.

    Raises NotFound or InvalidArgument naming the profile, FailedPrecondition without libseccomp.
    """
    if choice.mode is SeccompMode.UNCONFINED:
        return Filter()
    return _compiled(choice, frozenset(capabilities), _stamp(choice))


@lru_cache(maxsize=32)
def _compiled(choice: Seccomp, capabilities: frozenset[str], _stamp: tuple[int, int]) -> Filter:
    profile = _resolve(choice, capabilities)
    return Filter() if profile is None else _compile(profile, choice.path or "RuntimeDefault")


def _stamp(choice: Seccomp) -> tuple[int, int]:
    if choice.mode is not SeccompMode.LOCALHOST:
        return (0, 0)
    try:
        found = Path(choice.path).stat()
    except OSError as error:
        raise NotFound(f"seccomp profile {choice.path} cannot be read: {error.strerror}") from error
    return (found.st_mtime_ns, found.st_size)


def _resolve(choice: Seccomp, capabilities: frozenset[str]) -> _Profile | None:
    match choice.mode:
        case SeccompMode.UNCONFINED:
            return None
        case SeccompMode.RUNTIME_DEFAULT:
            return _default_profile(capabilities)
        case SeccompMode.LOCALHOST:
            return _load(choice.path, capabilities)


def _default_profile(capabilities: frozenset[str]) -> _Profile:
    allowed = set(default.ALWAYS)
    for capability in capabilities:
        allowed |= default.BY_CAPABILITY.get(capability, frozenset())
    rules = [_Rule(action="SCMP_ACT_ALLOW", names=tuple(sorted(allowed)))]
    # Three ranges that leave out two values: conditions on one argument are alternatives.
    for operator, family in (("LT", default.AF_ALG), ("EQ", default.AF_ALG + 1), ("GT", default.AF_VSOCK)):
        rules.append(_allow("socket", _Argument(0, family, f"SCMP_CMP_{operator}")))
    rules += [_allow("personality", _Argument(0, value, "SCMP_CMP_EQ")) for value in default.PERSONALITIES]
    if "SYS_ADMIN" not in capabilities:
        rules.append(_allow("clone", _Argument(0, default.NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")))
        # Its flags are behind a pointer; libraries take ENOSYS as "use clone".
        rules.append(_Rule(action="SCMP_ACT_ERRNO", names=("clone3",), errno_ret=_ENOSYS))
    return _Profile(
        default_action="SCMP_ACT_ERRNO",
        default_errno_ret=_EPERM,
        architectures=architecture.own().seccomp,
        syscalls=tuple(rules),
    )


def _allow(name: str, argument: _Argument) -> _Rule:
    return _Rule(action="SCMP_ACT_ALLOW", names=(name,), args=(argument,))


def _load(path: str, capabilities: frozenset[str]) -> _Profile:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_PROFILE + 1)
    except OSError as error:
        raise NotFound(f"seccomp profile {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_PROFILE:
        raise InvalidArgument(f"seccomp profile {path} is larger than {_MAX_PROFILE} bytes")
    return parse(data, path, capabilities)


def parse(data: bytes, source: str, capabilities: Collection[str]) -> _Profile:
    """Check a profile document and decide its conditions. Raises InvalidArgument naming ``source``."""
    try:
        found = msgspec.json.decode(data, type=_Profile)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidArgument(f"seccomp profile {source}: {error}") from error
    rules = []
    for rule in found.syscalls or ():
        names = rule.names or ((rule.name,) if rule.name else ())
        if names and _applies(rule, frozenset(capabilities)):
            rules.append(
                _Rule(action=rule.action, names=names, errno_ret=rule.errno_ret, args=rule.args or ())
            )
    _check(found, rules, source)
    return _Profile(
        default_action=found.default_action,
        default_errno_ret=found.default_errno_ret,
        architectures=found.architectures or _mapped(found.arch_map or ()),
        flags=found.flags or (),
        syscalls=tuple(rules),
    )


def _mapped(maps: tuple[_ArchMap, ...]) -> tuple[str, ...]:
    own = architecture.own().seccomp
    for entry in maps:
        if entry.architecture == own[0]:
            return (entry.architecture, *(entry.sub_architectures or ()))
    return own


def _applies(rule: _Rule, capabilities: frozenset[str]) -> bool:
    if (wanted := rule.includes) is not None:
        if not all(name.removeprefix("CAP_") in capabilities for name in wanted.caps):
            return False
        if wanted.arches and architecture.own().debian not in wanted.arches:
            return False
        if wanted.min_kernel and not _kernel_at_least(wanted.min_kernel):
            return False
    if (unwanted := rule.excludes) is not None:
        if any(name.removeprefix("CAP_") in capabilities for name in unwanted.caps):
            return False
        if architecture.own().debian in unwanted.arches:
            return False
        if unwanted.min_kernel and _kernel_at_least(unwanted.min_kernel):
            return False
    return True


def _kernel_at_least(version: str) -> bool:
    def numbers(text: str) -> tuple[int, ...]:
        parts = text.replace("-", ".").split(".")[:2]
        return tuple(int(part) if part.isdecimal() else 0 for part in parts)

    return numbers(os.uname().release) >= numbers(version)


def _check(profile: _Profile, rules: list[_Rule], source: str) -> None:
    def refuse(what: str) -> InvalidArgument:
        return InvalidArgument(f"seccomp profile {source}: {what}")

    for action in (profile.default_action, *(rule.action for rule in rules)):
        if action not in _ACTIONS:
            raise refuse(f"action {action[:40]!r} is not supported")
    for flag in profile.flags or ():
        if flag not in _FLAGS:
            raise refuse(f"flag {flag[:40]!r} is not supported")
    for rule in rules:
        for argument in rule.args or ():
            if argument.op.removeprefix("SCMP_CMP_") not in _OPERATORS:
                raise refuse(f"operator {argument.op[:40]!r} is not supported")
            if not 0 <= argument.index <= 5:
                raise refuse(f"system calls have no argument {argument.index}")
            if not (0 <= argument.value < 1 << 64 and 0 <= argument.value_two < 1 << 64):
                raise refuse("an argument's value is not an unsigned number of 64 bits")
    for number in (profile.default_errno_ret, *(rule.errno_ret for rule in rules)):
        if number is not None and not 0 <= number < 4096:
            raise refuse(f"{number} is not an error number")


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


def _compile(profile: _Profile, source: str) -> Filter:
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
        for rule in profile.syscalls or ():
            _add_rule(library, context, rule, standard, source)
        library.seccomp_attr_set(context, 8, 2)  # SCMP_FLTATR_CTL_OPTIMIZE: a binary tree
        program = _export(library, context, source)
    finally:
        library.seccomp_release(context)
    if profile.default_action == "SCMP_ACT_ERRNO":
        program = _unknown_calls(_last_known(library)) + program
    if len(program) > 8 * _MAX_PROGRAM:
        raise InvalidArgument(f"seccomp profile {source}: it takes more than {_MAX_PROGRAM} instructions")
    flags = sum(_FLAGS[flag] for flag in set(profile.flags or ()))
    return Filter(program=program, flags=flags)


def _action(name: str, number: int | None) -> int:
    data = (_EPERM if number is None else number) & 0xFFFF if name in _WITH_DATA else 0
    return _ACTIONS[name] | data


def _add_rule(library: ctypes.CDLL, context: int, rule: _Rule, standard: int, source: str) -> None:
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


def _alternatives(arguments: tuple[_Argument, ...]) -> Iterator[list[_Compare]]:
    """Conditions on different arguments must all hold; several on one argument are alternatives."""
    compares = [
        _Compare(a.index, 1 + _OPERATORS.index(a.op.removeprefix("SCMP_CMP_")), a.value, a.value_two)
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
            (give, 0, 0, _ACTIONS["SCMP_ACT_ERRNO"] | _ENOSYS),
        )
    )
