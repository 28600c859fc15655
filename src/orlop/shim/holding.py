"""What the keeper is to hold while no daemon runs: that a task is there, and its FIFOs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from orlop.host import threads
from orlop.shim import places, stdio
from orlop.shim.model import Key

log = logging.getLogger(__name__)

_ANSWER_TIME = 10.0


class KeeperLine:
    """Tells the keeper below ``state``. Without one nothing is held, which is logged and no failure."""

    def __init__(self, state: Path) -> None:
        self._path = os.fspath(state / places.HOLD_SOCKET)
        self._turn = asyncio.Lock()
        self._link: socket.socket | None = None

    async def expect(self, key: Key) -> None:
        """Hold that there is, or will be, a task ``key``, of which nothing lives."""
        await self._say({"verb": "expect", "key": _text(key, "")})

    async def hold_task(self, key: Key, process: int) -> None:
        """Hold that the task ``key`` is there, and lives as long as ``process``; with 0 it does not."""
        try:
            living = os.pidfd_open(process) if process else -1
        except ProcessLookupError:
            living = -1
        if living < 0:
            await self.expect(key)
            return
        try:
            async with self._turn:
                await threads.call(self._send, {"verb": "hold", "key": _text(key, "")}, (living,))
        finally:
            os.close(living)

    async def hold(self, key: Key, name: str, paths: Sequence[str]) -> None:
        """Hold FIFOs of the task ``key`` by a name."""
        async with self._turn:
            await threads.call(self._hold, _text(key, name), paths)

    async def drop(self, key: Key, name: str = "") -> None:
        """Hold it no more. Idempotent."""
        await self._say({"verb": "drop", "key": _text(key, name)})

    async def begin(self) -> None:
        """What is not held anew until :meth:`end` is dropped then."""
        await self._say({"verb": "begin"})

    async def end(self) -> None:
        """See :meth:`begin`."""
        await self._say({"verb": "end"})

    async def close(self) -> None:
        """Hang up; what is held stays so."""
        async with self._turn:
            if self._link is not None:
                self._link.close()
                self._link = None

    async def _say(self, note: dict[str, str]) -> None:
        async with self._turn:
            await threads.call(self._send, note, ())

    def _hold(self, key: str, paths: Sequence[str]) -> None:
        with ExitStack() as stack:
            descriptors = []
            for path in paths:
                try:
                    descriptors.append(stdio.both_ends(path))
                except OSError as error:
                    log.debug("%s is not held: %s", path, error)
                else:
                    stack.callback(os.close, descriptors[-1])
            self._send({"verb": "hold", "key": key}, descriptors)

    def _send(self, note: dict[str, str], descriptors: Sequence[int]) -> None:
        for again in (True, False):
            try:
                link = self._connected()
                socket.send_fds(link, [json.dumps(note).encode()], descriptors)
                if link.recv(16):
                    return
                raise ConnectionResetError
            except OSError as error:
                if self._link is not None:
                    self._link.close()
                    self._link = None
                if not again:
                    log.info("nobody keeps %s: %s", note.get("key", "tasks"), error.strerror or "it hung up")

    def _connected(self) -> socket.socket:
        if self._link is None:
            link = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
            try:
                link.settimeout(_ANSWER_TIME)
                link.connect(self._path)
            except OSError:
                link.close()
                raise
            self._link = link
        return self._link


def _text(key: Key, name: str) -> str:
    return "/".join((*key, name))
