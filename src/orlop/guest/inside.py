"""What the forked child does until it becomes the container's program, or that of an exec."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

from orlop.guest import credentials, mounts, syscalls, users
from orlop.guest.mounts import View
from orlop.guest.spawn import Control
from orlop.guest.users import Identity
from orlop.wire.messages import Refused
from orlop.wire.values import Security

_TIOCSPTLCK = 0x40045431
_TIOCGPTN = 0x80045430

DEFAULT_PATH = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Program:
    """What to run, and as whom. ``size`` is the terminal's, in rows and columns."""

    args: tuple[str, ...]
    env: Mapping[bytes, bytes]
    cwd: str
    security: Security
    tty: bool = False
    size: tuple[int, int] = (0, 0)


def run_container(view: View, program: Program, control: Control) -> None:
    """The life of a container's first process up to exec."""
    if view.own_user_namespace:
        control.wait()
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    credentials.set_oom_score(program.security.oom_score_adj)
    syscalls.unshare(syscalls.CLONE_NEWCGROUP | (0 if view.own_user_namespace else syscalls.CLONE_NEWNS))
    with suppress(OSError):
        syscalls.new_session_keyring("orlop")
    mounts.enter(view)
    master = _terminal(program, console=True) if program.tty else -1
    _make_cwd(program.cwd)
    _finish(program, control, master, gate=True)


def run_exec(pidfd: int, program: Program, control: Control, *, user_namespace: bool) -> None:
    """The life of an exec's process: into the container's namespaces, then its program."""
    credentials.set_oom_score(program.security.oom_score_adj)
    flags = syscalls.CLONE_NEWNS | syscalls.CLONE_NEWCGROUP
    try:
        syscalls.setns(pidfd, flags | (syscalls.CLONE_NEWUSER if user_namespace else 0))
    except OSError as error:
        raise Refused("failed_precondition", f"the container has ended ({error.strerror})") from error
    os.close(pidfd)
    os.chdir("/")
    if user_namespace:
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    with suppress(OSError):
        syscalls.new_session_keyring("orlop")
    master = _terminal(program, console=False) if program.tty else -1
    _finish(program, control, master, gate=False)


def find_program(name: str, path: bytes) -> bytes:
    """The file to execute, as execvp would find it; ``exec_failed`` says why there is none."""
    if "/" in name:
        _check_executable(name)
        return os.fsencode(name)
    for directory in path.split(b":"):
        candidate = (directory or b".") + b"/" + os.fsencode(name)
        with suppress(OSError):
            status = os.stat(candidate)
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
                return candidate
    raise Refused("exec_failed", f'exec: "{name}": executable file not found in $PATH')


def _check_executable(name: str) -> None:
    try:
        status = os.stat(name)
    except OSError as error:
        reason = (error.strerror or "").lower()
        raise Refused("exec_failed", f'exec: "{name}": stat {name}: {reason}') from error
    if stat.S_ISDIR(status.st_mode):
        raise Refused("exec_failed", f'exec: "{name}": is a directory')
    if not status.st_mode & 0o111:
        raise Refused("exec_failed", f'exec: "{name}": permission denied')


def _finish(program: Program, control: Control, master: int, *, gate: bool) -> None:
    try:
        os.chdir(program.cwd)
    except OSError as error:
        raise Refused(
            "exec_failed", f"chdir to cwd ({program.cwd!r}): {(error.strerror or '').lower()}"
        ) from error
    identity = users.resolve(
        program.security, users.read_database("/etc/passwd"), users.read_database("/etc/group")
    )
    _own_stdio(identity)
    env = dict(program.env)
    env.setdefault(b"PATH", DEFAULT_PATH)
    env.setdefault(b"HOME", os.fsencode(identity.home))
    if program.tty:
        env.setdefault(b"TERM", b"xterm")
    path = find_program(program.args[0], env[b"PATH"])
    credentials.set_rlimits(program.security.rlimits)
    fds = [master] if master >= 0 else []
    control.report({"uid": identity.uid, "gid": identity.gid, "groups": identity.groups}, fds)
    if master >= 0:
        os.close(master)
    if gate:
        control.wait()
    credentials.become(identity, program.security)
    try:
        os.chdir(program.cwd)  # again: as the user it is for
    except OSError as error:
        raise Refused(
            "exec_failed", f"chdir to cwd ({program.cwd!r}): {(error.strerror or '').lower()}"
        ) from error
    arguments = [os.fsencode(argument) for argument in program.args]
    try:
        os.execve(path, arguments, env)
    except OSError as error:
        reason = "argument list too long" if error.errno == errno.E2BIG else (error.strerror or "").lower()
        raise Refused("exec_failed", f'exec: "{program.args[0]}": {reason}') from error


def _own_stdio(identity: Identity) -> None:
    """Programs open /dev/stdout anew, which needs the right to; pipes and terminals become the user's."""
    for fd in (0, 1, 2):
        status = os.fstat(fd)
        if status.st_uid != identity.uid and (stat.S_ISFIFO(status.st_mode) or os.isatty(fd)):
            with suppress(OSError):
                os.fchown(fd, identity.uid, -1)


def _terminal(program: Program, *, console: bool) -> int:
    """Open a terminal of the container's own /dev/pts as stdin, stdout and stderr; returns its master."""
    master = os.open("/dev/ptmx", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    (number,) = struct.unpack("I", fcntl.ioctl(master, _TIOCGPTN, b"\0\0\0\0"))
    path = f"/dev/pts/{number}"
    slave = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    if any(program.size):
        fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("4H", *program.size, 0, 0))
    for fd in (0, 1, 2):
        os.dup2(slave, fd, inheritable=True)
    os.close(slave)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if console:
        os.close(os.open("/dev/console", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o620))
        syscalls.mount(path, "/dev/console", "", syscalls.MS_BIND)
    return master


def _make_cwd(path: str) -> None:
    with suppress(OSError):
        os.makedirs(path, 0o755, exist_ok=True)
