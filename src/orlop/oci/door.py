"""The daemon's socket for the command ``orlop-oci``: root's alone, one question for a connection."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orlop import tracing
from orlop.errors import FailedPrecondition, Internal, InvalidArgument, OrlopError, ResourceExhausted
from orlop.host import process, sockets, threads
from orlop.host.tasks import Tasks, beside
from orlop.oci.protocol import FRONT, HEAD, MAX_MESSAGE, SOCKET, STANDINS, framed
from orlop.pods.records import PodFilter
from orlop.pods.service import PodService

if TYPE_CHECKING:
    from orlop.oci.bundles import Bundles

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
"""Questions under way at one time; a further one is refused."""

_QUESTION_TIME = 10.0


class Door:
    """Listens from :meth:`start` to :meth:`stop`."""

    def __init__(self, state: Path, pods: PodService) -> None:
        self._path = state / SOCKET
        self._tasks = Tasks()
        self._server: asyncio.Server | None = None
        self._pods = pods
        self._standins = state / STANDINS
        self._bundles: Bundles | None = None

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition."""
        try:
            self._standins.mkdir(mode=0o700, exist_ok=True)
            # Before anybody is heard: these are of callers of an earlier daemon.
            left = await threads.call(process.working_in, self._standins)
        except OSError as error:
            raise FailedPrecondition(f"cannot listen on {self._path}: {error.strerror or error}") from error
        self._server = await sockets.listen(self._path, self._accept, mode=0o600)
        if left or self._pods.pods(PodFilter(front=FRONT)):
            self._verbs(left)

    async def stop(self) -> None:
        """Listen no more, and undo what is half made. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        await self._tasks.close()
        if self._bundles is not None:
            await self._bundles.close()
        if server is not None:
            await server.wait_closed()
            with suppress(OSError):
                self._path.unlink()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._tasks.closed:
            writer.close()
            return
        self._tasks.spawn(self._serve(reader, writer), f"a question to {self._path}")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, TimeoutError):
                writer.write(framed(await self._answer(reader)))
                await writer.drain()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> dict[str, Any]:
        try:
            if len(self._tasks) > MAX_CONNECTIONS:
                raise ResourceExhausted(f"{MAX_CONNECTIONS} questions are under way already; ask again")
            async with asyncio.timeout(_QUESTION_TIME):
                data = await _message(reader)
            return {"answer": await self._asked(data, reader)}
        except OrlopError as error:
            return {"error": str(error), "code": error.code}
        except ConnectionResetError:
            raise
        except Exception as error:
            log.exception("a question of an OCI caller failed")
            return {"error": f"orlopd failed: {error}", "code": Internal.code}

    def _verbs(self, left: Iterable[int] = ()) -> Bundles:
        """What answers. Imported when it is needed: a node without such callers has no use for it."""
        if self._bundles is None:
            from orlop.oci.bundles import Bundles

            self._bundles = Bundles(self._pods, left)
            self._bundles.open()
        return self._bundles

    async def _asked(self, data: bytes, reader: asyncio.StreamReader) -> Any:
        """The answer; whoever hangs up before it takes the question back."""
        from orlop.oci import questions

        question = questions.parse(data)
        found = getattr(self._verbs(), question.verb)(question)
        if not asyncio.iscoroutine(found):
            return found
        with tracing.span(f"oci.{question.verb}"):
            async with beside(found, type(question).__name__) as work, beside(reader.read(1)) as gone:
                await asyncio.wait((work, gone), return_when=asyncio.FIRST_COMPLETED)
                if not work.done():
                    raise ConnectionResetError("the caller has hung up")
                return work.result()


async def _message(reader: asyncio.StreamReader) -> bytes:
    length = int.from_bytes(await reader.readexactly(HEAD), "big")
    if length > MAX_MESSAGE:
        raise InvalidArgument(f"a question of {length} bytes is longer than {MAX_MESSAGE}")
    return await reader.readexactly(length)
