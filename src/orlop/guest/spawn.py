"""Forking a child that becomes a container's program, and the talk with it until it does.

The control socket (SOCK_SEQPACKET) carries: from the child one report, JSON, with a terminal's master
if there is one; to the child one message per gate. Its end of file says that exec succeeded, because
the child's end closes on exec; a report with an error after that gate says that it did not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

from orlop.guest import syscalls
from orlop.wire.messages import Refused

_MAX_REPORT = 64 << 10
GO = b"go"


class Control:
    """The child's end of the control socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self._end.fileno()

    def report(self, values: dict[str, Any], fds: Iterable[int] = ()) -> None:
        """Tell the agent how far we are."""
        socket.send_fds(self._end, [json.dumps(values).encode()], list(fds))

    def wait(self) -> None:
        """Wait at the gate. When the agent lets go of us instead, end."""
        if self._end.recv(16) != GO:
            os._exit(1)


@dataclass
class Child:
    """The agent's side of a child: its pid, a pidfd and the control socket, all owned by the holder."""

    pid: int
    pidfd: int
    control: socket.socket | None

    def go(self) -> None:
        """Open the gate."""
        if self.control is not None:
            self.control.send(GO)

    def receive(self) -> tuple[dict[str, Any] | None, list[int]]:
        """The child's report and descriptors; None at end of file. BlockingIOError when there is none yet."""
        assert self.control is not None
        data, fds, _, _ = socket.recv_fds(self.control, _MAX_REPORT, 4)
        if not data:
            return None, fds
        return json.loads(data), fds

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


def spawn(
    body: Callable[[Control], None],
    *,
    stdio: tuple[int, int, int] = (-1, -1, -1),
    keep: Iterable[int] = (),
    flags: int = 0,
    cgroup: int = -1,
    pid_namespace: int = -1,
) -> Child:
    """Fork; the child runs ``body`` and must not return from it.

    ``stdio`` become 0, 1 and 2 (-1: /dev/null); of all other descriptors only ``keep`` survive.
    ``pid_namespace`` is one to be born in.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    own = -1
    try:
        if pid_namespace >= 0:
            own = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(pid_namespace, syscalls.CLONE_NEWPID)
        try:
            pid, pidfd = syscalls.clone(flags, cgroup)
        finally:
            if own >= 0 and os.getpid() == _AGENT:
                syscalls.setns(own, syscalls.CLONE_NEWPID)
        if pid == 0:
            _run(body, Control(theirs), stdio, keep)
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
        if own >= 0:
            os.close(own)
    ours.setblocking(False)
    return Child(pid, pidfd, ours)


_AGENT = os.getpid()


def _run(
    body: Callable[[Control], None], control: Control, stdio: tuple[int, int, int], keep: Iterable[int]
) -> NoReturn:
    try:
        _clean(control, stdio, keep)
        body(control)
    except Refused as refused:
        _complain(control, refused.code, str(refused))
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        _complain(
            control, "internal", f"{error} ({place.name}, {os.path.basename(place.filename)}:{place.lineno})"
        )
    finally:
        os._exit(127)


def _complain(control: Control, code: str, message: str) -> None:
    control.report({"code": code, "message": message[:16384]})


def _clean(control: Control, stdio: tuple[int, int, int], keep: Iterable[int]) -> None:
    """Forget what only the agent has: descriptors, signal handlers."""
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for target, fd in enumerate(stdio):
        os.dup2(fd if fd >= 0 else null, target, inheritable=True)
    syscalls.close_all_except({control.fd, *keep})
    os.setsid()
