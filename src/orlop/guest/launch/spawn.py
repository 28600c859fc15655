"""Starting a child that walks a script, and the talk with it until it is its own program.

The control socket (SOCK_SEQPACKET) says "ready" at each gate, and ends when exec succeeds or the child
does: its end closes on exec.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass

from orlop.guest.launch import script
from orlop.guest.launch.script import Script
from orlop.linux import syscalls

_CLONE_VM = 0x100
_CLONE_PIDFD = 0x1000
_CLONE_CLEAR_SIGHAND = 0x100000000
_CLONE_INTO_CGROUP = 0x200000000
_SIGCHLD = 17
_CLONE_ARGUMENTS = struct.Struct("=11Q")
CONTROL = 3
"""The control socket's number in the child, once :func:`keep_only_control` has run."""


@dataclass
class Spawned:
    """The agent's side of a child: its pid, a pidfd, the control socket and the script it walks."""

    pid: int
    pidfd: int
    control: socket.socket | None
    script: Script

    def go(self) -> None:
        """Open the gate the child waits at. One that is dead already is found out otherwise."""
        if self.control is not None:
            with suppress(BrokenPipeError):
                self.control.send(b"go")

    def receive(self) -> bool:
        """True for word that a gate was reached, False at the end; BlockingIOError when there is none yet."""
        assert self.control is not None
        try:
            return bool(self.control.recv(16))
        except ConnectionResetError:
            return False

    def hang_up(self) -> None:
        """Close the control socket. Idempotent."""
        if self.control is not None:
            self.control.close()
            self.control = None

    def close(self) -> None:
        """Release everything. Idempotent."""
        self.hang_up()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def control_pair() -> tuple[socket.socket, socket.socket]:
    """The agent's and the child's end."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setblocking(False)
    return ours, theirs


def set_stdio(steps: Script, stdio: tuple[int, int, int]) -> None:
    """First steps of every script: 0, 1 and 2."""
    for number, fd in enumerate(stdio):
        steps.add("dup3", fd, number, 0, what="stdio")


def keep_only_control(steps: Script, control: int) -> None:
    """Close all other descriptors that were the agent's."""
    if control != CONTROL:
        steps.add("dup3", control, CONTROL, os.O_CLOEXEC, what="control socket")
    steps.add("close_range", CONTROL + 1, 0xFFFFFFFF, 0, what="close descriptors")


def start(
    steps: Script,
    *,
    flags: int = 0,
    cgroup: int = -1,
    pid_namespace: int = -1,
) -> Spawned:
    """Clone; the child walks ``steps``. ``pid_namespace`` is one to be born in."""
    pidfd = ctypes.c_int(-1)
    flags |= _CLONE_VM | _CLONE_PIDFD | _CLONE_CLEAR_SIGHAND | (_CLONE_INTO_CGROUP if cgroup >= 0 else 0)
    arguments = _CLONE_ARGUMENTS.pack(
        flags, ctypes.addressof(pidfd), 0, 0, _SIGCHLD, 0, 0, 0, 0, 0, max(cgroup, 0)
    )
    first = steps.lay()
    own = -1
    try:
        if pid_namespace >= 0:
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(pid_namespace, syscalls.CLONE_NEWPID)
        try:
            pid = script.start(arguments, first)
        finally:
            if own >= 0:
                syscalls.setns(own, syscalls.CLONE_NEWPID)
    finally:
        if own >= 0:
            os.close(own)
    return Spawned(pid, pidfd.value, None, steps)
