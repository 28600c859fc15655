"""What happens to pods and containers, which the daemon tells in two streams."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from orlop.client.calls import CriClient, NativeClient
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import OrlopError, Unavailable
from orlop.host import tasks
from orlop.native.api import native_v1_pb2 as native

Told = pb.ContainerEventResponse | native.WatchHealthResponse


async def happening(client: CriClient) -> AsyncIterator[Told]:
    """Events from now on, those of CRI and those of health. Raises Unavailable when the daemon ends."""
    ready: asyncio.Queue[Told | OrlopError] = asyncio.Queue(1)

    async def pump(stream: AsyncIterator[Any]) -> None:
        try:
            async for one in stream:
                await ready.put(one)
            await ready.put(Unavailable("the daemon tells no more events: it ends"))
        except OrlopError as error:
            await ready.put(error)

    async with NativeClient(client.path) as ours:
        lives = client.runtime.get_container_events(pb.GetEventsRequest())
        healths = ours.containers.watch_health(native.WatchHealthRequest())
        async with tasks.beside(pump(lives)), tasks.beside(pump(healths)):
            while not isinstance(one := await ready.get(), OrlopError):
                yield one
            raise one
