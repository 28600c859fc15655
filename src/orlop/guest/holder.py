"""Process 1 of the PID namespace that the containers of a pod share."""

from __future__ import annotations

import os
import struct

from orlop.guest import spawn, syscalls
from orlop.guest.script import Script

_SIGCHLD = 17
_SIG_IGN = 1


def start() -> tuple[spawn.Child, int]:
    """The holder and a descriptor of its PID namespace.

    It sleeps for ever; the kernel reaps the orphans, since their parent ignores SIGCHLD.
    """
    steps = Script()
    action = struct.pack("=4Q", _SIG_IGN, 0, 0, 0)
    steps.add("rt_sigaction", _SIGCHLD, action, 0, 8)
    steps.add("prctl", syscalls.PR_SET_NAME, b"pause")
    steps.add("setsid")
    steps.add("close_range", 0, 0xFFFFFFFF, 0)
    steps.forever("pause")
    child = spawn.start(steps, flags=syscalls.CLONE_NEWPID)
    return child, os.open(f"/proc/{child.pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
