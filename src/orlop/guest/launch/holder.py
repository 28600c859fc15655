"""Process 1 of the PID namespace that the containers of a pod share."""

from __future__ import annotations

import struct

from orlop.guest.launch import spawn
from orlop.guest.launch.script import Script
from orlop.guest.launch.userns import write_maps
from orlop.linux import syscalls
from orlop.wire.values import GuestNamespaces

_SIGCHLD = 17
_SIG_IGN = 1


def start(namespaces: GuestNamespaces) -> spawn.Spawned:
    """The holder. With id mappings the PID namespace belongs to a user namespace of that kind.

    It sleeps for ever; the kernel reaps the orphans, since their parent ignores SIGCHLD.
    """
    ours, theirs = spawn.control_pair()
    steps = Script()
    flags = syscalls.CLONE_NEWPID
    if namespaces.maps_users:
        flags |= syscalls.CLONE_NEWUSER
        steps.gate(theirs.fileno())
        steps.add("setresgid", 0, 0, 0)
        steps.add("setresuid", 0, 0, 0)
    action = struct.pack("=4Q", _SIG_IGN, 0, 0, 0)
    steps.add("rt_sigaction", _SIGCHLD, action, 0, 8)
    steps.add("prctl", syscalls.PR_SET_NAME, b"pause")
    steps.add("setsid")
    steps.add("close_range", 0, 0xFFFFFFFF, 0)
    steps.forever("ppoll")
    try:
        child = spawn.start(steps, flags=flags)
    finally:
        theirs.close()
    child.control = ours
    if namespaces.maps_users:
        write_maps(child.pid, namespaces)
        child.go()
    child.hang_up()
    return child
