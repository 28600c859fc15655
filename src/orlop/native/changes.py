"""What containers have changed in their images' files, and all of their files."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing

from orlop.linux import changes
from orlop.native.api import native_v1_pb2 as pb
from orlop.native.ids import named
from orlop.pods.service import PodService

_PART = 1024
"""Changes in a message: with the longest paths they are 4 MiB."""

_KINDS = {
    changes.ADDED: pb.Change.ADDED,
    changes.CHANGED: pb.Change.CHANGED,
    changes.DELETED: pb.Change.DELETED,
}


class ChangeCalls:
    """Those calls of the service ``orlop.v1.ContainerService``."""

    def __init__(self, pods: PodService) -> None:
        self._pods = pods

    async def list_changes(
        self, request: pb.ListChangesRequest
    ) -> AsyncGenerator[pb.ListChangesResponse, None]:
        """All of them, in parts."""
        async with aclosing(self._pods.changes(named(request.container_id))) as parts:
            async for part in parts:
                for begin in range(0, len(part), _PART):
                    told = part[begin : begin + _PART]
                    yield pb.ListChangesResponse(
                        changes=[pb.Change(kind=_KINDS[one.kind], path=one.path) for one in told]
                    )

    async def export_container(
        self, request: pb.ExportContainerRequest
    ) -> AsyncGenerator[pb.ExportContainerResponse, None]:
        """All of its files, packed."""
        async with aclosing(self._pods.archive(named(request.container_id))) as pieces:
            async for piece in pieces:
                yield pb.ExportContainerResponse(data=piece)
