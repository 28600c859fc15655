"""What the servicers call: the verbs of ``pods``, an image store and the streaming server.

These Protocols are all that this room knows of them. Everything raises :mod:`orlop.errors` only.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from orlop.images.model import FsInfo, Image, PullProgress, RegistryAuth
from orlop.pods.records import (
    ContainerFilter,
    ContainerRecord,
    ContainerUse,
    Event,
    Handler,
    PodFilter,
    PodRecord,
    PodUse,
)
from orlop.pods.requests import ContainerRequest
from orlop.sandbox.spec import PodSpec, Resources


class Output(Protocol):
    """What a command that ran to its end left behind."""

    @property
    def stdout(self) -> bytes:
        """Standard output, bounded."""
        ...

    @property
    def stderr(self) -> bytes:
        """Standard error, bounded."""
        ...

    @property
    def exit_code(self) -> int:
        """The exit code, 128 + signal for a death by signal."""
        ...


class Pods(Protocol):
    """Pods and containers. An id may be the full one or a unique prefix of it."""

    async def run_pod(self, spec: PodSpec) -> str:
        """Start a pod; its id."""
        ...

    async def stop_pod(self, pod_id: str) -> None:
        """Kill what runs in the pod and release its network. Idempotent."""
        ...

    async def remove_pod(self, pod_id: str) -> None:
        """Remove the pod and its containers. Idempotent."""
        ...

    def pod(self, pod_id: str) -> PodRecord:
        """One pod. Raises NotFound."""
        ...

    def pods(self, filter: PodFilter) -> Sequence[PodRecord]:  # noqa: A002 - CRI's word
        """The pods that match; a record that did not change is the same object again."""
        ...

    def pod_info(self, pod_id: str) -> dict[str, object]:
        """For verbose status."""
        ...

    async def update_pod_resources(self, pod_id: str, overhead: Resources, resources: Resources) -> None:
        """Change the limits of the pod as a whole."""
        ...

    async def create_container(self, request: ContainerRequest) -> str:
        """Make a container ready to start; its id."""
        ...

    async def start_container(self, container_id: str) -> None:
        """Run the container's process."""
        ...

    async def stop_container(self, container_id: str, timeout: float) -> None:
        """Stop signal, then KILL after ``timeout`` seconds. Idempotent."""
        ...

    async def remove_container(self, container_id: str) -> None:
        """Remove the container, killing it first. Idempotent."""
        ...

    def container(self, container_id: str) -> ContainerRecord:
        """One container. Raises NotFound."""
        ...

    def containers(self, filter: ContainerFilter) -> Sequence[ContainerRecord]:  # noqa: A002
        """The containers that match; a record that did not change is the same object again."""
        ...

    def container_info(self, container_id: str) -> dict[str, object]:
        """For verbose status."""
        ...

    async def update_container(self, container_id: str, resources: Resources) -> None:
        """Change the container's limits."""
        ...

    async def reopen_log(self, container_id: str) -> None:
        """Close and reopen the container's log file."""
        ...

    async def exec_sync(self, container_id: str, args: tuple[str, ...], timeout: float) -> Output:
        """Run a command to its end. DeadlineExceeded after ``timeout`` seconds, 0 for no limit."""
        ...

    async def container_stats(self, container_id: str) -> ContainerUse:
        """What one container uses."""
        ...

    async def list_container_stats(self, filter: ContainerFilter) -> Sequence[ContainerUse]:  # noqa: A002
        """What the running containers that match use."""
        ...

    async def pod_stats(self, pod_id: str) -> PodUse:
        """What one pod uses."""
        ...

    async def list_pod_stats(self, filter: PodFilter) -> Sequence[PodUse]:  # noqa: A002
        """What the ready pods that match use."""
        ...

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on."""
        ...

    async def handlers(self) -> Sequence[Handler]:
        """The RuntimeClass handlers."""
        ...

    async def runtime_reason(self) -> str:
        """Why a pod that names no handler cannot be run now, or ""."""
        ...

    async def network_reason(self) -> str:
        """Why pods would get no network now, or ""."""
        ...


class Streaming(Protocol):
    """Prepares sessions and answers with the URL where each can be had."""

    def exec_url(
        self, container_id: str, args: tuple[str, ...], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        """A URL for one exec."""
        ...

    def attach_url(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        """A URL for one attach."""
        ...

    def port_forward_url(self, pod_id: str, ports: tuple[int, ...]) -> str:
        """A URL for one port-forward connection."""
        ...


class Metrics(Protocol):
    """Measures calls."""

    def rpc(self, name: str) -> AbstractContextManager[None]:
        """Around one call."""
        ...


class Images(Protocol):
    """The image store."""

    def list(self) -> Sequence[Image]:
        """Every image."""
        ...

    def status(self, reference: str) -> Image | None:
        """The image of that reference or id, if it is here."""
        ...

    async def pull(
        self,
        reference: str,
        auth: RegistryAuth | None = None,
        progress: Callable[[PullProgress], None] | None = None,
    ) -> Image:
        """Fetch an image; ``progress`` is told how far it is, some times a second."""
        ...

    async def remove(self, reference: str) -> None:
        """Remove an image and all of its names. Idempotent."""
        ...

    async def fs_info(self) -> FsInfo:
        """Space taken by images."""
        ...
