"""Code in the place of a running QEMU: its namespaces, its users, its capabilities, its open files.

``python -m tests.hostile.intruder PID SCRIPT`` becomes a shell that stands where that process stands, with
the descriptors it has. It is given more than a real intruder: no system-call filter holds it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

NAMESPACES = ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup")
CAPABILITIES = {0, 1, 3, 4}
TOOLS = "/sys"
"""Where the shell finds its tools, in a mount namespace copied for it: the jail has none."""


def main() -> None:
    """See the module."""
    pid, script = sys.argv[1:]
    libc = ctypes.CDLL(None, use_errno=True)
    inherit(int(pid))
    busybox = Path("/bin/busybox").read_bytes()
    doors = [os.open(f"/proc/{pid}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in NAMESPACES]
    root = os.open(f"/proc/{pid}/root", os.O_RDONLY | os.O_CLOEXEC)
    # The user namespace last: the others are entered with rights that it takes away.
    for door in doors[1:]:
        checked(libc.setns(door, 0), "setns")
    os.fchdir(root)
    os.chroot(".")
    checked(libc.unshare(0x20000), "unshare")
    checked(libc.mount(b"none", TOOLS.encode(), b"tmpfs", 0, b"mode=0755"), "mount")
    tool = Path(TOOLS, "busybox")
    tool.write_bytes(busybox)
    tool.chmod(0o755)
    checked(libc.setns(doors[0], 0), "setns")
    child = os.fork()
    if child:
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    for number in range(41):
        if number not in CAPABILITIES:
            libc.prctl(24, ctypes.c_ulong(number), 0, 0, 0)
    libc.prctl(38, ctypes.c_ulong(1), 0, 0, 0)
    os.execve(tool, ["sh", "-c", f"b={tool}\n{script}"], {})


def checked(result: int, what: str) -> None:
    """Raises OSError for a system call that failed."""
    if result != 0:
        raise OSError(ctypes.get_errno(), what)


def inherit(pid: int) -> None:
    """Have what it has open under the same numbers, but for standard output and error."""
    for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda path: int(path.name)):
        number = int(entry.name)
        if number > 2:
            try:
                copy = pidfd_getfd(pid, number)
            except OSError:
                continue
            os.dup2(copy, number, inheritable=True)
            if copy != number:
                os.close(copy)


def pidfd_getfd(pid: int, number: int) -> int:
    """pidfd_getfd(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    pidfd = os.pidfd_open(pid)
    try:
        found: int = libc.syscall(438, pidfd, number, 0)
    finally:
        os.close(pidfd)
    if found < 0:
        raise OSError(ctypes.get_errno(), "pidfd_getfd")
    return found


if __name__ == "__main__":
    main()
