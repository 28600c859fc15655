"""The command ``orlop`` as tests run it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

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
            argv, input=stdin, capture_output=True, env=self.env, timeout=timeout, check=False
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


def until(condition: Callable[[], object], what: str) -> None:
    """Wait for something; ``what`` is said when it does not come."""
    limit = time.monotonic() + 120 * PATIENCE
    while not condition():
        assert time.monotonic() < limit, what
        time.sleep(0.05)
