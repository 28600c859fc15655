"""The node's images, as far as running something needs them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

from orlop.client import credentials
from orlop.client.calls import CriClient, NativeClient
from orlop.client.facts import ImageFacts
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.host import tasks
from orlop.native.api import native_v1_pb2 as native

Progress = Callable[[int, int], None]
"""Is told the bytes that are here and the bytes that there are in all."""

PULL_TIMEOUT = 3600.0
_LOOK_EVERY = 0.15


async def present(client: CriClient, reference: str) -> str:
    """The id of an image that is here already, or ""."""
    answer = await client.images.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=reference)))
    return str(answer.image.id) if answer.HasField("image") else ""


async def tag(path: Path, image: str, name: str) -> ImageFacts:
    """Give an image one more name, through the socket at ``path``. Raises NotFound, InvalidArgument."""
    async with NativeClient(path) as client:
        answer = await client.names.tag_image(native.TagImageRequest(image=image, name=name))
    return facts(answer.image)


async def untag(path: Path, name: str, *, with_the_last: bool = False) -> ImageFacts:
    """Take a name away, and ``with_the_last`` its image. Raises NotFound, InvalidArgument."""
    async with NativeClient(path) as client:
        request = native.UntagImageRequest(name=name, with_the_last=with_the_last)
        answer = await client.names.untag_image(request)
    return facts(answer.image)


def facts(image: native.LoadedImage) -> ImageFacts:
    """What our own calls tell of an image."""
    return ImageFacts(id=image.id, tags=tuple(image.names), size=image.size)


async def pull(
    client: CriClient,
    reference: str,
    auth: pb.AuthConfig | None = None,
    *,
    progress: Progress | None = None,
) -> str:
    """Fetch an image from its registry; its id.

    Without ``auth`` the credentials are those that ``orlop login``, podman and docker keep for us.
    """
    if progress is not None:
        async with tasks.beside(_watch(client, reference, progress)):
            return await pull(client, reference, auth)
    auth = auth or await credentials.of_image(reference)
    request = pb.PullImageRequest(image=pb.ImageSpec(image=reference), auth=auth)
    answer = await client.images.pull_image(request, timeout=PULL_TIMEOUT)
    return str(answer.image_ref)


async def _watch(client: CriClient, reference: str, progress: Progress) -> None:
    """Tell of a pull under way what the verbose status tells of it."""
    while True:
        status = await client.runtime.status(pb.StatusRequest(verbose=True))
        one = json.loads(status.info.get("pulls", "{}")).get(reference, {})
        if one.get("total"):
            progress(int(one["done"]), int(one["total"]))
        await asyncio.sleep(_LOOK_EVERY)
