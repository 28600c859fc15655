"""The node's images, as far as running something needs them."""

from __future__ import annotations

from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb

PULL_TIMEOUT = 3600.0


async def present(client: CriClient, reference: str) -> str:
    """The id of an image that is here already, or ""."""
    answer = await client.images.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=reference)))
    return str(answer.image.id) if answer.HasField("image") else ""


async def pull(client: CriClient, reference: str, auth: pb.AuthConfig | None = None) -> str:
    """Fetch an image from its registry; its id."""
    request = pb.PullImageRequest(image=pb.ImageSpec(image=reference), auth=auth)
    answer = await client.images.pull_image(request, timeout=PULL_TIMEOUT)
    return str(answer.image_ref)
