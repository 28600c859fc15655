"""Names that a shell completes: what there is, asked of the daemon; nothing where none answers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orlop.client.calls import CriClient

PATIENCE = 2.0
"""Seconds: who has pressed a key does not wait longer."""


def containers(incomplete: str) -> list[str]:
    """Names of containers that begin so."""
    from orlop.client import session
    from orlop.cri.api import runtime_v1_pb2 as pb

    async def names(client: CriClient) -> Iterable[str]:
        answer = await client.runtime.list_containers(pb.ListContainersRequest())
        return [session.name_of(one) for one in answer.containers]

    return _beginning(incomplete, names)


def pods(incomplete: str) -> list[str]:
    """Names of pods."""
    from orlop.client import session
    from orlop.cri.api import runtime_v1_pb2 as pb

    async def names(client: CriClient) -> Iterable[str]:
        answer = await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
        return [session.name_of(one) for one in answer.items]

    return _beginning(incomplete, names)


def images(incomplete: str) -> list[str]:
    """Names of images."""
    from orlop.cri.api import runtime_v1_pb2 as pb

    async def names(client: CriClient) -> Iterable[str]:
        answer = await client.images.list_images(pb.ListImagesRequest())
        return [tag for one in answer.images for tag in one.repo_tags]

    return _beginning(incomplete, names)


def _beginning(incomplete: str, names: Callable[[CriClient], Awaitable[Iterable[str]]]) -> list[str]:
    import asyncio

    from orlop.client import session
    from orlop.errors import OrlopError

    async def found() -> list[str]:
        async with asyncio.timeout(PATIENCE), session.connect() as client:
            return sorted({name for name in await names(client) if name.startswith(incomplete)})

    try:
        return asyncio.run(found())
    except (OrlopError, OSError, TimeoutError):
        # A shell shows nothing of what goes wrong meanwhile.
        return []
