"""The calls of ``orlop.v1``."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.errors import InvalidArgument
from orlop.images.store import ImageStore
from orlop.native.api import native_v1_pb2 as pb
from orlop.native.archives import ArchiveCalls
from orlop.native.names import NameCalls
from orlop.pods import resolve
from orlop.pods.service import PodService
from orlop.rpc.deferred import Handler
from orlop.rpc.router import Router

MAX_NAME = 128


def handlers(router: Router, pods: PodService, images: ImageStore) -> Sequence[Handler]:
    """Its services."""
    services = pb.DESCRIPTOR.services_by_name
    return (
        router.handler(services["ContainerService"], NativeCalls(pods)),
        router.handler(services["ArchiveService"], ArchiveCalls(images)),
        router.handler(services["ImageNameService"], NameCalls(images)),
    )


class NativeCalls:
    """What can be done to a container beyond CRI."""

    def __init__(self, pods: PodService) -> None:
        self._pods = pods

    async def pause_container(self, request: pb.PauseContainerRequest) -> pb.PauseContainerResponse:
        """Stop its processes where they are."""
        await self._pods.pause_container(_named(request.container_id))
        return pb.PauseContainerResponse()

    async def resume_container(self, request: pb.ResumeContainerRequest) -> pb.ResumeContainerResponse:
        """Let them go on."""
        await self._pods.resume_container(_named(request.container_id))
        return pb.ResumeContainerResponse()

    async def signal_container(self, request: pb.SignalContainerRequest) -> pb.SignalContainerResponse:
        """Send a signal."""
        number = resolve.signal_number(request.signal[:MAX_NAME])
        await self._pods.signal_container(_named(request.container_id), number)
        return pb.SignalContainerResponse()

    async def list_paused_containers(
        self, request: pb.ListPausedContainersRequest
    ) -> pb.ListPausedContainersResponse:
        """Those that stand still."""
        paused = [record.id for record in self._pods.containers() if record.paused]
        return pb.ListPausedContainersResponse(container_ids=paused)


def _named(container_id: str) -> str:
    if not container_id or len(container_id) > MAX_NAME:
        raise InvalidArgument(f"container_id must have 1 to {MAX_NAME} characters, not {len(container_id)}")
    return container_id
