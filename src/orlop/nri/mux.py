"""Two connections over one socket: each frame is the number of a connection, a length, and bytes.

Both sides are client and server of the other. NRI writes down no protocol for this; its Go code
(github.com/containerd/nri, pkg/net/multiplex) is what plug-ins are built with.
"""

from __future__ import annotations

import asyncio
import struct

from orlop.ttrpc.frames import HEADER as MESSAGE_HEADER
from orlop.ttrpc.frames import MAX_MESSAGE, FrameStream, LinkLost

PLUGIN = 1
"""The connection on which the plug-in serves."""
RUNTIME = 2
"""The one on which it calls."""

HEADER = struct.Struct(">II")
MAX_PAYLOAD = MESSAGE_HEADER.size + MAX_MESSAGE
MAX_WAITING = 2 * MAX_PAYLOAD
"""Bytes that came on one connection and were not read yet; with more the plug-in is cut off."""

_FIRST = 4096
"""The other side reads a message through a buffer of that size, and a payload must fit into what it
reads with: so the first one fills the buffer, and what is left of the message is one more."""


class MuxedStream:
    """One of the connections, as a link for ttrpc."""

    def __init__(self, trunk: FrameStream, number: int) -> None:
        self._trunk = trunk
        self._number = number
        self._data = bytearray()
        self._came = asyncio.Event()
        self._lost: LinkLost | None = None

    async def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes. Raises LinkLost."""
        while len(self._data) < size:
            if self._lost is not None:
                raise self._lost
            self._came.clear()
            await self._came.wait()
        found = bytes(memoryview(self._data)[:size])
        del self._data[:size]
        return found

    async def write(self, data: bytes) -> None:
        """Send one message. Raises LinkLost."""
        if self._lost is not None:
            raise self._lost
        parts = [part for part in (data[:_FIRST], data[_FIRST:]) if part]
        await self._trunk.write(b"".join(HEADER.pack(self._number, len(part)) + part for part in parts))

    async def close(self) -> None:
        """Nothing: the socket is closed for both connections."""

    def feed(self, data: bytes) -> None:
        """Take what came. Raises LinkLost when too much waits already."""
        if len(self._data) + len(data) > MAX_WAITING:
            raise LinkLost(f"more than {MAX_WAITING} bytes came that nobody could read yet")
        self._data += data
        self._came.set()

    def lose(self, error: LinkLost) -> None:
        """No more comes."""
        self._lost = error
        self._came.set()


class Mux:
    """The connections of one plug-in."""

    def __init__(self, trunk: FrameStream) -> None:
        self._trunk = trunk
        self.plugin = MuxedStream(trunk, PLUGIN)
        self.runtime = MuxedStream(trunk, RUNTIME)

    async def run(self) -> str:
        """Hand out what comes until the socket is closed or nonsense came; returns the reason."""
        channels = {PLUGIN: self.plugin, RUNTIME: self.runtime}
        try:
            while True:
                number, length = HEADER.unpack(await self._trunk.read(HEADER.size))
                if length > MAX_PAYLOAD:
                    raise LinkLost(f"a payload of {length} bytes is more than the {MAX_PAYLOAD} of a message")
                data = await self._trunk.read(length) if length else b""
                if (channel := channels.get(number)) is not None:
                    channel.feed(data)
        except LinkLost as error:
            for channel in channels.values():
                channel.lose(error)
            return str(error)
