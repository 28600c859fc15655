"""Which device nodes a container may use: a BPF program on its cgroup (BPF_PROG_TYPE_CGROUP_DEVICE).

Without it a container that may make nodes, as most may, could make one of a disk of its pod and read or
write past every mount. See the kernel's Documentation/admin-guide/cgroup-v2.rst, "Device controller".
"""

from __future__ import annotations

import ctypes
import functools
import os
import stat
import struct
from dataclasses import dataclass

from orlop.linux import syscalls
from orlop.wire.messages import Refused
from orlop.wire.values import GuestDevice

_BLOCK, _CHARACTER = 1, 2
_MKNOD, _READ, _WRITE = 1, 2, 4
_ALL = _MKNOD | _READ | _WRITE
_PROG_LOAD, _PROG_ATTACH = 5, 8
_CGROUP_DEVICE_PROGRAM = 15
_CGROUP_DEVICE_ATTACH = 6
_ALLOW_MULTI = 2
_LETTERS = {"r": _READ, "w": _WRITE, "m": _MKNOD}


@dataclass(frozen=True)
class DeviceRule:
    """Allow ``access`` to devices of ``kind``; None for any number."""

    kind: int
    major: int | None
    minor: int | None
    access: int = _ALL


# Nodes may be made of everything, and be used of what every container has in its /dev.
DEFAULT = (
    DeviceRule(_CHARACTER, None, None, _MKNOD),
    DeviceRule(_BLOCK, None, None, _MKNOD),
    *(DeviceRule(_CHARACTER, 1, minor) for minor in (3, 5, 7, 8, 9)),
    *(DeviceRule(_CHARACTER, 5, minor) for minor in (0, 1, 2)),
    DeviceRule(_CHARACTER, 136, None),
    DeviceRule(_CHARACTER, 10, 200),
)


def rule_of(device: GuestDevice) -> DeviceRule:
    """The rule that lets a container use ``device``; ``invalid`` when the guest has no such node."""
    try:
        status = os.stat(device.source)
    except OSError as error:
        raise Refused("invalid", f"the guest has no device {device.source}: {error.strerror}") from error
    kind = _BLOCK if stat.S_ISBLK(status.st_mode) else _CHARACTER
    access = 0
    for letter in device.access:
        if letter not in _LETTERS:
            raise Refused("invalid", f"{device.access!r} is not an access to a device (of r, w, m)")
        access |= _LETTERS[letter]
    return DeviceRule(kind, os.major(status.st_rdev), os.minor(status.st_rdev), access)


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, value: int = 0) -> bytes:
    return struct.pack("=BBhi", code, source << 4 | target, offset, value)


_MOVE, _MOVE_VALUE, _AND, _SHIFT_RIGHT = 0xBC, 0xB4, 0x54, 0x74
_LOAD_WORD, _JUMP_UNLESS, _JUMP_UNLESS_SAME, _EXIT = 0x61, 0x55, 0x5D, 0x95


def assemble(rules: tuple[DeviceRule, ...]) -> bytes:
    """The program: 1 for what a rule allows, else 0.

    r1 points to struct bpf_cgroup_dev_ctx; r2 is the kind, r3 the access, r4 and r5 the numbers.
    """
    code = [
        _instruction(_LOAD_WORD, 2, 1, 0),
        _instruction(_MOVE, 3, 2),
        _instruction(_AND, 2, value=0xFFFF),
        _instruction(_SHIFT_RIGHT, 3, value=16),
        _instruction(_LOAD_WORD, 4, 1, 4),
        _instruction(_LOAD_WORD, 5, 1, 8),
    ]
    for rule in rules:
        code += _rule(rule)
    code += [_instruction(_MOVE_VALUE, 0, value=0), _instruction(_EXIT)]
    return b"".join(code)


def _rule(rule: DeviceRule) -> list[bytes]:
    """Go past its end unless all fits; else allow."""
    tests = [
        (register, value)
        for register, value in ((2, rule.kind), (4, rule.major), (5, rule.minor))
        if value is not None
    ]
    limited = rule.access != _ALL
    left = len(tests) + (3 if limited else 0) + 2
    code = []
    for register, value in tests:
        left -= 1
        code.append(_instruction(_JUMP_UNLESS, register, offset=left, value=value))
    if limited:
        code += [
            _instruction(_MOVE, 1, 3),
            _instruction(_AND, 1, value=rule.access),
            _instruction(_JUMP_UNLESS_SAME, 1, 3, 2),
        ]
    return [*code, _instruction(_MOVE_VALUE, 0, value=1), _instruction(_EXIT)]


@functools.cache
def _load(rules: tuple[DeviceRule, ...]) -> int:
    program = ctypes.create_string_buffer(assemble(rules))
    licence = ctypes.create_string_buffer(b"Apache-2.0")
    count = (len(program) - 1) // 8
    attributes = struct.pack(
        "=IIQQ", _CGROUP_DEVICE_PROGRAM, count, ctypes.addressof(program), ctypes.addressof(licence)
    )
    fd = syscalls.bpf(_PROG_LOAD, attributes.ljust(48, b"\0"))
    os.set_inheritable(fd, False)
    return fd


@functools.cache
def _usual() -> int:
    """The program of a container without devices of its own, found without a look at its rules."""
    return _load(DEFAULT)


def restrict(cgroup: int, devices: tuple[GuestDevice, ...]) -> None:
    """Let the processes of a cgroup, given by a descriptor, use only ``devices`` and ordinary ones."""
    program = _load(DEFAULT + tuple(rule_of(device) for device in devices)) if devices else _usual()
    try:
        syscalls.bpf(_PROG_ATTACH, struct.pack("=IIII", cgroup, program, _CGROUP_DEVICE_ATTACH, _ALLOW_MULTI))
    except OSError as error:
        raise Refused("internal", f"cannot restrict the use of devices: {error.strerror}") from error
