"""Start a QEMU process with its sockets already listening."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from orlop.errors import InvalidArgument, ResourceExhausted
from orlop.host import filesizes, process
from orlop.hypervisor.jail.spawn import Jail, spawn
from orlop.hypervisor.qemu.cmdline import Arguments, Network, Sockets, render
from orlop.hypervisor.qemu.errorlog import ErrorLog

MONITOR_SOCKET = "qmp.sock"
AGENT_SOCKET = "agent.sock"

# sockaddr_un.sun_path, with its final zero byte; see unix(7).
_SOCKET_PATH_LIMIT = 107
# A clone touches some tens of MiB at once; below this the kernel would kill something.
_MEMORY_NEEDED_KIB = 128 << 10
# Its saved state, some hundred KiB, is all that a machine writes to files before it has a writable disk.
_LONGEST_FILE = 64 << 20

Build = Callable[[Sockets, Network], Arguments]


async def launch(
    directory: Path, jail: Jail, build: Build, *, log: ErrorLog, tap_fd: int, pass_fds: Sequence[int] = ()
) -> process.Detached:
    """Start QEMU in its jail, with its files in ``directory``, which exists.

    ``build`` makes the arguments around the descriptors. Raises FailedPrecondition when the jail cannot be
    entered, ResourceExhausted when the host has no memory left for it.
    """
    _check_memory()
    with ExitStack() as stack:
        monitor = stack.enter_context(_listen(directory / MONITOR_SOCKET))
        agent = stack.enter_context(_listen(directory / AGENT_SOCKET))
        arguments = build(Sockets(monitor.fileno(), agent.fileno()), Network(tap_fd))
        child = await spawn(
            jail,
            render(arguments),
            log=log.fileno(),
            pass_fds=(monitor.fileno(), agent.fileno(), tap_fd, *pass_fds),
        )
    # What makes a file longer fails then, and ends nobody: the jail's Python ignores SIGXFSZ, and so does
    # what it becomes.
    filesizes.bound(child.pid, _LONGEST_FILE)
    # Not the daemon's, which the system is to spare.
    process.set_oom_score(child.pid, 0)
    return child


def _listen(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
        raise InvalidArgument(
            f"the path {path} is longer than the {_SOCKET_PATH_LIMIT} bytes a socket may have: "
            "choose a shorter state directory"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(os.fspath(path))
        path.chmod(0o600)
        listener.listen(4)
    except BaseException:
        listener.close()
        raise
    return listener


def _check_memory() -> None:
    available = _available_kib()
    if available < _MEMORY_NEEDED_KIB:
        raise ResourceExhausted(
            f"a VM needs {_MEMORY_NEEDED_KIB >> 10} MiB of free memory to start, "
            f"but this node has {available >> 10} MiB available"
        )


def _available_kib() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1])
    return _MEMORY_NEEDED_KIB
