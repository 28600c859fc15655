"""Start a program in a jail.

The program is the first process of its PID namespace; it has mount, network, IPC, UTS, cgroup and user
namespaces of its own, sees one read-only tree, and is a user whom the host knows by an id that owns
nothing. What it may use beyond that it gets as open descriptors.
"""

from __future__ import annotations

import asyncio
import marshal
import os
import resource
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

import msgspec

import orlop
from orlop.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from orlop.host import process, tasks
from orlop.hypervisor.jail import ids
from orlop.hypervisor.jail.enter import MAPPED, WAITING
from orlop.hypervisor.jail.orders import Orders
from orlop.linux.capabilities import CAPABILITIES

_TIMEOUT = 30.0
_MESSAGE = 1024
_SOURCE = os.fspath(Path(orlop.__file__).parent.parent)
_ENTER = f"import sys; sys.path.insert(0, {_SOURCE!r}); from orlop.hypervisor.jail.enter import main; main()"


def _most_files() -> int:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    return 4096 if hard == resource.RLIM_INFINITY else min(4096, hard - 1)


ENTRANCE = _most_files()
"""The descriptor of the program while the jail is entered: one above all that it can ever have itself."""

LIMITS: Mapping[int, int] = {
    resource.RLIMIT_CORE: 0,
    resource.RLIMIT_NOFILE: ENTRANCE,
    resource.RLIMIT_NPROC: 512,
    resource.RLIMIT_MEMLOCK: 64 << 10,
    resource.RLIMIT_MSGQUEUE: 0,
    resource.RLIMIT_NICE: 0,
    resource.RLIMIT_RTPRIO: 0,
    resource.RLIMIT_SIGPENDING: 1024,
}
"""Limits (getrlimit(2)) that suit a machine of any size; its user is its own, so NPROC counts its threads."""


class Jail(msgspec.Struct, frozen=True, kw_only=True):
    """What a program may see and do.

    ``owner`` is the first id of its range (:mod:`orlop.hypervisor.jail.ids`); ``binds`` show files and
    directories of the host read-only in the tree; ``devices`` are names below /dev; ``capabilities``
    count over its own users only. ``program`` is the system-call filter, empty for none.
    Without ``unasked_huge_pages`` the kernel gives it huge pages where it asks for them, and nowhere else.
    """

    tree: Path
    owner: int
    binds: tuple[tuple[Path, str], ...] = ()
    devices: tuple[str, ...] = ("null",)
    capabilities: tuple[str, ...] = ()
    limits: Mapping[int, int] = msgspec.field(default_factory=lambda: LIMITS)
    program: bytes = b""
    unasked_huge_pages: bool = True


async def spawn(
    jail: Jail, argv: Sequence[str], *, log: int, pass_fds: Sequence[int] = ()
) -> process.Detached:
    """Start ``argv`` in the jail; it outlives the daemon. Its output goes to the descriptor ``log``.

    When this returns the program runs. Raises FailedPrecondition when the jail cannot be entered,
    DeadlineExceeded, Unavailable when another try may do, OSError. A failure or cancellation leaves no
    process behind.
    """
    ours, theirs = socket.socketpair()
    if ENTRANCE in (*pass_fds, theirs.fileno(), log):
        ours.close()
        theirs.close()
        raise Unavailable(f"descriptor {ENTRANCE}, of all, is in the way: the jail needs it to be entered")
    with ours, theirs, _written(_orders(jail, argv, theirs.fileno())) as stdin:
        child = await process.spawn_detached(
            [sys.executable, "-I", "-S", "-c", _ENTER],
            env={},
            stdin=stdin,
            stdout=log,
            stderr=log,
            pass_fds=(*pass_fds, theirs.fileno()),
            pid_namespace=True,
        )
        theirs.close()
        try:
            await _let_in(ours, child.pid, jail.owner)
        except BaseException:
            await tasks.roll_back("the jail's process", process.kill_pid(child.pid, child.start_time))
            raise
    return child


async def _let_in(door: socket.socket, pid: int, owner: int) -> None:
    """Give the user namespace its mappings, which takes rights outside of it, and wait for the exec."""
    door.setblocking(False)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(_TIMEOUT):
            said = await loop.sock_recv(door, _MESSAGE)
            if said == WAITING:
                for kind in ("uid", "gid"):
                    Path(f"/proc/{pid}/{kind}_map").write_text(ids.id_map(owner), encoding="ascii")
                await loop.sock_sendall(door, MAPPED)
                if not (said := await loop.sock_recv(door, _MESSAGE)):
                    return
    except TimeoutError as error:
        raise DeadlineExceeded(f"the jail of a VM was not entered within {_TIMEOUT:g} seconds") from error
    reason = said.decode(errors="replace") or "its process ended"
    raise FailedPrecondition(f"the jail of a VM cannot be entered on this host: {reason}")


def _written(orders: Orders) -> IO[bytes]:
    file = os.fdopen(os.memfd_create("orders", os.MFD_CLOEXEC), "w+b", buffering=0)
    file.write(marshal.dumps(orders))  # type: ignore[arg-type] # a TypedDict is a dict
    file.seek(0)
    return file


def _orders(jail: Jail, argv: Sequence[str], door: int) -> Orders:
    return {
        "tree": os.fspath(jail.tree),
        "binds": [(os.fspath(source), place) for source, place in jail.binds],
        "devices": list(jail.devices),
        "owner": jail.owner,
        "capabilities": [CAPABILITIES.index(name) for name in jail.capabilities],
        "limits": list(jail.limits.items()),
        "program": jail.program,
        "unasked_huge_pages": jail.unasked_huge_pages,
        "argv": list(argv),
        "environment": {"LANG": "C.UTF-8", "PATH": "/usr/bin"},
        "door": door,
    }
