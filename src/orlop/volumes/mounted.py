"""Named volumes where a container found them, for one that is to run again."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Collection
from pathlib import Path

from orlop.errors import FailedPrecondition, NotFound
from orlop.host import threads
from orlop.volumes.places import VolumePlace, place_at
from orlop.volumes.publisher import Publisher


class MountedVolumes:
    """The volumes that ``publisher`` has mounted beside the daemon's ``socket``."""

    def __init__(self, publisher: Publisher, socket: Path) -> None:
        self._publisher = publisher
        self._socket = socket

    @contextlib.asynccontextmanager
    async def again(self, paths: Collection[str]) -> AsyncIterator[None]:
        """Have those of a container's ``paths`` that are named volumes mounted, as its first run had them.

        The machine may have been restarted since. Within ``async with`` nobody removes them. Raises
        FailedPrecondition for one that was removed, and what :class:`Publisher` raises.
        """
        socket = await threads.call(self._socket.resolve)
        places = {place for path in paths if (place := place_at(socket, path)) is not None}
        async with contextlib.AsyncExitStack() as held:
            for place in sorted(places):
                await held.enter_async_context(place.turn(alone=False))
                try:
                    await self._mount(place)
                except NotFound as error:
                    raise FailedPrecondition(
                        f"{error}: the container that had it cannot run again"
                    ) from error
            yield

    async def _mount(self, place: VolumePlace) -> None:
        await threads.call(place.make)
        await self._publisher.stage(place.name, place.staged)
        await self._publisher.publish(place.name, place.mount, staged=place.staged)
