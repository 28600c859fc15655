"""The daemon's socket for containerd's connections, which come by way of the keeper: root's alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from orlop.pods.records import PodFilter
from orlop.pods.service import PodService
from orlop.shim import places
from orlop.ttrpc import link

if TYPE_CHECKING:
    from orlop.shim.tasks import ShimTasks
    from orlop.ttrpc.server import Services

MOST_LINKS = 4096
"""Connections at one time: containerd has one for each task."""

MOST_CALLS = 1024
"""Calls of one connection under way: as many as the keeper has. Each process of a task is waited for, and
when all are that a task may have, it can still be killed."""


class ShimDoor:
    """Listens from :meth:`start` to :meth:`stop`."""

    def __init__(self, state: Path, pods: PodService) -> None:
        self._state = state
        self._pods = pods
        self._listener = link.Listener(state / places.DAEMON_SOCKET, self._serve, limit=MOST_LINKS)
        self._tasks: ShimTasks | None = None
        self._services: Services | None = None

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition."""
        await self._listener.start()
        if self._pods.pods(PodFilter(front=places.FRONT)):
            self._offered()

    async def stop(self) -> None:
        """Listen no more; tasks run on. Idempotent."""
        await self._listener.stop()
        if self._tasks is not None:
            await self._tasks.close()

    def _offered(self) -> Services:
        """What answers. Imported when it is needed: a node without containerd has no use for it."""
        if self._services is None:
            from orlop.shim.service import services
            from orlop.shim.tasks import ShimTasks

            self._tasks = ShimTasks(self._pods, self._state)
            self._tasks.open()
            self._services = services(self._tasks)
        return self._services

    async def _serve(self, connection: link.SocketLink) -> None:
        from orlop.ttrpc.server import serve

        await serve(connection, self._offered(), max_streams=MOST_CALLS)
