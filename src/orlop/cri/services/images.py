"""Calls about images."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager

from orlop.cri import validate, verbose
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate import filesystems, image
from orlop.cri.translate.entries import framed, paged
from orlop.errors import InvalidArgument
from orlop.images.model import Image, PullProgress
from orlop.images.store import ImageStore
from orlop.pods.service import PodService


class Pulls:
    """The pulls under way, for people who wait: verbose Status shows them."""

    def __init__(self) -> None:
        self._states: dict[int, tuple[str, PullProgress]] = {}
        self._count = 0

    @contextmanager
    def watched(self, reference: str) -> Iterator[Callable[[PullProgress], None]]:
        """Around one pull; yields who is to be told how far it is."""
        self._count += 1
        key = self._count

        def tell(progress: PullProgress) -> None:
            self._states[key] = reference, progress

        tell(PullProgress(reference=reference))
        try:
            yield tell
        finally:
            del self._states[key]

    def shown(self) -> dict[str, dict[str, int]]:
        """By the reference that was asked for: bytes done and in all (0: not known)."""
        return {
            reference: {"done": state.read_bytes, "total": state.total_bytes}
            for reference, state in self._states.values()
        }


class ImageCalls:
    """The ImageService."""

    def __init__(self, images: ImageStore, pods: PodService, pulls: Pulls) -> None:
        self._images = images
        self._pods = pods
        self._pulls = pulls

    async def list_images(self, request: pb.ListImagesRequest) -> pb.ListImagesResponse:
        """The images that match."""
        return pb.ListImagesResponse(images=[image.image(item) for item in self._matching(request.filter)])

    async def stream_images(self, request: pb.StreamImagesRequest) -> AsyncIterator[bytes]:
        """The images that match, in several messages."""
        found = self._matching(request.filter)
        for page in paged(framed(image.image(item).SerializeToString()) for item in found):
            yield page

    async def image_status(self, request: pb.ImageStatusRequest) -> pb.ImageStatusResponse:
        """One image; an empty answer when it is not here."""
        found = self._images.status(image.reference(request.image))
        if found is None:
            return pb.ImageStatusResponse()
        return pb.ImageStatusResponse(
            image=image.image(found), info=verbose.info(image.info(found)) if request.verbose else None
        )

    async def pull_image(self, request: pb.PullImageRequest) -> pb.PullImageResponse:
        """Fetch an image; answers with its id."""
        wanted = image.reference(request.image)
        handler = validate.name(request.image.runtime_handler, "image.runtime_handler", required=False)
        if handler and handler not in {item.name for item in await self._pods.handlers()}:
            raise InvalidArgument(f"image.runtime_handler {validate.excerpt(handler)} does not exist")
        auth = image.credentials(request.auth) if request.HasField("auth") else None
        with self._pulls.watched(request.image.image) as tell:
            pulled = await self._images.pull(wanted, auth, tell)
        return pb.PullImageResponse(image_ref=pulled.id)

    async def remove_image(self, request: pb.RemoveImageRequest) -> pb.RemoveImageResponse:
        """Remove an image and all of its names; one that is not here is removed."""
        await self._images.remove(image.reference(request.image))
        return pb.RemoveImageResponse()

    async def image_fs_info(self, request: pb.ImageFsInfoRequest) -> pb.ImageFsInfoResponse:
        """Space taken by images, and by the writable layers of containers."""
        return filesystems.fs_info(await self._images.fs_info(), await self._pods.layers())

    def _matching(self, wanted: pb.ImageFilter) -> list[Image]:
        if not wanted.image.image:
            return list(self._images.list())
        found = self._images.status(image.reference(wanted.image))
        return [] if found is None else [found]
