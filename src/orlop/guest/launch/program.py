"""From a prepared place to a running program: the last steps of a container's or an exec's process."""

from __future__ import annotations

import errno
import os
import termios
from collections.abc import Mapping
from dataclasses import dataclass

from orlop.guest.launch import credentials, spawn
from orlop.guest.launch.lookup import RootDirectory
from orlop.guest.launch.pins import Pins
from orlop.guest.launch.script import ANY, Script, errors
from orlop.linux import syscalls, users
from orlop.linux.syscalls import AT_FDCWD
from orlop.linux.users import Identity
from orlop.wire.messages import Refused
from orlop.wire.values import Container, GuestSecurity

TTY_GROUP = 5
"""The group that terminals belong to, by old custom."""

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_FREE = spawn.CONTROL + 1
"""The descriptor that open returns in a child which has only its stdio and the control socket."""


@dataclass(frozen=True)
class Program:
    """What to run in the container ``spec``: its first process, or one more."""

    spec: Container
    args: tuple[str, ...]
    env: Mapping[bytes, bytes]
    tty: bool


@dataclass(frozen=True)
class Prepared:
    """What was found out about a program before it runs."""

    program: Program
    identity: Identity
    path: bytes
    env: dict[bytes, bytes]


def prepare(program: Program, root: RootDirectory, pins: Pins | None = None) -> Prepared:
    """Look up user and executable as the container sees them; ``pins`` get what is on the way to them.

    Raises Refused.
    """
    if pins is not None:
        for place in ("/etc/passwd", "/etc/group", program.spec.cwd):
            pins.hold(place)
    identity = _identity(program.spec.security, root)
    env = dict(program.env)
    env.setdefault(b"PATH", DEFAULT_PATH)
    env.setdefault(b"HOME", os.fsencode(identity.home))
    if program.tty:
        env.setdefault(b"TERM", b"xterm")
    searched = env[b"PATH"] if pins is None else _held(pins, program.args[0], env[b"PATH"], program.spec.cwd)
    path = root.find_program(program.args[0], searched, program.spec.cwd)
    return Prepared(program, identity, path, env)


def _held(pins: Pins, name: str, path: bytes, cwd: str) -> bytes:
    """Hold what leads to a program; ``path`` without the directories before it that are known to lack it."""
    if "/" in name:
        pins.weigh(pins.hold(name if name.startswith("/") else f"{cwd}/{name}") or "")
        return path
    directories = path.split(b":")
    for number, directory in enumerate(directories):
        place = pins.hold(f"{os.fsdecode(directory)}/{name}") if directory.startswith(b"/") else ""
        if place is not None:
            pins.weigh(place)
            return b":".join(directories[number:])
    return path


def _identity(security: GuestSecurity, root: RootDirectory) -> Identity:
    wanted = users.Wanted(
        user=security.user,
        group=security.group,
        supplemental_groups=security.supplemental_groups,
        strict_groups=security.strict_groups,
    )
    try:
        return users.find(wanted, root.read("/etc/passwd"), root.read("/etc/group"))
    except users.UnknownName as error:
        raise Refused("invalid", str(error)) from error


def add_terminal(steps: Script, path: str, *, console: bool) -> None:
    """Make the terminal at ``path`` stdin, stdout, stderr and the session's own."""
    if console:
        steps.add(
            "mknodat",
            AT_FDCWD,
            "/dev/console",
            0o100620,
            0,
            tolerate=errors(errno.EEXIST),
            what="/dev/console",
        )
        steps.add("mount", path, "/dev/console", 0, syscalls.MS_BIND, what="/dev/console")
    steps.add("openat", AT_FDCWD, path, os.O_RDWR | os.O_NOCTTY, what="open the terminal")
    for number in (0, 1, 2):
        steps.add("dup3", _FREE, number, 0, what="terminal")
    steps.add("close", _FREE)
    steps.add("ioctl", 0, termios.TIOCSCTTY, 0, what="control the terminal")


def add_program(steps: Script, prepared: Prepared, *, make_cwd: bool) -> None:
    """All from the working directory to execve."""
    program = prepared.program
    security, cwd = program.spec.security, program.spec.cwd
    if make_cwd:
        _make_directories(steps, cwd)
    where = f"chdir to cwd ({cwd!r})"
    steps.add("chdir", cwd, what=where, code="exec_failed")
    if not program.spec.namespaces.maps_users:
        score = str(security.oom_score_adj).encode()
        steps.add("openat", AT_FDCWD, "/proc/self/oom_score_adj", os.O_WRONLY, what="oom_score_adj")
        steps.add(
            "write",
            _FREE,
            score,
            len(score),
            tolerate=errors(errno.EACCES, errno.EPERM),
            what="oom_score_adj",
        )
        steps.add("close", _FREE)
    steps.include(credentials.steps_to_become(prepared.identity, security))
    steps.add("chdir", cwd, what=where, code="exec_failed")  # again: as the user it is for
    steps.add("umask", 0o022)
    arguments = steps.array([os.fsencode(argument) for argument in program.args])
    variables = steps.array([key + b"=" + value for key, value in prepared.env.items()])
    steps.add(
        "execve", prepared.path, arguments, variables, what=f'exec: "{program.args[0]}"', code="exec_failed"
    )


def _make_directories(steps: Script, path: str) -> None:
    parts = path.strip("/").split("/")
    for count in range(1, len(parts) + 1):
        steps.add("mkdirat", AT_FDCWD, "/" + "/".join(parts[:count]), 0o755, tolerate=ANY)
