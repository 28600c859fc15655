"""Images from files and into files."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from orlop.images import saving
from orlop.images.loading import Loader
from orlop.images.model import Image
from orlop.images.store import ImageStore
from orlop.native.api import native_v1_pb2 as pb

Parts = AsyncIterator[pb.LoadImagesRequest] | AsyncIterator[pb.ImportImageRequest]


class ArchiveCalls:
    """The service ``orlop.v1.ArchiveService``."""

    def __init__(self, images: ImageStore, loader: Loader) -> None:
        self._images = images
        self._loader = loader

    async def load_images(self, requests: AsyncIterator[pb.LoadImagesRequest]) -> pb.LoadImagesResponse:
        """Take the images of an archive."""
        first = await anext(requests, pb.LoadImagesRequest())
        loaded = await self._loader.load(_data(first, requests), first.name)
        return pb.LoadImagesResponse(images=[told(image) for image in loaded])

    async def import_image(self, requests: AsyncIterator[pb.ImportImageRequest]) -> pb.ImportImageResponse:
        """Make an image of the archive of a file system."""
        first = await anext(requests, pb.ImportImageRequest())
        image = await self._loader.import_tree(_data(first, requests), first.name, first.config)
        return pb.ImportImageResponse(image=told(image))

    async def save_images(self, request: pb.SaveImagesRequest) -> AsyncGenerator[pb.SaveImagesResponse, None]:
        """The archive of images, in pieces."""
        async with aclosing(saving.save(self._images, request.names)) as pieces:
            async for piece in pieces:
                yield pb.SaveImagesResponse(data=piece)


async def _data(first: pb.LoadImagesRequest | pb.ImportImageRequest, others: Parts) -> AsyncIterator[bytes]:
    if first.data:
        yield first.data
    async for one in others:
        yield one.data


def told(image: Image) -> pb.LoadedImage:
    """An image as our own clients see it."""
    return pb.LoadedImage(id=image.id, names=image.repo_tags, size=image.size)
