"""A stand-in as the daemon sees it: its streams, the signals that it got, and the end that it is told.

All of it goes through ``/proc/PID/fd``, so that a later daemon has it as well.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import struct
import termios
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.host import process, threads
from orlop.host.standin import EXIT, SIGNALS, STDERR, STDIN, STDOUT
from orlop.sandbox.spec import Sink
from orlop.value import Value

log = logging.getLogger(__name__)

_CHUNK = 1 << 16
_LINES = 1 << 12
_LAST_SIGNAL = 64


class Companion(Value, frozen=True):
    """The stand-in of that pid that began ``since``; ``stdin`` says whether somebody writes there."""

    pid: int
    since: int
    stdin: bool = False

    @property
    def alive(self) -> bool:
        """Whether it is there."""
        return process.pid_alive(self.pid, self.since)

    @property
    def netns(self) -> str:
        """The path of its network namespace."""
        return f"/proc/{self.pid}/ns/net"

    def network(self) -> str:
        """Which network namespace that is; the same text for two in one. Raises FailedPrecondition."""
        try:
            found = network_at(self.netns)
        except OSError:
            found = ""
        if not found or not self.alive:
            raise _ended(self.pid)
        return found

    def sink(self, *, tty: bool) -> Sink:
        """Where what it stands in for writes to."""
        return Sink(stdout=self._path(STDOUT), stderr="" if tty else self._path(STDERR), since=self.since)

    async def end(self, code: int) -> None:
        """Have it end with that exit code. Idempotent."""
        try:
            descriptor = self._open(EXIT, os.O_WRONLY)
        except OSError:
            return
        try:
            os.write(descriptor, b"%d\n" % (code & 0xFF))
        except OSError as error:
            log.warning("the process %d cannot be told the end of what it stands in for: %s", self.pid, error)
        finally:
            os.close(descriptor)

    async def kill(self) -> None:
        """End it without a word. Raises Unavailable when the kernel does not let go of it."""
        await process.kill_pid(self.pid, self.since)

    async def signals(self) -> AsyncIterator[int]:
        """The signals that it gets, until it has ended."""
        try:
            descriptor = self._open(SIGNALS, os.O_RDONLY)
        except OSError:
            return
        rest = b""
        try:
            while True:
                await process.readable(descriptor)
                data = os.read(descriptor, _LINES)
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    if line.isdigit() and 0 < int(line[:3]) <= _LAST_SIGNAL:
                        yield int(line[:3])
        finally:
            os.close(descriptor)

    def size(self) -> tuple[int, int]:
        """Columns and rows of its terminal; zeros when nobody has said."""
        try:
            descriptor = self._open(STDIN, os.O_RDONLY)
        except OSError:
            return 0, 0
        try:
            rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8))
        except OSError:
            return 0, 0
        finally:
            os.close(descriptor)
        return columns, rows

    async def feed(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        """Pass on what comes to its stdin, to the end of that."""
        try:
            descriptor = self._open(STDIN, os.O_RDONLY)
        except OSError as error:
            log.warning("the stdin of process %d cannot be read: %s", self.pid, error)
            return
        try:
            while data := await _read(descriptor):
                await write(data)
        finally:
            os.close(descriptor)

    def _path(self, number: int) -> str:
        return f"/proc/{self.pid}/fd/{number}"

    def _open(self, number: int, flags: int) -> int:
        flags |= os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(self._path(number), flags)
        # Looked at afterwards: it is the one that was meant all along.
        if process.process_start_time(self.pid) != self.since:
            os.close(descriptor)
            raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))
        return descriptor


async def _read(descriptor: int) -> bytes:
    """Some bytes, or none at the end: that of a terminal is an error."""
    while True:
        try:
            await process.readable(descriptor)
        except PermissionError:  # a file: it is read as it is
            return await threads.call(os.read, descriptor, _CHUNK)
        with suppress(BlockingIOError):
            try:
                return os.read(descriptor, _CHUNK)
            except OSError as error:
                if error.errno != errno.EIO:
                    raise
                return b""


def of(pid: int, since: int, *, stdin: bool) -> Companion:
    """The stand-in that a caller has made. Raises FailedPrecondition when it is not there."""
    found = Companion(pid=pid, since=since, stdin=stdin)
    if not found.alive:
        raise _ended(pid)
    return found


def network_at(path: str) -> str:
    """Which network namespace is at a path, while there is something in it. Raises OSError."""
    status = Path(path).stat()
    return f"{status.st_dev}:{status.st_ino}"


def _ended(pid: int) -> FailedPrecondition:
    return FailedPrecondition(f"process {pid}, which is to stand in for the container's, has ended")


WINDOW_CHANGED = int(signal.SIGWINCH)
