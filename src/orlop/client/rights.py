"""Limits, devices, signals and what a container may do, in the words people write."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Sequence
from typing import TypedDict

from orlop.client.texts import utf8
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument

_ULIMIT = re.compile(r"([a-z]{2,12})=(-1|unlimited|\d{1,19})(?::(-1|unlimited|\d{1,19}))?")
_LIMITS = (
    *("as", "core", "cpu", "data", "fsize", "locks", "memlock", "msgqueue", "nice", "nofile"),
    *("nproc", "rss", "rtprio", "rttime", "sigpending", "stack"),
)
_SYSCTL = re.compile(r"[a-z0-9][A-Za-z0-9_./-]*")


class SecurityWords(TypedDict, total=False):
    """What ``security`` says, by the fields of :class:`~orlop.client.launch.RunOptions`."""

    no_new_privileges: bool
    seccomp: pb.SecurityProfile


def ulimit(text: str) -> str:
    """``nofile=1024:2048`` as the daemon wants it. Raises InvalidArgument."""
    match = _ULIMIT.fullmatch(text.lower())
    if match is None:
        raise InvalidArgument(f"{text}: write NAME=SOFT[:HARD], for example nofile=1024:2048")
    name, soft, hard = match.groups()
    if name not in _LIMITS:
        raise InvalidArgument(f"{text}: there is no limit {name}, but {', '.join(_LIMITS)}")
    return f"{name.upper()}={soft}:{hard or soft}"


def device(text: str) -> pb.Device:
    """``/dev/HOST[:/dev/INSIDE[:rwm]]``. Raises InvalidArgument."""
    outside, *others = text.split(":")
    inside, permissions = outside, "rwm"
    if others and others[0].startswith("/"):
        inside = others.pop(0)
    if others:
        permissions = others.pop(0)
    valid = outside.startswith("/") and permissions and set(permissions) <= set("rwm")
    if others or not valid:
        raise InvalidArgument(f"{text}: write /dev/HOST[:/dev/INSIDE[:rwm]]")
    if not os.path.exists(outside):  # noqa: PTH110 - a name that is too long is none
        raise InvalidArgument(f"{text}: {outside} does not exist on this machine")
    return pb.Device(
        host_path=utf8(outside, text), container_path=utf8(inside, text), permissions=permissions
    )


def signal_number(text: str) -> pb.Signal.ValueType:
    """CRI's number of a signal by name or Linux's number; its default for "". Raises InvalidArgument."""
    if not text:
        return pb.SIGNAL_RUNTIME_DEFAULT
    name = text.upper()
    if name.isascii() and name.isdecimal() and len(name) < 3:
        try:
            name = signal.Signals(int(name)).name
        except ValueError:
            name = ""
    name = "SIGNAL_SIG" + name.removeprefix("SIG").replace("+", "PLUS").replace("-", "MINUS")
    found = dict(pb.Signal.items()).get(name)
    if found is None:
        raise InvalidArgument(f"there is no signal {text} that could stop a container")
    return found


def sysctls(texts: Sequence[str]) -> dict[str, str]:
    """``NAME=VALUE`` each. Raises InvalidArgument."""
    found = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not _SYSCTL.fullmatch(name):
            raise InvalidArgument(f"{text}: write NAME=VALUE, for example net.ipv4.ip_forward=1")
        found[name] = utf8(value, text)
    return found


def security(texts: Sequence[str]) -> SecurityWords:
    """``no-new-privileges``, ``seccomp=unconfined`` or ``seccomp=/PROFILE``. Raises InvalidArgument."""
    found = SecurityWords()
    for text in texts:
        key, value = re.fullmatch(r"([^=:]*)[=:]?(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        if key == "no-new-privileges" and value in ("", "true", "false"):
            found["no_new_privileges"] = value != "false"
        elif key == "seccomp" and value == "unconfined":
            found["seccomp"] = pb.SecurityProfile(profile_type=pb.SecurityProfile.Unconfined)
        elif key == "seccomp" and value.startswith("/"):
            path = utf8(value, text)
            found["seccomp"] = pb.SecurityProfile(
                profile_type=pb.SecurityProfile.Localhost, localhost_ref=path
            )
        else:
            raise InvalidArgument(
                f"{text}: there are no-new-privileges, seccomp=unconfined and seccomp=/PROFILE"
            )
    return found
