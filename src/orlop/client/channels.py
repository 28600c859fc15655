"""The client's end of exec and attach: a WebSocket with the channels of ``v5.channel.k8s.io``.

Channel 0 is stdin, 1 stdout, 2 stderr, 3 the final status as JSON, 4 the size of the terminal.
Each message begins with its channel's number; ``255, n`` says that channel n has ended (KEP-4006).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable

from orlop.client.websocket import CHUNK, StreamingSocket
from orlop.errors import OrlopError

PROTOCOL = "v5.channel.k8s.io"
STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255

Take = Callable[[int, bytes], None]
Read = Callable[[], Awaitable[bytes]]


class Channels:
    """The streams of one command."""

    def __init__(self, socket: StreamingSocket) -> None:
        self._socket = socket
        self._status = b""

    @classmethod
    async def open(cls, url: str) -> Channels:
        """Connect and shake hands. Raises Unavailable when the server refuses."""
        return cls(await StreamingSocket.open(url, PROTOCOL))

    async def send(self, data: bytes) -> None:
        """Hand the command its next input. Raises ConnectionError when it has ended."""
        for start in range(0, len(data), CHUNK):
            await self._socket.send(STDIN, data[start : start + CHUNK])

    async def end_input(self) -> None:
        """Tell the command that no more input comes."""
        with contextlib.suppress(ConnectionError):
            await self._socket.send(CLOSE, bytes([STDIN]))

    async def resize(self, columns: int, rows: int) -> None:
        """Tell the other side how large our terminal is."""
        await self._socket.send(RESIZE, json.dumps({"Width": columns, "Height": rows}).encode())

    async def feed(self, read: Read) -> None:
        """What ``read`` gives until it gives nothing, and then that end."""
        with contextlib.suppress(ConnectionError):
            while data := await read():
                await self.send(data)
            await self.end_input()

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """What the command writes, with STDOUT or STDERR before it, until it has ended."""
        async for channel, data in self._socket.messages():
            if channel in (STDOUT, STDERR) and data:
                yield channel, data
            elif channel == ERROR:
                self._status += data

    async def receive(self, take: Take) -> int | None:
        """Hand output to ``take`` until the other side is done; the exit code, None when none came.

        Raises an OrlopError when the command could not be run.
        """
        async for channel, data in self.output():
            take(channel, data)
        return self.exit_code()

    def exit_code(self) -> int | None:
        """How the command ended, once its output has; None when the connection broke before.

        Raises an OrlopError when the command could not be run.
        """
        if not self._status:
            return None
        try:
            status = json.loads(self._status)
        except ValueError:
            raise OrlopError(f"the command failed: {self._status.decode(errors='replace').strip()}") from None
        if status.get("status") == "Success":
            return 0
        for cause in (status.get("details") or {}).get("causes") or ():
            if cause.get("reason") == "ExitCode":
                return int(cause.get("message", "1"))
        raise OrlopError(str(status.get("message") or "the command failed for an unknown reason"))

    async def close(self) -> None:
        """Release the connection; idempotent."""
        await self._socket.close()
