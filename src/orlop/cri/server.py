"""The CRI endpoint: RuntimeService and ImageService on a Unix socket."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import grpc

from orlop.config import Config
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.services.containers import ContainerCalls
from orlop.cri.services.images import ImageCalls, Pulls
from orlop.cri.services.node import NodeCalls
from orlop.cri.services.pods import PodCalls
from orlop.cri.services.statistics import StatisticsCalls
from orlop.cri.services.streams import StreamCalls
from orlop.cri.streaming.server import StreamingServer
from orlop.images.store import ImageStore
from orlop.pods.metrics import RpcMetrics
from orlop.pods.service import PodService
from orlop.rpc.endpoint import Endpoint
from orlop.rpc.router import Router

log = logging.getLogger(__name__)


class CriServer:
    """CRI, and the ``others`` that are served beside it. :meth:`start` before use, :meth:`stop` after it."""

    def __init__(
        self,
        config: Config,
        pods: PodService,
        images: ImageStore,
        streaming: StreamingServer,
        *,
        metrics: RpcMetrics | None = None,
        others: Sequence[grpc.GenericRpcHandler[bytes, bytes]] = (),
    ) -> None:
        self._path = Path(config.socket)
        router = Router(metrics, traced=bool(config.metrics.otlp_endpoint))
        pulls = Pulls()
        services = pb.DESCRIPTOR.services_by_name
        handlers = (
            router.handler(
                services["RuntimeService"],
                NodeCalls(config, pods, pulls),
                PodCalls(pods, images),
                ContainerCalls(pods, images),
                StreamCalls(pods, streaming),
                StatisticsCalls(pods, images),
            ),
            router.handler(services["ImageService"], ImageCalls(images, pods, pulls)),
        )
        self._endpoint = Endpoint(self._path, router, (*handlers, *others))

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition when the socket cannot be used or another daemon has it."""
        await self._endpoint.start()
        log.info("serving CRI v1 on %s", self._path)

    async def stop(self, grace: float = 5.0) -> None:
        """Take no more calls, let those in progress end within ``grace`` seconds, then cancel them."""
        await self._endpoint.stop(grace)
