"""One tenant's DNS on one node: sockets in its router, and everything that a pod may do to them.

Of each socket one datagram is taken for each round of the event loop, and a tenant that has used up its
processor time is not listened to until it has some again: so no tenant makes another wait for more than one
question. What waits meanwhile, waits in the kernel, which drops what is too much.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Final

from orlop.errors import OrlopError, ResourceExhausted, Unavailable
from orlop.host.tasks import Tasks, uncancelled
from orlop.tenantdns import places
from orlop.tenantdns.answers import LONGEST_QUESTION, Answers, Pending
from orlop.tenantdns.limits import AtOnce, TimeShare

log = logging.getLogger(__name__)

PORT: Final = 53
QUESTIONS, QUESTIONS_EACH = 256, 64
"""That others are asked about at once, for one tenant on one node and for each of its pods."""
CONNECTIONS, CONNECTIONS_EACH = 64, 16
IDLE: Final = 10.0
"""Seconds for a question to come by a connection, and for its answer to be taken."""


class NameServer:
    """Answers at ``addresses`` in the namespace ``place``, from :meth:`open` to :meth:`close`."""

    def __init__(
        self, place: Path, addresses: Sequence[str], answers: Answers, budget: TimeShare, port: int = PORT
    ) -> None:
        self._place, self._addresses, self._port = place, tuple(addresses), port
        self._answers, self._budget = answers, budget
        self._questions = AtOnce("questions", together=QUESTIONS, each=QUESTIONS_EACH)
        self._connections = AtOnce("connections", together=CONNECTIONS, each=CONNECTIONS_EACH)
        self._tasks, self._open = Tasks(), AsyncExitStack()

    async def open(self) -> None:
        """Listen. Raises Unavailable; a failure or cancellation leaves nothing open."""
        try:
            for address in self._addresses:
                datagrams, streams = await places.listen(self._place, address, self._port)
                self._open.callback(streams.close)
                self._open.callback(datagrams.close)
                self._listen(datagrams)
                self._tasks.spawn(self._accept(streams), f"DNS connections at {address}")
        except BaseException as error:
            await uncancelled(self.close())
            if not isinstance(error, OSError | OrlopError):
                raise
            where = f"{', '.join(self._addresses)} in {self._place.name}"
            raise Unavailable(f"the DNS at {where} cannot be opened: {error}") from error

    async def close(self) -> None:
        """Let go of everything. Idempotent."""
        await self._tasks.close()
        await self._open.aclose()

    def _listen(self, datagrams: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(datagrams, self._hear, datagrams)
        self._open.callback(loop.remove_reader, datagrams)

    def _hear(self, datagrams: socket.socket) -> None:
        with self._budget.spending():
            try:
                question, caller = datagrams.recvfrom(LONGEST_QUESTION + 1)
            except OSError:  # nothing there any more, or an error of an answer before
                return
            made = self._answers.at_once(question)
            if isinstance(made, Pending):
                work = self._answer_later(datagrams, made, caller)
                self._tasks.spawn(work, f"an answer for {caller[0]}")
            elif made is not None:
                _send(datagrams, made, caller)
        if pause := self._budget.pause():
            loop = asyncio.get_running_loop()
            loop.remove_reader(datagrams)
            self._tasks.spawn(self._hear_again(datagrams, pause), "the DNS of a tenant")

    async def _hear_again(self, datagrams: socket.socket, pause: float) -> None:
        await asyncio.sleep(pause)
        asyncio.get_running_loop().add_reader(datagrams, self._hear, datagrams)

    async def _answer_later(
        self, datagrams: socket.socket, pending: Pending, caller: tuple[str, int]
    ) -> None:
        # Who asks too much hears nothing, and asks again later.
        with suppress(ResourceExhausted), self._questions.one(caller[0]):
            outcome = await self._answers.ask(pending)
            with self._budget.spending():
                _send(datagrams, self._answers.finish(pending, outcome), caller)

    async def _accept(self, streams: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                line, caller = await loop.sock_accept(streams)
            except OSError as error:  # no descriptors left, or the caller has gone
                log.debug("a DNS connection: %s", error)
                await asyncio.sleep(0.1)
                continue
            self._tasks.spawn(self._serve(line, caller[0]), f"a DNS connection of {caller[0]}")

    async def _serve(self, line: socket.socket, caller: str) -> None:
        with line, suppress(ResourceExhausted, OSError, TimeoutError), self._connections.one(caller):
            while True:
                async with asyncio.timeout(IDLE):
                    length = int.from_bytes(await _read(line, 2), "big")
                    if not 0 < length <= LONGEST_QUESTION:
                        return
                    question = await _read(line, length)
                await self._budget.wait()
                with self._budget.spending():
                    made = self._answers.at_once(question, stream=True)
                if isinstance(made, Pending):
                    with self._questions.one(caller):
                        outcome = await self._answers.ask(made)
                    with self._budget.spending():
                        made = self._answers.finish(made, outcome)
                if made is None:
                    return
                async with asyncio.timeout(IDLE):
                    loop = asyncio.get_running_loop()
                    await loop.sock_sendall(line, len(made).to_bytes(2, "big") + made)


async def _read(line: socket.socket, length: int) -> bytes:
    """That many bytes. Raises ConnectionResetError when there are fewer."""
    loop, found = asyncio.get_running_loop(), b""
    while len(found) < length:
        if not (more := await loop.sock_recv(line, length - len(found))):
            raise ConnectionResetError
        found += more
    return found


def _send(datagrams: socket.socket, answer: bytes, caller: tuple[str, int]) -> None:
    # What the kernel does not take now is lost, as any datagram may be.
    with suppress(OSError):
        datagrams.sendto(answer, caller)
