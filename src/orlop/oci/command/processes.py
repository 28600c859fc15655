"""Processes of containers as the command makes them: a stand-in, with its streams or a terminal."""

from __future__ import annotations

import os
import stat

from orlop.errors import FailedPrecondition
from orlop.host import standin
from orlop.oci.protocol import SOCKET, STANDINS, absent

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_KILL = 9
_PASSED_ON = (1, 2, 3, 10, 12, 13, 14, 15)


class Standing:
    """A stand-in that was made, and the terminal behind it, if it has one that is served here."""

    def __init__(self, pid: int, *, stdin: bool, master: int = -1) -> None:
        self.pid = pid
        self.since = _start_time(pid)
        self.stdin = stdin
        self.master = master

    def words(self) -> dict[str, Any]:
        """How the daemon is told of it."""
        return {"pid": self.pid, "since": self.since, "stdin": self.stdin}

    def drop(self) -> None:
        """End it: what it was to stand in for was not made."""
        try:
            os.kill(self.pid, _KILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            return

    def wait(self) -> int:
        """Pass signals on until it has ended, and serve its terminal; its exit code."""
        import signal

        def pass_on(number: int, _frame: object) -> None:
            try:
                os.kill(self.pid, number)
            except ProcessLookupError:
                return

        for number in _PASSED_ON:
            signal.signal(number, pass_on)
        if self.master >= 0:
            from orlop.oci.command import terminal

            ended = os.pidfd_open(self.pid)
            with terminal.own():
                terminal.serve(self.master, ended)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        return code if code >= 0 else 128 - code


def stand(
    process: dict[str, Any], state: str, netns: str, *, console_socket: str, foreground: bool
) -> Standing:
    """Make the stand-in of a process that is to run as its document says.

    ``netns`` is the path of its network namespace, "" for a new one. Raises FailedPrecondition.
    """
    directory = os.path.join(state, STANDINS)
    if not os.path.isdir(directory):
        raise absent(os.path.join(state, SOCKET))
    if not process.get("terminal"):
        if console_socket:
            raise FailedPrecondition("cannot use console socket if the process has no terminal")
        pid = standin.make((0, 1, 2), directory, netns=netns)
        return Standing(pid, stdin=not _is_null(0))
    if not console_socket and not foreground:
        raise FailedPrecondition(
            "cannot allocate tty if the process is detached and no console socket is set"
        )
    from orlop.oci.command import terminal

    size = process.get("consoleSize") or {}
    master, slave = terminal.make(int(size.get("width") or 0), int(size.get("height") or 0))
    if console_socket:
        terminal.send(console_socket, master)
        os.close(master)
        master = -1
    pid = standin.make((slave, slave, slave), directory, netns=netns, terminal=True)
    os.close(slave)
    return Standing(pid, stdin=True, master=master)


def write_pid(path: str, pid: int) -> None:
    """Write the pid file, whole or not at all; none for an empty path. Raises FailedPrecondition."""
    if not path:
        return
    directory, name = os.path.split(path)
    aside = os.path.join(directory, f".{name}")
    try:
        with open(aside, "w", encoding="ascii") as file:
            file.write(str(pid))
        os.rename(aside, path)
    except OSError as error:
        from contextlib import suppress

        with suppress(OSError):
            os.unlink(aside)
        raise FailedPrecondition(f"open {path}: {(error.strerror or '').lower()}") from error


def _is_null(fd: int) -> bool:
    try:
        status = os.fstat(fd)
    except OSError:
        return True
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == os.makedev(1, 3)


def _start_time(pid: int) -> int:
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return int(file.read().rpartition(")")[2].split()[19])
