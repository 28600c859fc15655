"""Names of images, given and taken away."""

from __future__ import annotations

from orlop.errors import InvalidArgument
from orlop.images.store import ImageStore
from orlop.native.api import native_v1_pb2 as pb
from orlop.native.archives import told

MAX_NAME = 1024


class NameCalls:
    """The service ``orlop.v1.ImageNameService``."""

    def __init__(self, images: ImageStore) -> None:
        self._images = images

    async def tag_image(self, request: pb.TagImageRequest) -> pb.TagImageResponse:
        """Give an image one more name."""
        image = await self._images.tag(_bounded(request.image), _bounded(request.name))
        return pb.TagImageResponse(image=told(image))

    async def untag_image(self, request: pb.UntagImageRequest) -> pb.UntagImageResponse:
        """Take a name away."""
        image, removed = await self._images.untag(_bounded(request.name), with_the_last=request.with_the_last)
        return pb.UntagImageResponse(image=told(image), removed=removed)


def _bounded(name: str) -> str:
    if not name or len(name) > MAX_NAME:
        raise InvalidArgument(f"the name of an image must have 1 to {MAX_NAME} characters, not {len(name)}")
    return name
