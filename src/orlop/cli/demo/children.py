"""Ending what was started."""

from __future__ import annotations

import asyncio
import contextlib
from asyncio.subprocess import Process


async def stop(child: Process) -> None:
    """End a child with TERM, and with KILL after 20 seconds."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(20):
                await child.wait()
        except TimeoutError:
            child.kill()
            await child.wait()
