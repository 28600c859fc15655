"""Calls about pods."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

from orlop import tracing
from orlop.cri import validate, verbose
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.services.containers import image_tags
from orlop.cri.translate import common, pod, status
from orlop.cri.translate.entries import Entries
from orlop.errors import InvalidArgument, Unimplemented
from orlop.images.store import ImageStore
from orlop.pods.records import ContainerFilter, PodFilter, PodRecord
from orlop.pods.service import PodService


class PodCalls:
    """RunPodSandbox to ListPodSandbox."""

    def __init__(self, pods: PodService, images: ImageStore) -> None:
        self._pods = pods
        self._images = images
        self._entries: Entries[PodRecord] = Entries(status.pod_entry)

    async def run_pod_sandbox(self, request: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        """Start a pod."""
        if not request.HasField("config"):
            raise InvalidArgument("config is missing")
        pod_id = await self._pods.run_pod(pod.pod_spec(request.config, request.runtime_handler))
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod_id)

    async def stop_pod_sandbox(self, request: pb.StopPodSandboxRequest) -> pb.StopPodSandboxResponse:
        """Stop a pod; one that does not exist is stopped."""
        await self._pods.stop_pod(validate.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.StopPodSandboxResponse()

    async def remove_pod_sandbox(self, request: pb.RemovePodSandboxRequest) -> pb.RemovePodSandboxResponse:
        """Remove a pod; one that does not exist is removed."""
        await self._pods.remove_pod(validate.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        return pb.RemovePodSandboxResponse()

    async def pod_sandbox_status(self, request: pb.PodSandboxStatusRequest) -> pb.PodSandboxStatusResponse:
        """A pod's state, with that of its containers at the same moment."""
        record = self._pods.pod(validate.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        members = self._pods.containers(ContainerFilter(pod_id=record.id))
        info = {}
        if request.verbose:
            calls = [dataclasses.asdict(call) for call in tracing.recent(record.id)]
            info = verbose.info(self._pods.pod_info(record.id)) | {
                "calls": verbose.text({"calls": calls}),
                "console": verbose.text({"tail": await self._pods.console(record.id)}),
            }
        return pb.PodSandboxStatusResponse(
            status=status.pod_status(record),
            containers_statuses=[
                status.container_status(item, image_tags(self._images, item)) for item in members
            ],
            timestamp=verbose.now(),
            info=info,
        )

    async def checkpoint_pod(self, request: pb.CheckpointPodRequest) -> pb.CheckpointPodResponse:
        """Refused: no handler saves pods."""
        record = self._pods.pod(validate.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        spec = record.spec
        raise Unimplemented(
            f"CheckpointPod: pod {spec.namespace}/{spec.name} ({record.id[:12]}): "
            f"the handler {record.handler} saves no pods"
        )

    async def restore_pod(self, request: pb.RestorePodRequest) -> pb.RestorePodResponse:
        """Refused: there is no checkpoint that could be restored."""
        path = validate.absolute(request.checkpoint_path, "checkpoint_path")
        raise Unimplemented(
            f"RestorePod: {validate.excerpt(path)}: this runtime saves no pods, nor restores any"
        )

    async def list_pod_sandbox(self, request: pb.ListPodSandboxRequest) -> bytes:
        """The pods that match."""
        wanted = pod.pod_filter(request.filter)
        return self._entries.encode(self._pods.pods(wanted), complete=wanted == PodFilter())

    async def stream_pod_sandboxes(self, request: pb.StreamPodSandboxesRequest) -> AsyncIterator[bytes]:
        """The pods that match, in several messages."""
        wanted = pod.pod_filter(request.filter)
        for page in self._entries.pages(self._pods.pods(wanted), complete=wanted == PodFilter()):
            yield page

    async def update_pod_sandbox_resources(
        self, request: pb.UpdatePodSandboxResourcesRequest
    ) -> pb.UpdatePodSandboxResourcesResponse:
        """Change the limits of a pod as a whole."""
        await self._pods.update_pod_resources(
            validate.identifier(request.pod_sandbox_id, "pod_sandbox_id"),
            common.resources(request.overhead, "overhead"),
            common.resources(request.resources, "resources"),
        )
        return pb.UpdatePodSandboxResourcesResponse()
