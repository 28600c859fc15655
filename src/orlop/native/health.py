"""The health of containers: asked for now, and as it changes."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import cast

from orlop.native.api import native_v1_pb2 as pb
from orlop.native.ids import named
from orlop.pods import names
from orlop.pods.records import Event, EventKind
from orlop.pods.service import PodService


class HealthCalls:
    """Those calls of the service ``orlop.v1.ContainerService``."""

    def __init__(self, pods: PodService) -> None:
        self._pods = pods

    async def check_health(self, request: pb.CheckHealthRequest) -> pb.CheckHealthResponse:
        """Check one now."""
        container_id = named(request.container_id)
        result = await self._pods.check_health(container_id)
        state = self._pods.container(container_id).health
        return pb.CheckHealthResponse(
            exit_code=result.exit_code,
            output=result.output,
            health=state.status if state is not None else "",
        )

    async def watch_health(
        self, request: pb.WatchHealthRequest
    ) -> AsyncGenerator[pb.WatchHealthResponse, None]:
        """Changes, until the client leaves."""
        async with aclosing(cast("AsyncGenerator[Event]", self._pods.events())) as events:
            async for event in events:
                if event.kind is EventKind.HEALTH and not event.pod.spec.front:
                    yield _told(event)


def _told(event: Event) -> pb.WatchHealthResponse:
    found = next((one for one in event.containers if one.id == event.container_id), None)
    health = found.health if found is not None else None
    return pb.WatchHealthResponse(
        at=event.at,
        container_id=event.container_id,
        pod_id=event.pod.id,
        container_name=names.of_container(found) if found is not None else "",
        pod_name=f"{event.pod.spec.namespace}/{names.of_pod(event.pod)}",
        health=health.status if health is not None else "",
    )
