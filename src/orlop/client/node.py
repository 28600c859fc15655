"""The daemon of a machine, for programs."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import IO, Any, Unpack, cast

from orlop.client import archives, events, health, images, session
from orlop.client.calls import CriClient
from orlop.client.container import Container, collected
from orlop.client.facts import ContainerFacts, ContainerUse, Event, ImageFacts, PodFacts, Result
from orlop.client.health import Condition
from orlop.client.images import Progress
from orlop.client.options import PodKeywords, RunKeywords, launch
from orlop.client.pod import Pod, find_pod
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.host import tasks
from orlop.native.api import native_v1_pb2 as native


@contextlib.asynccontextmanager
async def connect(socket: str = "") -> AsyncIterator[Node]:
    """The daemon of this machine.

    ``socket`` is its path; ``$ORLOP_SOCKET`` or the configuration file's else. Raises Unavailable when no
    daemon listens there, PermissionDenied when it is not for us.
    """
    async with session.connect(socket) as client:
        yield Node(client)


class Node:
    """What :func:`connect` gives."""

    def __init__(self, client: CriClient) -> None:
        self._client = client

    async def run(
        self,
        image: str,
        *command: str,
        stdin: bytes = b"",
        timeout: float | None = None,
        **options: Unpack[RunKeywords],
    ) -> Result:
        """Run a command in a pod of its own, wait for its result, and remove all of it.

        ``timeout`` is in seconds; TimeoutError is raised when it is over. More than 64 MiB of output
        raise ResourceExhausted.
        """
        wanted = launch(image, command, options, interactive=bool(stdin))
        async with asyncio.timeout(timeout), Pod(self._client, wanted) as pod:
            container = await pod.launch(wanted, pod.name)
            async with tasks.beside(_feed(container, stdin)):
                written = await _output(container)
            return Result(await container.wait(), *written)

    def pod(self, **options: Unpack[PodKeywords]) -> Pod:
        """A pod for several containers, made by ``async with``."""
        return Pod(self._client, launch("", (), cast(RunKeywords, options)))

    async def find_pod(self, name: str) -> Pod:
        """The pod with that id, start of an id, or name; it stays. Raises NotFound, InvalidArgument."""
        return await find_pod(self._client, name)

    async def container(self, name: str) -> Container:
        """The container with that id, unique start of an id, or name. Raises NotFound, InvalidArgument."""
        found = await session.find_container(self._client, name)
        return Container(self._client, found.id, found.pod_sandbox_id)

    async def containers(self) -> list[ContainerFacts]:
        """All containers, those that have ended as well."""
        answer = await self._client.runtime.list_containers(pb.ListContainersRequest())
        known = await health.conditions(self._client) if answer.containers else {}
        return [
            ContainerFacts(
                id=one.id,
                name=session.name_of(one),
                pod_id=one.pod_sandbox_id,
                image=one.image.user_specified_image or one.image.image,
                state=session.STATES.get(one.state, "unknown"),
                health=known.get(one.id, Condition()).health,
            )
            for one in answer.containers
        ]

    async def pods(self) -> list[PodFacts]:
        """All pods."""
        answer = await self._client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
        return [
            PodFacts(
                id=one.id,
                name=session.name_of(one),
                namespace=one.metadata.namespace,
                ready=one.state == pb.SANDBOX_READY,
                handler=one.runtime_handler,
            )
            for one in answer.items
        ]

    async def pull(
        self, image: str, *, username: str = "", password: str = "", progress: Progress | None = None
    ) -> str:
        """Fetch an image from its registry; its id."""
        auth = pb.AuthConfig(username=username, password=password) if username or password else None
        return await images.pull(self._client, image, auth, progress=progress)

    async def images(self) -> list[ImageFacts]:
        """The images that are here."""
        answer = await self._client.images.list_images(pb.ListImagesRequest())
        return [ImageFacts(id=one.id, tags=tuple(one.repo_tags), size=one.size) for one in answer.images]

    async def remove_image(self, image: str) -> None:
        """Remove an image; one that is not here is no error."""
        await self._client.images.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=image)))

    async def tag(self, image: str, name: str) -> ImageFacts:
        """Give an image one more name, which leaves the image that had it.

        Raises NotFound, InvalidArgument.
        """
        return await images.tag(self._client.path, image, name)

    async def untag(self, name: str, *, with_the_last: bool = False) -> ImageFacts:
        """Take a name away from its image, which stays, by its id; or goes ``with_the_last`` of its names.

        Raises NotFound, InvalidArgument.
        """
        return await images.untag(self._client.path, name, with_the_last=with_the_last)

    async def load(self, source: Path | IO[bytes], *, name: str = "") -> list[ImageFacts]:
        """Take the images of an archive, as ``docker save``, ``podman save`` and skopeo write it.

        ``source`` is a file, packed with gzip or zstd or not, or the directory of an OCI layout. ``name`` is
        one more name for an image that is alone. All images come, or none.
        """
        return await archives.load(self._client.path, source, name)

    async def save(self, target: Path, *images: str) -> None:
        """Write images to a file that other runtimes load, too."""
        await archives.save(self._client.path, target, images)

    async def import_image(
        self, source: Path | IO[bytes], *, name: str = "", settings: Mapping[str, Any] | None = None
    ) -> ImageFacts:
        """Make an image of a file system, packed by tar.

        ``settings`` is what its containers run, as an image configuration has it: ``{"Cmd": ["sh"]}``.
        """
        return await archives.import_image(self._client.path, source, name, settings)

    async def events(self) -> AsyncIterator[Event]:
        """What happens to containers and pods from now on."""
        async for one in events.happening(self._client):
            if isinstance(one, native.WatchHealthResponse):
                yield Event(one.at / 1e9, "health_status", one.container_id, one.pod_id, one.health)
                continue
            yield Event(
                time=one.created_at / 1e9,
                kind=session.EVENTS.get(one.container_event_type, "unknown"),
                container_id=one.container_id,
                pod_id=one.pod_sandbox_status.id,
            )

    async def stats(self, interval: float = 1.0) -> AsyncIterator[list[ContainerUse]]:
        """What all running containers use, now and every ``interval`` seconds."""
        while True:
            answer = await self._client.runtime.list_container_stats(pb.ListContainerStatsRequest())
            yield [
                ContainerUse(
                    container_id=one.attributes.id,
                    name=session.name_of(one.attributes),
                    cpu=one.cpu.usage_core_nano_seconds.value / 1e9,
                    memory=one.memory.working_set_bytes.value,
                    disk=one.writable_layer.used_bytes.value,
                )
                for one in answer.stats
            ]
            await asyncio.sleep(interval)


async def _feed(container: Container, stdin: bytes) -> None:
    if not stdin:
        return
    async with await container.attach(output=False) as process:
        # The container may end before it has read everything.
        with contextlib.suppress(ConnectionError):
            await process.write(stdin)
            await process.end_input()
        async for _ in process.output():
            pass


async def _output(container: Container) -> tuple[bytes, bytes]:
    """What it writes until it has ended, from its log, which has all of it from the first byte on."""
    lines = container.logs(follow=True)
    return await collected(((line.stream, line.content) async for line in lines), "read its logs()")
