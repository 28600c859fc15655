"""A pod: one VM, or one set of namespaces, with any number of containers."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack, cast

from orlop.client import again, forward, images, session
from orlop.client.again import START_TIMEOUT
from orlop.client.calls import CriClient
from orlop.client.container import Container
from orlop.client.launch import NamedMount, RunOptions, container_config, log_directory, log_root, pod_config
from orlop.client.options import ContainerKeywords, RunKeywords, launch
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import FailedPrecondition, NotFound
from orlop.host import tasks
from orlop.linux.removal import remove_tree

REMOVE_TIMEOUT = 120.0


async def remove_pod(client: CriClient, pod_id: str, logs: str = "") -> None:
    """Stop and remove a pod; its logs as well, if they lie where pods of this module have theirs."""
    await client.runtime.stop_pod_sandbox(
        pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=REMOVE_TIMEOUT
    )
    await client.runtime.remove_pod_sandbox(
        pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=REMOVE_TIMEOUT
    )
    directory = Path(logs) if logs else None
    if directory is not None and directory.parent == log_root():
        with contextlib.suppress(OSError):
            await asyncio.to_thread(remove_tree, directory)


async def find_pod(client: CriClient, name: str) -> Pod:
    """The pod with that id, unique start of an id, or name. Raises NotFound, InvalidArgument."""
    pod_id = await session.find_pod_id(client, name)
    if not pod_id:
        raise NotFound(f"no pod {name}: `orlop pod ls` lists them")
    request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id)
    return Pod(client, RunOptions(""), (await client.runtime.pod_sandbox_status(request)).status)


def _config_of(there: pb.PodSandboxStatus) -> pb.PodSandboxConfig:
    # The logs of a kubelet's pod are elsewhere, and the kubelet's to remove.
    own = session.RUN_LABEL in there.labels
    logs = log_directory(there.metadata.name, there.metadata.uid) if own else ""
    return pb.PodSandboxConfig(metadata=there.metadata, log_directory=logs)


def _write(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o644)  # users of the container read it


class Pod:
    """A pod that exists within ``async with``: made at its beginning, removed at its end."""

    def __init__(
        self, client: CriClient, wanted: RunOptions, there: pb.PodSandboxStatus | None = None
    ) -> None:
        self._client = client
        self._handler = wanted.handler
        self.name = session.name_of(there) if there else wanted.name or f"orlop-{secrets.token_hex(3)}"
        self.id = there.id if there else ""
        self._config = _config_of(there) if there else pod_config(wanted, self.name, secrets.token_hex(8))

    async def create(self) -> None:
        """Make it, for those who do not use ``async with``; then :meth:`remove` is theirs to call."""
        if self.id:
            raise FailedPrecondition(f"pod {self.name} is there already: call its methods")
        request = pb.RunPodSandboxRequest(config=self._config, runtime_handler=self._handler)
        # The daemon goes on making it for whoever asks again: nobody else would take it back.
        answer = await tasks.wanted_or_undone(
            f"pod {self.name}",
            self._client.runtime.run_pod_sandbox(request, timeout=START_TIMEOUT),
            lambda made: remove_pod(self._client, made.pod_sandbox_id, self._config.log_directory),
        )
        self.id = answer.pod_sandbox_id
        try:
            await again.remember_pod(request)
        except BaseException:
            await tasks.roll_back(f"pod {self.name}", self.remove())
            raise

    async def start(
        self,
        image: str,
        *command: str,
        name: str = "",
        stdin: bool = False,
        **options: Unpack[ContainerKeywords],
    ) -> Container:
        """Start a container in it. The image is fetched if it is not here.

        ``command`` replaces the image's arguments; ``name`` is made up if there is none. With ``stdin``
        the container reads what is written to :meth:`Container.attach`.
        """
        wanted = launch(image, command, cast(RunKeywords, options), interactive=stdin)
        return await self.launch(wanted, name)

    async def launch(self, wanted: RunOptions, name: str = "") -> Container:
        """Start a container as a :class:`RunOptions` describes it. On failure it does not stay behind."""
        if not self.id:
            raise FailedPrecondition(f"pod {self.name} was not made yet: use `async with`, or create()")
        name = name or f"container-{secrets.token_hex(3)}"
        config = container_config(wanted, name, alone=name == self.name)
        if wanted.hosts:
            config.mounts.append(await self._hosts(name, wanted.hosts))
        image = await images.present(self._client, wanted.image)
        config.image.image = image or await images.pull(self._client, wanted.image)
        named = [one for one in wanted.volumes if isinstance(one, NamedMount)]
        if not named:
            return await self._started(config)
        # Most containers have none, and need nothing of what speaks CSI.
        from orlop.client import volumes

        async with volumes.provided(self._client.path, named) as mounts:
            config.mounts.extend(mounts)
            return await self._started(config)

    async def _started(self, config: pb.ContainerConfig) -> Container:
        runtime = self._client.runtime
        request = pb.CreateContainerRequest(
            pod_sandbox_id=self.id, config=config, sandbox_config=self._config
        )
        what = f"container {config.metadata.name}"
        created = await tasks.wanted_or_undone(
            what,
            runtime.create_container(request, timeout=START_TIMEOUT),
            lambda made: Container(self._client, made.container_id, self.id).remove(),
        )
        container = Container(self._client, created.container_id, self.id)
        try:
            await again.remember_container(request)
            await runtime.start_container(
                pb.StartContainerRequest(container_id=container.id), timeout=START_TIMEOUT
            )
        except BaseException:
            await tasks.roll_back(what, container.remove())
            raise
        return container

    async def _hosts(self, name: str, more: Sequence[tuple[str, str]]) -> pb.Mount:
        """An /etc/hosts beside the logs, which goes with them."""
        if not self._config.log_directory:
            raise FailedPrecondition(
                f"pod {self.name} was not made by `orlop`: whoever made it names its hosts"
            )
        own = ((await self.ip() or "127.0.0.1", self._config.hostname or self.name),)
        lines = (("127.0.0.1", "localhost"), ("::1", "localhost"), *own, *((ip, host) for host, ip in more))
        path = Path(self._config.log_directory) / f"{name}.hosts"
        text = "".join(f"{ip}\t{host}\n" for ip, host in lines)
        await asyncio.to_thread(_write, path, text)
        return pb.Mount(container_path="/etc/hosts", host_path=os.fspath(path))

    async def ip(self) -> str:
        """Its address, "" on the host's network."""
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=self.id)
        return str((await self._client.runtime.pod_sandbox_status(request)).status.network.ip)

    async def dial(self, port: int) -> forward.PortStream:
        """Connect to one of its TCP ports."""
        return await forward.dial(self._client, self.id, port)

    def forward(self, port: int, local: int = 0) -> AbstractAsyncContextManager[int]:
        """A port of this machine's loopback that leads to one of the pod's, within ``async with``.

        Any free one for ``local`` 0.
        """
        return forward.listen(self._client, self.id, port, local)

    async def stop(self) -> None:
        """End it and everything in it; its containers and logs stay to be looked at."""
        await self._client.runtime.stop_pod_sandbox(
            pb.StopPodSandboxRequest(pod_sandbox_id=self.id), timeout=REMOVE_TIMEOUT
        )

    async def remove(self) -> None:
        """Stop it, and remove it with everything in it and its logs."""
        await remove_pod(self._client, self.id, self._config.log_directory)

    async def __aenter__(self) -> Self:
        await self.create()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await tasks.uncancelled(self.remove())
