"""The calls of ``orlop.v1``."""

from __future__ import annotations

from collections.abc import Sequence

from orlop.images.loading import Loader
from orlop.images.store import ImageStore
from orlop.native.api import native_v1_pb2 as pb
from orlop.native.archives import ArchiveCalls
from orlop.native.changes import ChangeCalls
from orlop.native.committing import CommitCalls
from orlop.native.health import HealthCalls
from orlop.native.ids import named
from orlop.native.names import NameCalls
from orlop.pods import resolve
from orlop.pods.records import ContainerRecord
from orlop.pods.service import PodService
from orlop.rpc.deferred import Handler
from orlop.rpc.router import Router

MAX_NAME = 128


def handlers(router: Router, pods: PodService, images: ImageStore) -> Sequence[Handler]:
    """Its services."""
    services = pb.DESCRIPTOR.services_by_name
    loader = Loader(images)
    of_containers = (
        NativeCalls(pods), HealthCalls(pods), ChangeCalls(pods), CommitCalls(pods, images, loader),
    )  # fmt: skip
    return (
        router.handler(services["ContainerService"], *of_containers),
        router.handler(services["ArchiveService"], ArchiveCalls(images, loader)),
        router.handler(services["ImageNameService"], NameCalls(images)),
    )


class NativeCalls:
    """What can be done to a container beyond CRI."""

    def __init__(self, pods: PodService) -> None:
        self._pods = pods

    async def pause_container(self, request: pb.PauseContainerRequest) -> pb.PauseContainerResponse:
        """Stop its processes where they are."""
        await self._pods.pause_container(named(request.container_id))
        return pb.PauseContainerResponse()

    async def resume_container(self, request: pb.ResumeContainerRequest) -> pb.ResumeContainerResponse:
        """Let them go on."""
        await self._pods.resume_container(named(request.container_id))
        return pb.ResumeContainerResponse()

    async def signal_container(self, request: pb.SignalContainerRequest) -> pb.SignalContainerResponse:
        """Send a signal."""
        number = resolve.signal_number(request.signal[:MAX_NAME])
        await self._pods.signal_container(named(request.container_id), number)
        return pb.SignalContainerResponse()

    async def rename_container(self, request: pb.RenameContainerRequest) -> pb.RenameContainerResponse:
        """Give one another name."""
        await self._pods.rename_container(named(request.container_id), request.name)
        return pb.RenameContainerResponse()

    async def wait_container(self, request: pb.WaitContainerRequest) -> pb.WaitContainerResponse:
        """Tell how one ended, when it has."""
        code = await self._pods.wait_container(named(request.container_id))
        return pb.WaitContainerResponse(exit_code=code)

    async def list_conditions(self, request: pb.ListConditionsRequest) -> pb.ListConditionsResponse:
        """What stands still, and what is checked."""
        found = [one for one in self._pods.containers() if one.paused or one.health is not None]
        return pb.ListConditionsResponse(conditions=[_condition(one) for one in found])


def _condition(record: ContainerRecord) -> pb.Condition:
    health = "" if record.health is None else record.health.status
    return pb.Condition(container_id=record.id, paused=record.paused, health=health)
