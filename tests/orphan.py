"""Programs that are no children of the tests: one test may start them anew, and others go on with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orlop.host.process import pid_alive, process_start_time
from tests.patience import PATIENCE

END_TIMEOUT = 60 * PATIENCE


class Orphan:
    """A running program, which writes to ``log``."""

    def __init__(self, argv: Sequence[str | Path], log: Path, env: Mapping[str, str] | None = None) -> None:
        script = '"$@" </dev/null >>"$0" 2>&1 & echo $!'
        command = ["setsid", "sh", "-c", script, log, *argv]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True)
        self.pid = int(done.stdout)
        self._since = process_start_time(self.pid)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return pid_alive(self.pid, self._since)

    def end(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, and return when it has ended. Raises AssertionError when it does not."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)
        limit = time.monotonic() + END_TIMEOUT
        while self.alive:
            assert time.monotonic() < limit, f"process {self.pid} does not end"
            time.sleep(0.05)
