"""Images of containers."""

from __future__ import annotations

from contextlib import aclosing
from datetime import UTC, datetime

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.images import documents
from orlop.images.loading import Loader
from orlop.images.store import ImageStore
from orlop.native.api import native_v1_pb2 as pb
from orlop.native.archives import told
from orlop.native.ids import named
from orlop.pods import committed
from orlop.pods.service import PodService

MAX_WORDS = 4096


class CommitCalls:
    """That call of the service ``orlop.v1.ContainerService``."""

    def __init__(self, pods: PodService, images: ImageStore, loader: Loader) -> None:
        self._pods = pods
        self._images = images
        self._loader = loader

    async def commit_container(self, request: pb.CommitContainerRequest) -> pb.CommitContainerResponse:
        """Make one."""
        for what, text in (("author", request.author), ("comment", request.comment)):
            if len(text) > MAX_WORDS:
                raise InvalidArgument(f"the {what} has {len(text)} characters; {MAX_WORDS} are allowed")
        record = self._pods.container(named(request.container_id))
        if not record.image_id:
            raise FailedPrecondition(f"container {record.name} has no image that another could be made of")
        base = self._images.status(record.image_id)
        if base is None:
            raise NotFound(
                f"the image of container {record.name} was removed: pull {record.user_image} again"
            )
        config = msgspec.structs.replace(
            documents.changed(committed.config(record, base.config), request.config),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            author=request.author or base.config.author,
            comment=request.comment,
        )
        async with aclosing(self._pods.archive(record.id, changed=True)) as layer:
            image = await self._loader.add_layer(base.id, layer, config, request.name)
        return pb.CommitContainerResponse(image=told(image))
