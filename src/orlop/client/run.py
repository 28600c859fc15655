"""One pod with one container, from its image to its exit code."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from pathlib import Path

from orlop.client import images
from orlop.client.calls import CriClient
from orlop.client.channels import Channels
from orlop.client.launch import LOG_NAME, RunOptions, container_config, log_root, pod_config
from orlop.client.logs import POLL
from orlop.client.session import container_status
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.linux.removal import remove_tree

START_TIMEOUT = 240.0


async def remove_pod(client: CriClient, pod_id: str, log_directory: str = "") -> None:
    """Stop and remove a pod; its logs as well, if they lie where ``run`` puts them."""
    await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)
    await client.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id), timeout=120)
    directory = Path(log_directory) if log_directory else None
    if directory is not None and directory.parent == log_root():
        with contextlib.suppress(OSError):
            await asyncio.to_thread(remove_tree, directory)


class Run:
    """One run, from its image to its exit code."""

    def __init__(self, client: CriClient, launch: RunOptions) -> None:
        self._client = client
        self._launch = launch
        self._name = launch.name or f"orlop-{secrets.token_hex(3)}"
        self._pod = pod_config(launch, self._name, secrets.token_hex(8))
        self._container = container_config(launch, self._name)
        self.pod_id = ""
        self.container_id = ""

    @property
    def log(self) -> Path:
        """The container's log file."""
        return Path(self._pod.log_directory) / LOG_NAME

    async def start(self) -> None:
        """Fetch the image if it is not here, make the pod, start the container.

        On failure nothing stays behind but the image.
        """
        wanted = self._launch.image
        image = await images.present(self._client, wanted) or await images.pull(self._client, wanted)
        self._container.image.image = image
        runtime = self._client.runtime
        answer = await runtime.run_pod_sandbox(
            pb.RunPodSandboxRequest(config=self._pod, runtime_handler=self._launch.handler),
            timeout=START_TIMEOUT,
        )
        self.pod_id = answer.pod_sandbox_id
        try:
            created = await runtime.create_container(
                pb.CreateContainerRequest(
                    pod_sandbox_id=self.pod_id, config=self._container, sandbox_config=self._pod
                ),
                timeout=START_TIMEOUT,
            )
            self.container_id = created.container_id
            await runtime.start_container(
                pb.StartContainerRequest(container_id=self.container_id), timeout=START_TIMEOUT
            )
        except BaseException:
            await self.discard()
            raise

    async def discard(self) -> None:
        """Remove the pod and its logs."""
        await remove_pod(self._client, self.pod_id, self._pod.log_directory)

    async def _status(self) -> pb.ContainerStatus:
        return await container_status(self._client, self.container_id)

    async def exited(self) -> bool:
        """Whether the container has ended."""
        return (await self._status()).state == pb.CONTAINER_EXITED

    async def exit_code(self) -> int:
        """The container's exit code, once it has ended."""
        while True:
            status = await self._status()
            if status.state == pb.CONTAINER_EXITED:
                return status.exit_code
            await asyncio.sleep(POLL)

    async def attach(self, *, output: bool) -> Channels:
        """The container's streams: what it is to read, and with ``output`` what it writes from now on."""
        request = pb.AttachRequest(
            container_id=self.container_id,
            stdin=self._launch.interactive,
            tty=self._launch.tty,
            stdout=output,
            stderr=output and not self._launch.tty,
        )
        answer = await self._client.runtime.attach(request)
        return await Channels.open(answer.url)

    async def stop(self, grace: float = 10.0) -> None:
        """Ask the container to end, and kill it ``grace`` seconds later."""
        request = pb.StopContainerRequest(container_id=self.container_id, timeout=int(grace))
        await self._client.runtime.stop_container(request, timeout=grace + 60)

    async def stop_pod(self) -> None:
        """End the pod, whose container and log stay to be looked at."""
        await self._client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=self.pod_id))
