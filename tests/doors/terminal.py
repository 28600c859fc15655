"""A command of a client on a terminal, as a person has one."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from tests.patience import PATIENCE

LIMIT = 180 * PATIENCE
"""Seconds: long on a machine that has much else to do."""


class Client(Protocol):
    """A command line."""

    def argv(self, *args: str) -> list[str]:
        """Of a command."""

    @property
    def env(self) -> Mapping[str, str]:
        """Its environment."""


def until(condition: Callable[[], object], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.1)


class Terminal:
    """A command on a terminal of 33 rows and 101 columns."""

    def __init__(self, client: Client, *args: str) -> None:
        self._master, slave = pty.openpty()
        self.resize(33, 101)
        self.output = b""
        self._process = subprocess.Popen(
            client.argv(*args),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=client.env,
            start_new_session=True,
        )
        os.close(slave)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
        if self._started:
            os.killpg(self._process.pid, signal.SIGWINCH)

    @property
    def _started(self) -> bool:
        return hasattr(self, "_process")

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, text: str, *, times: int = 1) -> None:
        """Read until ``text`` was said, so many times since the beginning."""
        limit = time.monotonic() + LIMIT
        while self.output.count(text.encode()) < times:
            assert time.monotonic() < limit, f"no {text!r} in {self.output!r}"
            if select.select([self._master], [], [], 0.2)[0]:
                try:
                    self.output += os.read(self._master, 4096)
                except OSError:
                    assert self.output.count(text.encode()) >= times, f"no {text!r} in {self.output!r}"

    def code(self) -> int:
        return self._process.wait(LIMIT)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)
