"""System-call filters: profiles read and made, for an OCI runtime or as a program for the kernel.

A profile is kept in the form of the OCI runtime specification (``linux.seccomp``); profiles of
users may also have the conditions (``includes``, ``excludes``, ``archMap``) that container engines
have added to it. :mod:`orlop.host.seccomp` makes programs of them.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec

from orlop.errors import InvalidArgument, NotFound
from orlop.host import seccomp
from orlop.host.seccomp import ACTIONS, FLAGS, OPERATORS, Argument, CallRule, Filter, Profile
from orlop.linux import architecture
from orlop.sandbox import seccomp_default as default
from orlop.sandbox.spec import Seccomp, SeccompMode
from orlop.value import UNREADABLE

_MAX_PROFILE = 1 << 20
_EPERM, _ENOSYS = 1, 38


class _Condition(msgspec.Struct, rename="camel", frozen=True):
    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    min_kernel: str = ""


class _ConditionalRule(CallRule, rename="camel", frozen=True):
    name: str = ""
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchMap(msgspec.Struct, rename="camel", frozen=True):
    architecture: str
    sub_architectures: tuple[str, ...] | None = ()


class _ProfileDocument(msgspec.Struct, rename="camel", frozen=True):
    default_action: str
    default_errno_ret: int | None = None
    architectures: tuple[str, ...] | None = ()
    arch_map: tuple[_ArchMap, ...] | None = ()
    flags: tuple[str, ...] | None = ()
    syscalls: tuple[_ConditionalRule, ...] | None = ()


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
        "syscalls": [_oci_rule(rule) for rule in profile.syscalls],
    }
    if profile.default_errno_ret is not None:
        found["defaultErrnoRet"] = profile.default_errno_ret
    if profile.flags:
        found["flags"] = list(profile.flags)
    return found


def _oci_rule(rule: CallRule) -> dict[str, Any]:
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
    return Filter() if profile is None else seccomp.compile_profile(profile, choice.path or choice.mode)


def _stamp(choice: Seccomp) -> tuple[int, int]:
    if choice.mode is not SeccompMode.LOCALHOST:
        return (0, 0)
    try:
        found = Path(choice.path).stat()
    except OSError as error:
        raise NotFound(f"seccomp profile {choice.path} cannot be read: {error.strerror}") from error
    return (found.st_mtime_ns, found.st_size)


def _resolve(choice: Seccomp, capabilities: frozenset[str]) -> Profile | None:
    match choice.mode:
        case SeccompMode.UNCONFINED:
            return None
        case SeccompMode.RUNTIME_DEFAULT:
            return _default_profile(capabilities)
        case SeccompMode.LOCALHOST:
            return _load(choice.path, capabilities)
        case SeccompMode.GIVEN:
            return parse(choice.profile.encode(), "given for the container", capabilities)


def _default_profile(capabilities: frozenset[str]) -> Profile:
    allowed = set(default.ALWAYS)
    for capability in capabilities:
        allowed |= default.BY_CAPABILITY.get(capability, frozenset())
    rules = [CallRule(action="SCMP_ACT_ALLOW", names=tuple(sorted(allowed)))]
    # Three ranges that leave out two values: conditions on one argument are alternatives.
    for operator, family in (("LT", default.AF_ALG), ("EQ", default.AF_ALG + 1), ("GT", default.AF_VSOCK)):
        rules.append(_allow("socket", Argument(0, family, f"SCMP_CMP_{operator}")))
    rules += [_allow("personality", Argument(0, value, "SCMP_CMP_EQ")) for value in default.PERSONALITIES]
    if "SYS_ADMIN" not in capabilities:
        rules.append(_allow("clone", Argument(0, default.NEW_NAMESPACES, "SCMP_CMP_MASKED_EQ")))
        # Its flags are behind a pointer; libraries take ENOSYS as "use clone".
        rules.append(CallRule(action="SCMP_ACT_ERRNO", names=("clone3",), errno_ret=_ENOSYS))
    return Profile(
        default_action="SCMP_ACT_ERRNO",
        default_errno_ret=_EPERM,
        architectures=architecture.own().seccomp,
        syscalls=tuple(rules),
    )


def _allow(name: str, argument: Argument) -> CallRule:
    return CallRule(action="SCMP_ACT_ALLOW", names=(name,), args=(argument,))


def _load(path: str, capabilities: frozenset[str]) -> Profile:
    try:
        with Path(path).open("rb") as file:
            data = file.read(_MAX_PROFILE + 1)
    except OSError as error:
        raise NotFound(f"seccomp profile {path} cannot be read: {error.strerror}") from error
    if len(data) > _MAX_PROFILE:
        raise InvalidArgument(f"seccomp profile {path} is larger than {_MAX_PROFILE} bytes")
    return parse(data, path, capabilities)


def parse(data: bytes, source: str, capabilities: Collection[str]) -> Profile:
    """Check a profile document and decide its conditions. Raises InvalidArgument naming ``source``."""
    try:
        found = msgspec.json.decode(data, type=_ProfileDocument)
    except UNREADABLE as error:
        raise InvalidArgument(f"seccomp profile {source}: {error}") from error
    rules = []
    for rule in found.syscalls or ():
        names = rule.names or ((rule.name,) if rule.name else ())
        if names and _applies(rule, frozenset(capabilities)):
            rules.append(
                CallRule(action=rule.action, names=names, errno_ret=rule.errno_ret, args=rule.args or ())
            )
    _check(found, rules, source)
    return Profile(
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


def _applies(rule: _ConditionalRule, capabilities: frozenset[str]) -> bool:
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


def _check(profile: _ProfileDocument, rules: list[CallRule], source: str) -> None:
    def refuse(what: str) -> InvalidArgument:
        return InvalidArgument(f"seccomp profile {source}: {what}")

    for action in (profile.default_action, *(rule.action for rule in rules)):
        if action not in ACTIONS:
            raise refuse(f"action {action[:40]!r} is not supported")
    for flag in profile.flags or ():
        if flag not in FLAGS:
            raise refuse(f"flag {flag[:40]!r} is not supported")
    for rule in rules:
        for argument in rule.args or ():
            if argument.op.removeprefix("SCMP_CMP_") not in OPERATORS:
                raise refuse(f"operator {argument.op[:40]!r} is not supported")
            if not 0 <= argument.index <= 5:
                raise refuse(f"system calls have no argument {argument.index}")
            if not (0 <= argument.value < 1 << 64 and 0 <= argument.value_two < 1 << 64):
                raise refuse("an argument's value is not an unsigned number of 64 bits")
    for number in (profile.default_errno_ret, *(rule.errno_ret for rule in rules)):
        if number is not None and not 0 <= number < 4096:
            raise refuse(f"{number} is not an error number")
