"""The terminal of a container: a new one, whose other end goes to the caller or is served here."""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import struct
import termios
import tty
from contextlib import contextmanager

from orlop.errors import FailedPrecondition, InvalidArgument

# The name tells type checkers: importing typing would cost every call a while.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CHUNK = 1 << 16
_LONGEST_PATH = 107


def make(columns: int, rows: int) -> tuple[int, int]:
    """A new terminal: master and slave. It changes no byte, as the one in the container does that."""
    master, slave = os.openpty()
    tty.setraw(slave)
    if columns and rows:
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    return master, slave


def send(path: str, master: int) -> None:
    """Give the master to who listens at ``path``, as callers of runc expect it. Raises FailedPrecondition."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise InvalidArgument(f"the path of the console socket is longer than {_LONGEST_PATH} bytes")
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as link:
            link.connect(path)
            socket.send_fds(link, [b"/dev/ptmx"], [master])
    except OSError as error:
        raise FailedPrecondition(f"the console socket {path} cannot be used: {error.strerror}") from error


@contextmanager
def own() -> Iterator[None]:
    """Every key of our own terminal goes to the other side, until the block ends."""
    if not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    try:
        tty.setraw(0, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


def serve(master: int, ended: int) -> None:
    """Connect our own streams with a terminal until ``ended`` can be read and nothing more comes."""

    def resize(_number: int = 0, _frame: object = None) -> None:
        if os.isatty(0):
            fcntl.ioctl(master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    resize()
    signal.signal(signal.SIGWINCH, resize)
    sources = [0, master, ended]
    while True:
        ready, _, _ = select.select(sources, [], [])
        if master in ready:
            try:
                data = os.read(master, _CHUNK)
            except OSError:  # nobody has the other end any more
                return
            _write(1, data)
        elif ended in ready:
            return
        if 0 in ready:
            data = os.read(0, _CHUNK)
            if data:
                _write(master, data)
            else:
                sources.remove(0)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
