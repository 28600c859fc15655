"""Keeps programs running, as an init system does: one that ends is started again."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BREATH = 0.2
"""Seconds between two looks."""
PAUSE = 1.0
"""Seconds between the end of a program and its next start."""


class Program:
    """A program with its log ``NAME.log`` and its process id in ``NAME.pid``."""

    def __init__(self, name: str, argv: Sequence[str | Path], logs: Path) -> None:
        self.name, self._argv, self._logs = name, [os.fspath(part) for part in argv], logs
        self._ended = 0.0
        self._child = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        with (self._logs / f"{self.name}.log").open("ab") as log:
            child = subprocess.Popen(self._argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        write_pid(self._logs / f"{self.name}.pid", child.pid)
        return child

    def keep(self) -> None:
        """Start it again if it has ended."""
        if self._child.poll() is None:
            return
        self._ended = self._ended or time.monotonic()
        if time.monotonic() - self._ended >= PAUSE:
            self._ended = 0.0
            self._child = self._start()

    def stop(self) -> None:
        """Ask it to end, wait, and end it."""
        self._child.terminate()
        try:
            self._child.wait(20.0)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class Ordered:
    """The programs that files of a directory ask for: ``NAME.json`` holds the words of a command line.

    One whose file is gone is stopped.
    """

    def __init__(self, orders: Path, logs: Path) -> None:
        self._orders, self._logs = orders, logs
        self._programs: dict[str, Program] = {}

    def keep(self) -> None:
        """Have what is asked for run, and nothing else."""
        files = {file.stem: file for file in self._orders.glob("*.json")}
        for name in self._programs.keys() - files.keys():
            self._programs.pop(name).stop()
            (self._logs / f"{name}.pid").unlink()
        for name, file in files.items():
            if name not in self._programs:
                self._programs[name] = Program(name, json.loads(file.read_text()), self._logs)
        for program in self._programs.values():
            program.keep()


def write_pid(file: Path, pid: int) -> None:
    """Say which process it is; a reader never sees half of it."""
    new = file.with_suffix(".new")
    new.write_text(f"{pid}\n")
    new.rename(file)


def keep(programs: Sequence[Program | Ordered], until: Callable[[], bool]) -> None:
    """Keep them running until told to stop."""
    while not until():
        for program in programs:
            program.keep()
        time.sleep(BREATH)
