"""A connection to the daemon, and what is looked up through it."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

from orlop.client.calls import Connected, CriClient
from orlop.config import load
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument, NotFound, PermissionDenied, Unavailable
from orlop.host.tasks import together

C = TypeVar("C", bound=Connected)

RUN_LABEL = "io.orlop.cli"
"""Label of the pods that :class:`orlop.client.pod.Pod` makes; the value is the name people gave it."""

NAME_LABEL = "io.orlop.name"
"""Label of a container that was given another name than it was made with, and is not alone in its pod."""

NAMESPACE = "orlop"

STATES = {
    pb.CONTAINER_CREATED: "created",
    pb.CONTAINER_RUNNING: "running",
    pb.CONTAINER_EXITED: "exited",
    pb.CONTAINER_UNKNOWN: "unknown",
}
"""What states of containers are called."""

EVENTS = {
    pb.CONTAINER_CREATED_EVENT: "created",
    pb.CONTAINER_STARTED_EVENT: "started",
    pb.CONTAINER_STOPPED_EVENT: "stopped",
    pb.CONTAINER_DELETED_EVENT: "deleted",
}
"""What kinds of events are called."""


def socket_path(given: str = "") -> str:
    """The daemon's socket: the option, ``$ORLOP_SOCKET``, or the one in the configuration file.

    Raises InvalidArgument when that is not valid.
    """
    if chosen := given or os.environ.get("ORLOP_SOCKET", ""):
        return chosen.removeprefix("unix://")
    return load().socket


def existing(given: str = "") -> Path:
    """The daemon's socket. Raises Unavailable when there is none, PermissionDenied when it is not for us."""
    path = socket_path(given)
    if not Path(path).exists():
        raise Unavailable(f"no daemon listens on {path}: start orlopd, or name its socket with --socket")
    if not os.access(path, os.W_OK):
        raise PermissionDenied(f"you may not use the socket {path}: run this as root")
    return Path(path)


@overload
def connect(given: str = "") -> AbstractAsyncContextManager[CriClient]: ...
@overload
def connect(given: str, kind: Callable[[Path], C]) -> AbstractAsyncContextManager[C]: ...
@asynccontextmanager
async def connect(given: str = "", kind: Callable[[Path], Any] = CriClient) -> AsyncIterator[Any]:
    """A client of the running daemon. Raises Unavailable when there is none, PermissionDenied for others."""
    async with kind(existing(given)) as client:
        yield client


class Labelled(Protocol):
    """What has labels and metadata: pods and containers, in lists and in answers about one."""

    @property
    def labels(self) -> Mapping[str, str]: ...  # noqa: D102
    @property
    def metadata(self) -> Any: ...  # noqa: D102


def name_of(one: Labelled) -> str:
    """What people call a pod or a container."""
    return one.labels.get(RUN_LABEL) or one.labels.get(NAME_LABEL) or str(one.metadata.name)


def _matches(containers: Iterable[pb.Container], name: str) -> list[pb.Container]:
    found = list(containers)
    tests: tuple[Callable[[pb.Container], bool], ...] = (
        lambda one: one.id == name,
        lambda one: one.labels.get(RUN_LABEL) == name,
        lambda one: name_of(one) == name,
        lambda one: one.pod_sandbox_id == name,
        lambda one: len(name) >= 3 and one.id.startswith(name),
        lambda one: len(name) >= 3 and one.pod_sandbox_id.startswith(name),
    )
    for test in tests:
        hits = [one for one in found if test(one)]
        if hits:
            return hits
    return []


async def find_container(client: CriClient, name: str) -> pb.Container:
    """The container with that id, unique start of an id, or name. Raises NotFound, InvalidArgument."""
    answer = await client.runtime.list_containers(pb.ListContainersRequest())
    hits = _matches(answer.containers, name)
    if not hits:
        raise NotFound(f"no container {name}: `orlop ps -a` lists them")
    if len(hits) > 1:
        # A pod's or a name's newest container is meant, when only one of them runs.
        running = [one for one in hits if one.state == pb.CONTAINER_RUNNING]
        if len(running) == 1:
            return running[0]
        choices = ", ".join(f"{one.id[:13]} ({name_of(one)})" for one in hits[:5])
        raise InvalidArgument(f"{name} can be one of {len(hits)} containers, say which by id: {choices}")
    return hits[0]


async def find_pod_id(client: CriClient, name: str) -> str:
    """The id of the pod with that id, start of an id, or name; "" when there is none."""
    answer = await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
    hits = [
        one.id
        for one in answer.items
        if one.id == name or name_of(one) == name or (len(name) >= 3 and one.id.startswith(name))
    ]
    if len(hits) > 1:
        raise InvalidArgument(
            f"{name} can be one of {len(hits)} pods, say which by id: {', '.join(hits[:5])}"
        )
    return hits[0] if hits else ""


async def container_status(client: CriClient, container_id: str) -> pb.ContainerStatus:
    """The status of a container."""
    request = pb.ContainerStatusRequest(container_id=container_id)
    answer: pb.ContainerStatusResponse = await client.runtime.container_status(request)
    return answer.status


async def handlers_of(client: CriClient, pods: Sequence[pb.PodSandbox]) -> dict[str, str]:
    """The handlers of pods by their ids, "" for one that is just going away.

    Lists tell the one that was asked for: for the daemon's own choice each pod is asked.
    """

    async def chosen(pod: pb.PodSandbox) -> str:
        request = pb.PodSandboxStatusRequest(pod_sandbox_id=pod.id, verbose=True)
        try:
            answer = await client.runtime.pod_sandbox_status(request)
        except NotFound:
            return ""
        return str(json.loads(answer.info.get("info", "{}")).get("handler", ""))

    unsaid = [pod for pod in pods if not pod.runtime_handler]
    found = await together(*(chosen(pod) for pod in unsaid))
    told = dict(zip((pod.id for pod in unsaid), found, strict=True))
    return {pod.id: pod.runtime_handler or told[pod.id] for pod in pods}
