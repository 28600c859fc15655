"""What can fail under a daemon, failing: inside its process, by a schedule that a seed decides.

Files, directories, child processes and connections are reached through the interpreter's audit events, so
nothing of the daemon is replaced there: an event that a fault falls on raises the error that the kernel
could have given. System calls made through ctypes, netlink, the journal, QEMU's monitor and the guest's agent
are wrapped, since they have no such events.

Whether the Nth event of a kind fails depends on the seed, the kind, N and which daemon of the run it is: one
that began anew would fail in the same places as the one before, and never in others. Faults happen only while
the file ``on`` exists below the directory of the plan; each is written to ``faults.log`` there.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import random
import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from orlop.errors import DeadlineExceeded, OrlopError, Unavailable
from orlop.host import process
from orlop.hypervisor.qemu.monitor import CommandFailed, Monitor
from orlop.linux import netlink, syscalls
from orlop.pods import journal
from orlop.sandbox.vm.agent import AgentClient

RATES = {
    "open": 0.002,
    "directory": 0.004,
    "remove": 0.004,
    "rename": 0.004,
    "fork": 0.004,
    "child": 0.01,
    "connect": 0.01,
    "syscall": 0.004,
    "netlink": 0.003,
    "journal": 0.002,
    "monitor": 0.004,
    "agent": 0.008,
}
STALLS = 0.25
"""The part of the faults that are only late."""

LONGEST_STALL = 1.5

_EVENTS = {
    "open": "open",
    "os.mkdir": "directory",
    "os.symlink": "directory",
    "os.link": "directory",
    "os.remove": "remove",
    "os.rmdir": "remove",
    "os.rename": "rename",
    "subprocess.Popen": "fork",
    "socket.connect": "connect",
}
_ERRORS = {
    "open": (errno.ENOSPC, errno.EIO, errno.EMFILE),
    "directory": (errno.ENOSPC, errno.EIO),
    "remove": (errno.EIO, errno.EBUSY),
    "rename": (errno.ENOSPC, errno.EIO),
    "fork": (errno.EAGAIN, errno.ENOMEM),
    "connect": (errno.ECONNREFUSED, errno.EAGAIN),
    "syscall": (errno.ENOMEM, errno.EIO, errno.EBUSY),
    "netlink": (errno.ENOBUFS, errno.EBUSY),
}


class Plan:
    """Decides and records. ``place`` is where the daemon's files are."""

    def __init__(self, place: Path, seed: int, rates: dict[str, float]) -> None:
        self._mark = os.fspath(place)
        self._seed = f"{seed} {_lives(place / 'faults' / 'lives')}"
        self._rates = rates
        self._counts: dict[str, int] = dict.fromkeys(rates, 0)
        self._lock = threading.Lock()
        self._switch = os.fspath(place / "faults" / "on")
        self._on = False
        self._clock = os.fspath(place / "faults" / "clock")
        self._jump = 0.0
        self._looked = 0.0
        self._log = os.open(
            place / "faults" / "faults.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        )
        self._main = threading.main_thread()
        self._busy = threading.local()

    def concerns(self, path: object) -> bool:
        """Whether a path, or a name in an open directory, is one of the daemon's own."""
        if isinstance(path, bytes):
            path = os.fsdecode(path)
        if not isinstance(path, str):
            return False
        return (
            path.startswith((self._mark, "/sys/fs/cgroup/"))
            # What goes wrong with a template makes another one, for as long as all the rest takes.
            and not path.startswith((self._mark + "/faults", self._mark + "/root/hypervisor"))
            and not path.endswith(".py")
        )

    def draw(self, kind: str, about: object) -> float | None:
        """None when nothing happens; else where in 0..1 the fault lies, which says of what sort it is."""
        if getattr(self._busy, "now", False):
            return None
        self._busy.now = True
        try:
            if not self._switched_on():
                return None
            with self._lock:
                self._counts[kind] += 1
                number = self._counts[kind]
            chance = random.Random(f"{self._seed} {kind} {number}")
            if chance.random() >= self._rates[kind]:
                return None
            sort = chance.random()
            line = f"{time.time():.3f} {kind} {number} {sort:.3f} {str(about)[:300]}\n"
            os.write(self._log, line.encode(errors="replace"))
            return sort
        finally:
            self._busy.now = False

    def error(self, kind: str, sort: float) -> OSError:
        """The error of a fault of that sort."""
        choices = _ERRORS[kind]
        number = choices[int(sort * 1000) % len(choices)]
        return OSError(number, f"{os.strerror(number)} (injected)")

    def fail(self, kind: str, about: object) -> None:
        """Raise OSError or be late when a fault falls here. The event loop itself is never held up."""
        sort = self.draw(kind, about)
        if sort is None:
            return
        if sort < STALLS:
            if threading.current_thread() is not self._main:
                time.sleep(LONGEST_STALL * sort / STALLS)
            return
        raise self.error(kind, sort)

    def jump(self) -> float:
        """Seconds that the wall clock is wrong."""
        self._switched_on()
        return self._jump

    def _switched_on(self) -> bool:
        now = time.monotonic()
        if now - self._looked > 0.05:
            self._looked = now
            self._on = os.access(self._switch, os.F_OK)
            try:
                with open(self._clock) as file:  # noqa: PTH123 - called for every event
                    self._jump = float(file.read())
            except (OSError, ValueError):
                self._jump = 0.0
        return self._on


def _lives(path: Path) -> int:
    """How many daemons there were before this one, by the file's length."""
    with path.open("ab") as file:
        file.write(b".")
        return file.tell() - 1


def install(text: str) -> None:
    """Make this process fail by the plan in ``text``: a JSON object with place, seed and rates."""
    values = json.loads(text)
    plan = Plan(Path(values["place"]), int(values["seed"]), RATES | values.get("rates", {}))
    sys.addaudithook(_auditor(plan))
    _wrap_children(plan)
    _wrap_system_calls(plan)
    _wrap_talks(plan)
    _wrap_clock(plan)


def _wrap_clock(plan: Plan) -> None:
    """The wall clock jumps to where the file ``clock`` says."""
    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() + plan.jump()
    time.time_ns = lambda: now_ns() + int(plan.jump() * 1e9)


def _auditor(plan: Plan) -> Callable[[str, tuple[Any, ...]], None]:
    def audit(event: str, details: tuple[Any, ...]) -> None:
        kind = _EVENTS.get(event)
        if kind is None:
            return
        about = details[0]
        if event == "open":
            flags = details[2]
            if not isinstance(flags, int) or not plan.concerns(about):
                return
            if not flags & (os.O_WRONLY | os.O_RDWR):
                return
        elif event == "socket.connect":
            about = details[1]
            if not plan.concerns(about):
                return
        elif event in ("os.remove", "os.rmdir", "os.mkdir"):
            # A name below an open directory says nothing of where that is; the daemon has no others.
            if not plan.concerns(about) and details[-1] == -1:
                return
        elif event != "subprocess.Popen" and not any(plan.concerns(one) for one in details[:2]):
            return
        plan.fail(kind, f"{event} {about}")

    return audit


def _wrap_children(plan: Plan) -> None:
    """Some children are late, end at once, or are killed at work."""
    spawn = process.spawn

    async def unreliable(argv: Sequence[Any], **options: Any) -> Any:
        sort = plan.draw("child", " ".join(str(word) for word in argv))
        if sort is None:
            return await spawn(argv, **options)
        seconds = LONGEST_STALL * sort
        if sort < STALLS:
            argv = ["/bin/sh", "-c", f'sleep {seconds:.2f}; exec "$0" "$@"', *argv]
        elif sort < 0.6 or "CNI_COMMAND" in (options.get("env") or {}):
            # The plug-in bridge, killed between the link and its rules, does not find the rules again.
            argv = ["/bin/sh", "-c", "echo injected failure >&2; exit 1"]
        else:
            argv = ["/usr/bin/timeout", "-s", "KILL", f"{0.2 * sort:.3f}", *argv]
        return await spawn(argv, **options)

    process.spawn = unreliable


def _wrap_system_calls(plan: Plan) -> None:
    for name in ("mount", "umount", "open_tree", "move_mount", "mount_setattr", "unshare"):
        _wrap(syscalls, name, lambda about: plan.fail("syscall", about))
    _wrap(netlink.Netlink, "change", lambda about: plan.fail("netlink", about))
    commit = journal._commit

    def unreliable(connection: sqlite3.Connection, *rest: Any) -> None:
        sort = plan.draw("journal", "commit")
        if sort is not None:
            connection = _Full(connection)  # type: ignore[assignment]
        commit(connection, *rest)

    journal._commit = unreliable


class _Full:
    """A connection to a database on a disk that is full."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, *values: Any) -> Any:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self._connection.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def _wrap(owner: Any, name: str, before: Callable[[str], None]) -> None:
    original = getattr(owner, name)

    def unreliable(*args: Any, **kwargs: Any) -> Any:
        before(f"{name} {args[:3]}")
        return original(*args, **kwargs)

    setattr(owner, name, unreliable)


def _wrap_talks(plan: Plan) -> None:
    """QEMU and guests refuse, are late, answer nothing, or are gone."""
    execute, execute_with, call = Monitor.execute, Monitor.execute_with, AgentClient.call

    async def ask_qemu(self: Monitor, command: str, *args: Any, **kwargs: Any) -> object:
        return await answered(self, command, lambda: execute(self, command, *args, **kwargs))

    async def hand_qemu(self: Monitor, descriptor: int, command: str, *args: Any, **kwargs: Any) -> object:
        return await answered(self, command, lambda: execute_with(self, descriptor, command, *args, **kwargs))

    async def answered(self: Monitor, command: str, ask: Callable[[], Awaitable[object]]) -> object:
        sort = plan.draw("monitor", f"{self._name} {command}")
        if sort is not None:
            if sort < STALLS:
                await asyncio.sleep(LONGEST_STALL * sort / STALLS)
            elif sort < 0.6:
                raise CommandFailed(self._name, command, "GenericError", "injected")
            elif sort < 0.8:
                await ask()
                raise DeadlineExceeded(f"QEMU of {self._name} did not answer {command} (injected)")
            else:
                raise Unavailable(f"QEMU of {self._name} has ended (injected)")
        return await ask()

    async def ask_guest(self: AgentClient, request: Any, timeout: float = 30.0) -> Any:
        sort = plan.draw("agent", f"{self.name} {request.op}")
        if sort is None:
            return await call(self, request, timeout)
        if sort < STALLS:
            await asyncio.sleep(LONGEST_STALL * sort / STALLS)
            return await call(self, request, timeout)
        error: OrlopError = DeadlineExceeded(
            f"the agent of {self.name} did not answer {request.op} (injected)"
        )
        if sort < 0.6:
            raise error
        if sort < 0.9:
            await call(self, request, timeout)
            raise error  # it was done, and the answer was lost
        self._writer.transport.abort()
        return await call(self, request, timeout)

    Monitor.execute = ask_qemu  # type: ignore[method-assign, assignment]
    Monitor.execute_with = hand_qemu  # type: ignore[method-assign, assignment]
    AgentClient.call = ask_guest  # type: ignore[method-assign]
