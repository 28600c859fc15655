"""Calls for statistics, metrics and events."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar, cast

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.services.containers import image_tags
from orlop.cri.translate import container, metrics, pod, stats, status
from orlop.cri.translate.entries import framed, paged
from orlop.images.store import ImageStore
from orlop.pods.records import ContainerUse, EventKind, PodFilter, PodUse
from orlop.pods.service import PodService
from orlop.sandbox.figures import Detail

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from orlop.pods.records import Event


log = logging.getLogger(__name__)

U = TypeVar("U", ContainerUse, PodUse)
M = TypeVar("M")


def _told(translate: Callable[[U], M], uses: Iterable[U]) -> list[M]:
    """The messages for all that can be told: figures of one pod must not cost the caller the others."""
    found = []
    for use in uses:
        try:
            found.append(translate(use))
        except Exception:
            log.exception("the figures of %s cannot be told", use.record.id[:12])
    return found


class StatisticsCalls:
    """ContainerStats to GetContainerEvents."""

    def __init__(self, pods: PodService, images: ImageStore) -> None:
        self._pods = pods
        self._images = images

    async def container_stats(self, request: pb.ContainerStatsRequest) -> pb.ContainerStatsResponse:
        """What one container uses."""
        use = await self._pods.container_stats(validate.identifier(request.container_id, "container_id"))
        return pb.ContainerStatsResponse(stats=stats.container_stats(use))

    async def list_container_stats(
        self, request: pb.ListContainerStatsRequest
    ) -> pb.ListContainerStatsResponse:
        """What the containers that match use."""
        uses = await self._pods.list_container_stats(container.stats_filter(request.filter))
        return pb.ListContainerStatsResponse(stats=_told(stats.container_stats, uses))

    async def stream_container_stats(self, request: pb.StreamContainerStatsRequest) -> AsyncIterator[bytes]:
        """What the containers that match use, in several messages."""
        uses = await self._pods.list_container_stats(container.stats_filter(request.filter))
        for page in paged(framed(one.SerializeToString()) for one in _told(stats.container_stats, uses)):
            yield page

    async def pod_sandbox_stats(self, request: pb.PodSandboxStatsRequest) -> pb.PodSandboxStatsResponse:
        """What one pod uses."""
        use = await self._pods.pod_stats(validate.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.PodSandboxStatsResponse(stats=stats.pod_stats(use))

    async def list_pod_sandbox_stats(
        self, request: pb.ListPodSandboxStatsRequest
    ) -> pb.ListPodSandboxStatsResponse:
        """What the pods that match use."""
        uses = await self._pods.list_pod_stats(pod.stats_filter(request.filter))
        return pb.ListPodSandboxStatsResponse(stats=_told(stats.pod_stats, uses))

    async def stream_pod_sandbox_stats(
        self, request: pb.StreamPodSandboxStatsRequest
    ) -> AsyncIterator[bytes]:
        """What the pods that match use, in several messages."""
        uses = await self._pods.list_pod_stats(pod.stats_filter(request.filter))
        for page in paged(framed(one.SerializeToString()) for one in _told(stats.pod_stats, uses)):
            yield page

    async def list_metric_descriptors(
        self, request: pb.ListMetricDescriptorsRequest
    ) -> pb.ListMetricDescriptorsResponse:
        """Every metric there can be."""
        return pb.ListMetricDescriptorsResponse(descriptors=metrics.descriptors())

    async def list_pod_sandbox_metrics(
        self, request: pb.ListPodSandboxMetricsRequest
    ) -> pb.ListPodSandboxMetricsResponse:
        """The metrics of all pods that run."""
        uses = await self._pods.list_pod_stats(PodFilter(), Detail.METRICS)
        return pb.ListPodSandboxMetricsResponse(pod_metrics=_told(metrics.pod_metrics, uses))

    async def stream_pod_sandbox_metrics(
        self, request: pb.StreamPodSandboxMetricsRequest
    ) -> AsyncIterator[bytes]:
        """The metrics of all pods that run, in several messages."""
        uses = await self._pods.list_pod_stats(PodFilter(), Detail.METRICS)
        for page in paged(framed(one.SerializeToString()) for one in _told(metrics.pod_metrics, uses)):
            yield page

    async def get_container_events(
        self, request: pb.GetEventsRequest
    ) -> AsyncIterator[pb.ContainerEventResponse]:
        """What happens from now on, until the client leaves."""
        async with aclosing(cast("AsyncGenerator[Event]", self._pods.events())) as events:
            async for event in events:
                if event.pod.spec.front or event.kind is EventKind.HEALTH:
                    continue
                tags = {item.id: image_tags(self._images, item) for item in event.containers}
                yield status.event(event, tags)
