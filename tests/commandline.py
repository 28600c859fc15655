"""The command ``orlop`` as tests run it."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
import unittest.mock
from collections.abc import Callable

from orlop.cli.main import main
from tests.node import Done, Node
from tests.patience import PATIENCE

COMMAND = [sys.executable, "-m", "orlop.cli.main"]


class Cli:
    """Runs ``orlop`` against one node."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.env = {
            **os.environ,
            "ORLOP_SOCKET": node.socket,
            "ORLOP_LOG_ROOT": os.fspath(node.scratch / "cli-logs"),
        }

    def __call__(self, *args: str, check: bool = True, stdin: bytes = b"", timeout: float = 120) -> Done:
        argv = [*COMMAND, *args]
        done = subprocess.run(
            argv, input=stdin, capture_output=True, env=self.env, timeout=timeout * PATIENCE, check=False
        )
        result = Done(argv, done)
        if check and result.code != 0:
            raise AssertionError(f"{result}\n{self.node.settings.log_tail()}")
        return result

    def start(self, *args: str, stdin: int | None = None) -> subprocess.Popen[bytes]:
        # As from a terminal: what a shell starts in the background ignores interrupts.
        return subprocess.Popen(
            ["env", "--default-signal=INT", *COMMAND, *args],
            env=self.env,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
        )


def _late(number: int, frame: object) -> None:
    raise TimeoutError("the command takes too long")


class Inside(Cli):
    """The same within this process, for tests of many commands: Python need not begin each time."""

    def __call__(self, *args: str, check: bool = True, stdin: bytes = b"", timeout: float = 120) -> Done:
        if stdin:
            return super().__call__(*args, check=check, stdin=stdin, timeout=timeout)
        written = [io.TextIOWrapper(io.BytesIO(), write_through=True) for _ in range(2)]
        code: object = 0
        with (
            contextlib.redirect_stdout(written[0]),
            contextlib.redirect_stderr(written[1]),
            unittest.mock.patch.dict(os.environ, self.env),
            unittest.mock.patch.object(sys, "argv", [*COMMAND, *args][-len(args) - 1 :]),
        ):
            before = signal.signal(signal.SIGALRM, _late)
            signal.alarm(int(timeout * PATIENCE))
            try:
                main()
            except SystemExit as error:
                code = error.code
            finally:
                signal.alarm(0)
                signal.signal(signal.SIGALRM, before)
        out, err = (one.buffer.getvalue() for one in written)  # type: ignore[attr-defined]
        argv = [*COMMAND, *args]
        done = Done(argv, subprocess.CompletedProcess(argv, int(str(code or 0)), out, err))
        if check and done.code != 0:
            raise AssertionError(f"{done}\n{self.node.settings.log_tail()}")
        return done


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something; ``what`` is said when it does not come."""
    limit = time.monotonic() + 120 * PATIENCE
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.05)
