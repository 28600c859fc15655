"""Save a machine's devices to a file and load them into another, leaving its memory where it is.

With the capability ``x-ignore-shared`` the stream has no memory that is mapped from a shared file. The
machine that is saved maps the file shared; the one that loads maps the same file privately.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from orlop.errors import DataLoss, DeadlineExceeded, Internal
from orlop.host.tasks import beside
from orlop.hypervisor.qemu.machine import QemuMachine

_CAPABILITIES: dict[str, object] = {
    "capabilities": [
        {"capability": "x-ignore-shared", "state": True},
        {"capability": "events", "state": True},
    ]
}


async def save(machine: QemuMachine, path: Path, *, timeout: float) -> None:
    """Stop the machine and write its state to the new file at ``path``. Raises Internal."""
    monitor = machine.monitor
    await monitor.execute("stop")
    await monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        await monitor.execute_with(descriptor, "getfd", {"fdname": "state"})
        await monitor.execute("migrate", {"uri": "fd:state"})
        if await _outcome(machine, timeout) != "completed":
            raise Internal(f"the machine {machine.name} could not be saved: {await _why(machine)}")
    finally:
        os.close(descriptor)


async def load(machine: QemuMachine, descriptor: int, *, timeout: float) -> None:
    """Load the state that the machine inherited as ``descriptor``; it runs when this returns.

    Raises DataLoss when QEMU does not accept the state."""
    monitor = machine.monitor
    await monitor.execute("migrate-set-capabilities", _CAPABILITIES)
    await monitor.execute("migrate-incoming", {"uri": f"fd:{descriptor}"})
    if await _outcome(machine, timeout) != "completed":
        raise DataLoss(f"the machine {machine.name} does not accept the template's state")
    await monitor.execute("cont")


async def _outcome(machine: QemuMachine, timeout: float) -> str:
    try:
        async with asyncio.timeout(timeout), beside(machine.wait()) as ended:
            while True:
                async with beside(machine.migration.get()) as status:
                    await asyncio.wait((status, ended), return_when=asyncio.FIRST_COMPLETED)
                if ended.done():
                    raise DataLoss(f"the machine {machine.name} ended over its state: {ended.result()}")
                if status.result() in ("completed", "failed", "cancelled"):
                    return status.result()
    except TimeoutError as error:
        raise DeadlineExceeded(
            f"the state of {machine.name} did not move within {timeout:g} seconds"
        ) from error


async def _why(machine: QemuMachine) -> str:
    answer = await machine.monitor.execute("query-migrate")
    return str(answer.get("error-desc", answer)) if isinstance(answer, dict) else str(answer)
