"""Output that conmon cannot hand on by itself: of a terminal, or of a container whose stdin can be attached.

conmon gives such output to attached clients alone. The daemon is one of them, and writes what it gets
where it was asked for. What comes while no daemon runs is lost; a container without terminal and stdin
has no such gap, because it writes there itself.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

from orlop.host import tasks
from orlop.sandbox.process import conmon
from orlop.sandbox.rawoutput import RawOutput

_DRAIN_TIME = 2.0
_PACKET = 64 << 10
_STREAMS = {2: 1, 3: 2}


class Forward:
    """One container's output on its way."""

    def __init__(self, client: socket.socket, output: RawOutput, name: str) -> None:
        self._client = client
        self._output = output
        self._tasks = tasks.Tasks()
        self._task = self._tasks.spawn(self._run(), f"the output of {name}")

    @classmethod
    async def begin(cls, bundle: Path, output: RawOutput) -> Forward:
        """Attach to the container in ``bundle``; ``output`` is open, and closed by this. Raises Internal."""
        return cls(await conmon.connect(bundle), output, bundle.name[:12])

    async def finish(self) -> None:
        """The monitor has ended: let the rest through, unless somebody holds it up."""
        await asyncio.wait((self._task,), timeout=_DRAIN_TIME)
        await self.stop()

    async def stop(self) -> None:
        """Let go. Idempotent."""
        await tasks.end(self._task)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            with suppress(ConnectionResetError):
                while packet := await loop.sock_recv(self._client, _PACKET):
                    if (stream := _STREAMS.get(packet[0])) is not None:
                        await self._output.write(stream, packet[1:])
        finally:
            self._client.close()
            await self._output.close()
