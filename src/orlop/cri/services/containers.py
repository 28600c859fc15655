"""Calls about containers."""

from __future__ import annotations

from collections.abc import AsyncIterator

from orlop.cri import validate, verbose
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate import common, container, status
from orlop.cri.translate.entries import Entries
from orlop.errors import InvalidArgument, Unimplemented
from orlop.images.store import ImageStore
from orlop.pods.records import ContainerFilter, ContainerRecord
from orlop.pods.service import PodService

MAX_STOP_SECONDS = 10 * 365 * 86400
"""Kubernetes bounds no grace period; beyond this, a timer would overflow."""


class ContainerCalls:
    """CreateContainer to ReopenContainerLog."""

    def __init__(self, pods: PodService, images: ImageStore) -> None:
        self._pods = pods
        self._images = images
        self._entries: Entries[ContainerRecord] = Entries(status.container_entry)

    async def create_container(self, request: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        """Make a container in a running pod. What the pod is, it knows itself: sandbox_config is not read."""
        if not request.HasField("config"):
            raise InvalidArgument("config is missing")
        wanted = container.container_request(request.pod_sandbox_id, request.config)
        return pb.CreateContainerResponse(container_id=await self._pods.create_container(wanted))

    async def start_container(self, request: pb.StartContainerRequest) -> pb.StartContainerResponse:
        """Run a container's process."""
        await self._pods.start_container(validate.identifier(request.container_id, "container_id"))
        return pb.StartContainerResponse()

    async def stop_container(self, request: pb.StopContainerRequest) -> pb.StopContainerResponse:
        """Stop a container; one that does not exist is stopped."""
        timeout = validate.number(max(request.timeout, 0), "timeout", 0, validate.MAX_INT64)
        await self._pods.stop_container(
            validate.identifier(request.container_id, "container_id"), min(timeout, MAX_STOP_SECONDS)
        )
        return pb.StopContainerResponse()

    async def remove_container(self, request: pb.RemoveContainerRequest) -> pb.RemoveContainerResponse:
        """Remove a container; one that does not exist is removed."""
        await self._pods.remove_container(validate.identifier(request.container_id, "container_id"))
        return pb.RemoveContainerResponse()

    async def container_status(self, request: pb.ContainerStatusRequest) -> pb.ContainerStatusResponse:
        """A container's state."""
        record = self._pods.container(validate.identifier(request.container_id, "container_id"))
        info = verbose.info(await self._pods.container_info(record.id)) if request.verbose else None
        return pb.ContainerStatusResponse(
            status=status.container_status(record, image_tags(self._images, record)), info=info
        )

    async def list_containers(self, request: pb.ListContainersRequest) -> bytes:
        """The containers that match."""
        wanted = container.container_filter(request.filter)
        return self._entries.encode(self._pods.containers(wanted), complete=wanted == ContainerFilter())

    async def stream_containers(self, request: pb.StreamContainersRequest) -> AsyncIterator[bytes]:
        """The containers that match, in several messages."""
        wanted = container.container_filter(request.filter)
        for page in self._entries.pages(self._pods.containers(wanted), complete=wanted == ContainerFilter()):
            yield page

    async def update_container_resources(
        self, request: pb.UpdateContainerResourcesRequest
    ) -> pb.UpdateContainerResourcesResponse:
        """Change a container's limits."""
        common.no_windows(request)
        await self._pods.update_container(
            validate.identifier(request.container_id, "container_id"),
            common.resources(request.linux, "linux"),
        )
        return pb.UpdateContainerResourcesResponse()

    async def reopen_container_log(
        self, request: pb.ReopenContainerLogRequest
    ) -> pb.ReopenContainerLogResponse:
        """Open a new log file, after the old one was renamed away."""
        await self._pods.reopen_log(validate.identifier(request.container_id, "container_id"))
        return pb.ReopenContainerLogResponse()

    async def checkpoint_container(
        self, request: pb.CheckpointContainerRequest
    ) -> pb.CheckpointContainerResponse:
        """Refused, with the reason of the handler that runs it."""
        record = self._pods.container(validate.identifier(request.container_id, "container_id"))
        reasons = {"vm": "it cannot be saved apart from its pod's virtual machine"}
        handler = self._pods.pod(record.pod_id).handler
        reason = reasons.get(handler, f"the handler {handler} saves no containers")
        raise Unimplemented(f"CheckpointContainer: container {record.name} ({record.id[:12]}): {reason}")


def image_tags(images: ImageStore, record: ContainerRecord) -> tuple[str, ...]:
    """The names of a container's image, if it is still here."""
    image = images.status(record.image_id) if record.image_id else None
    return () if image is None else tuple(image.repo_tags)
