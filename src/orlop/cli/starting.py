"""A daemon for those who have none: offered by `orlop run`, as a service or while the command lasts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import typer

from orlop.cli.demo.children import stop
from orlop.cli.problems import CliError
from orlop.client import session
from orlop.config import load
from orlop.host import process

UNIT = "orlopd.service"
START_TIMEOUT = 300.0
COMMAND: tuple[process.Argument, ...] = (sys.executable, "-m", "orlop.daemon")

_UNITS = (Path("/etc/systemd/system"), Path("/usr/lib/systemd/system"), Path("/lib/systemd/system"))


async def listening(command: Sequence[process.Argument], socket: str, log: Path) -> Process:
    """Start a daemon and wait until it listens. Raises CliError with the end of its log when it does not."""
    with log.open("ab") as file:
        child = await process.spawn(command, env=dict(os.environ), stdout=file, stderr=file)
    try:
        async with asyncio.timeout(START_TIMEOUT):
            while not await _listens(socket):
                if child.returncode is not None:
                    raise CliError(f"the daemon ended at once:\n{_tail(log)}")
                await asyncio.sleep(0.05)
    except BaseException as error:
        await process.reap(child)
        if not isinstance(error, TimeoutError):
            raise
        raise CliError(f"the daemon does not listen after {START_TIMEOUT:g} s:\n{_tail(log)}") from None
    return child


async def _listens(path: str) -> bool:
    try:
        _, writer = await asyncio.open_unix_connection(path)
    except OSError:
        return False
    writer.close()
    return True


def _tail(log: Path, lines: int = 15) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


@contextlib.asynccontextmanager
async def offered(socket: str, *, lasting: bool) -> AsyncIterator[None]:
    """Around a command that needs a daemon. If none runs, the user is asked whether one shall.

    ``lasting`` is for what goes on after the command: that takes a service. Nobody is asked without a
    terminal, without root, or for another socket than the configured one.
    """
    path = session.socket_path(socket)
    asked = sys.stdin.isatty() and sys.stderr.isatty() and os.geteuid() == 0 and path == load().socket
    if Path(path).exists() or not asked:
        yield  # who connects is told what is wrong
        return
    if Path("/run/systemd/system").is_dir() and any((place / UNIT).exists() for place in _UNITS):
        if not typer.confirm(f"No daemon runs. Start the service {UNIT} now?", err=True):
            raise CliError(f"no daemon runs: systemctl start {UNIT}")
        await process.run(["systemctl", "start", UNIT], timeout=START_TIMEOUT)
        yield
        return
    if lasting or not typer.confirm("No daemon runs. Run one as long as this command lasts?", err=True):
        raise CliError("no daemon runs: start orlopd, for example in another terminal")
    with tempfile.TemporaryDirectory(prefix="orlopd-") as directory:
        child = await listening(COMMAND, path, Path(directory) / "log")
        try:
            yield
        finally:
            await stop(child)
