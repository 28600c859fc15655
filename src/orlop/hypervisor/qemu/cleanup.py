"""End a machine of which only the directory is known, and remove that directory."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from orlop.errors import DataLoss, FailedPrecondition, NotFound, OrlopError
from orlop.host import mounts, process, threads
from orlop.hypervisor.qemu import errorlog, record
from orlop.hypervisor.qemu.launch import AGENT_SOCKET, MONITOR_SOCKET
from orlop.hypervisor.qemu.monitor import Monitor
from orlop.linux.removal import remove_tree

_OWN_FILES = (MONITOR_SOCKET, AGENT_SOCKET, errorlog.NAME, "console.log", "machine.json", ".machine.json")
_QUIT_TIMEOUT = 5.0


async def end(directory: Path) -> None:
    """End the machine in ``directory``. Idempotent. Raises Unavailable when its record cannot be read now."""
    try:
        known = await threads.call(record.load, directory)
    except (NotFound, DataLoss):
        # Started, but the daemon died before it wrote the record: the socket still leads to it.
        await _quit(directory / MONITOR_SOCKET)
        return
    await process.kill_pid(known.pid, known.start_time)


async def _quit(path: Path) -> None:
    if not path.exists():
        return
    with suppress(OrlopError):
        monitor = await Monitor.connect(
            path.parent.name, str(path), lambda name, data: None, timeout=_QUIT_TIMEOUT
        )
        try:
            await monitor.execute("quit", timeout=_QUIT_TIMEOUT)
        finally:
            await monitor.close()


async def remove(directory: Path, *, whole: bool) -> None:
    """Remove the machine's own files, or with ``whole`` everything below ``directory`` and itself.

    Idempotent. What is mounted below is unmounted first and never entered. Raises FailedPrecondition
    when something stays mounted."""
    await threads.call(_remove, directory, whole)


def _remove(directory: Path, whole: bool) -> None:
    if not whole:
        for name in _OWN_FILES:
            (directory / name).unlink(missing_ok=True)
        return
    if not directory.exists():
        return
    mounts.unmount_below(directory)
    left = mounts.mounts_below(directory)
    if left:
        raise FailedPrecondition(f"{directory} is not removed: {left[0]} is still mounted")
    try:
        remove_tree(directory)
    except OSError as error:
        raise FailedPrecondition(f"{directory} is not removed: {error.filename}: {error.strerror}") from error
