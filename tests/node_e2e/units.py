"""What stands for systemd in an enclosure: units that are processes, for a suite that restarts its kubelet.

Specs change the kubelet's configuration with ``systemctl kill`` and ``restart``, by way of ``sudo``, and have
it started by ``systemd-run``. :func:`install` puts these names into a directory for the search path. Each
runs this file as a program, ``python units.py DIRECTORY NAME ...``, which has the standard library alone.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

VERSION = "systemd 252"
NAMES = ("systemd-run", "systemctl", "sudo")
STOP_TIMEOUT = 90.0
"""systemd's own: then a process that ignores SIGTERM is killed."""
VERBS = ("start", "stop", "restart", "kill")


def install(directory: Path) -> Path:
    """Make the programs, whose units are kept below ``directory``; the directory to search first."""
    programs, kept = directory / "bin", directory / "units"
    programs.mkdir()
    kept.mkdir()
    call = shlex.join([sys.executable, "-I", os.fspath(Path(__file__).resolve()), os.fspath(kept)])
    for name in NAMES:
        (programs / name).write_text(f'#!/bin/sh\nexec {call} {name} "$@"\n')
        (programs / name).chmod(0o755)
    return programs


class Unit:
    """A unit: a command, where its output goes, and the process that runs it."""

    def __init__(self, file: Path) -> None:
        self.file, self.name = file, file.name
        kept = json.loads(file.read_text()) if file.exists() else {}
        self.argv: list[str] = kept.get("argv", [])
        self.log: str = kept.get("log", os.devnull)
        self.pid: int = kept.get("pid", 0)
        self.born: str = kept.get("born", "")

    def save(self) -> None:
        """Keep it for the next call."""
        content = {"argv": self.argv, "log": self.log, "pid": self.pid, "born": self.born}
        self.file.write_text(json.dumps(content))

    def running(self) -> bool:
        """Whether the process that was started is there, and not another with its number."""
        return bool(self.born) and _born(self.pid) == self.born

    def start(self) -> None:
        """Start the process, unless it runs. It outlives this program."""
        if self.running():
            return
        with Path(self.log).open("ab") as log:
            child = subprocess.Popen(
                self.argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.pid, self.born = child.pid, _born(child.pid)
        # It is not waited for: the first process of the enclosure buries it.
        child.returncode = 0
        self.save()

    def kill(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Send its processes a signal."""
        if self.running():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, number)

    def stop(self) -> None:
        """End the process, and wait for that."""
        self.kill()
        limit = time.monotonic() + STOP_TIMEOUT
        while self.running():
            if time.monotonic() > limit:
                self.kill(signal.SIGKILL)
            time.sleep(0.05)

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()


def _born(pid: int) -> str:
    """When a process began, in the kernel's ticks; empty when it is gone, or dead and not yet buried."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state[0] in "ZX" else state[19]


def _named(kept: Path, patterns: Sequence[str]) -> Iterator[Unit]:
    """The units that match; a name may lack its ``.service``."""
    for file in sorted(kept.iterdir()):
        if any(fnmatch.fnmatch(file.name, each) or file.name == f"{each}.service" for each in patterns):
            yield Unit(file)


def run(kept: Path, arguments: Sequence[str]) -> int:
    """``systemd-run``: start a command as a unit, and do not wait for it."""
    if "--version" in arguments:
        print(VERSION)
        return 0
    rest, name, log = list(arguments), f"run-{os.getpid()}.service", os.devnull
    while rest and rest[0].startswith("-"):
        option = rest.pop(0)
        if option == "-p":
            key, _, value = rest.pop(0).partition("=")
            log = value.partition(":")[2] if key == "StandardError" else log
        name = option.partition("=")[2] if option.startswith("--unit=") else name
    unit = Unit(kept / name)
    # The caller doubles what systemd would replace.
    unit.argv = [part.replace("$$", "$").replace("%%", "%") for part in rest]
    unit.log = log
    unit.start()
    return 0


def control(kept: Path, arguments: Sequence[str]) -> int:
    """``systemctl``: list units, start, stop, restart and signal them. 5 when there is none of that name."""
    verb, *given = [part for part in arguments if not part.startswith("-")]
    units = list(_named(kept, given))
    if verb == "list-units":
        for unit in units:
            if unit.running() or "--state=running" not in arguments:
                print(f"{unit.name} loaded active {'running' if unit.running() else 'exited'}")
        return 0
    for unit in units:
        if verb in VERBS:
            getattr(unit, verb)()
        elif verb != "reset-failed":
            raise SystemExit(f"systemctl: {verb} is not known here")
    return 0 if units else 5


def main() -> int:
    """Be one of the programs."""
    kept, name, arguments = Path(sys.argv[1]), sys.argv[2], sys.argv[3:]
    if name == "sudo":
        # The caller is root.
        os.execvp(arguments[0], arguments)
    return run(kept, arguments) if name == "systemd-run" else control(kept, arguments)


if __name__ == "__main__":
    sys.exit(main())
