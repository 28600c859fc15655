"""How a container is run again: CRI has no restart, and does not tell how a container was made.

So the requests of those that this client makes stand beside their logs, for root alone, and go with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
from collections.abc import AsyncIterator, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from orlop.client.calls import CriClient
from orlop.client.launch import REMOVAL, log_root
from orlop.client.session import NAME_LABEL, RUN_LABEL, container_status, name_of
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import FailedPrecondition, NotFound
from orlop.host import files, tasks

START_TIMEOUT = 240.0

M = TypeVar("M", bound=Message)

_POD = "pod.request"


async def remember_pod(request: pb.RunPodSandboxRequest) -> None:
    """Note how a pod was made."""
    await _save(request.config.log_directory, _POD, request)


async def remember_container(request: pb.CreateContainerRequest) -> None:
    """Note how a container was made."""
    name = f"{request.config.metadata.name}.request"
    await _save(request.sandbox_config.log_directory, name, request)


async def _save(directory: str, name: str, request: Message) -> None:
    if directory:
        # Without it the container runs as well; it is only not known how to run it again.
        with contextlib.suppress(OSError):
            await asyncio.to_thread(files.save, Path(directory) / name, request.SerializeToString())


async def run_again(client: CriClient, container_id: str, grace: float) -> tuple[str, str]:
    """Stop a container if it runs, and make and start another like it; its id and its pod's.

    The other has the same name and log. If its pod was there for it alone and has ended, that is made anew,
    too. Raises FailedPrecondition for one that this client did not make.
    """
    before = await container_status(client, container_id)
    if REMOVAL in before.annotations:
        raise FailedPrecondition(
            f"container {container_id[:13]} was made with --rm and goes when it ends: run it anew"
        )
    directory = Path(before.log_path).parent
    path = directory / f"{before.metadata.name}.request"
    if directory.parent != log_root() or not path.exists():
        raise FailedPrecondition(
            f"container {container_id[:13]} was not made by `orlop run`: whoever made it runs it again"
        )
    async with contextlib.AsyncExitStack() as held:
        held.enter_context(_alone(path, container_id))
        request = _read(path, pb.CreateContainerRequest)
        # From before its old container lets go of them: they may not be removed in between.
        await held.enter_async_context(_with_its_volumes(client, request))
        request.config.metadata.attempt = before.metadata.attempt + 1
        _keep_name(request.config.labels, before.labels)
        await client.runtime.stop_container(
            pb.StopContainerRequest(container_id=container_id, timeout=int(grace)), timeout=grace + 60
        )
        # The request is that of the first pod, which may have been made anew since.
        found = pb.PodSandboxStatusRequest(pod_sandbox_id=await _pod_of(client, container_id))
        pod = (await client.runtime.pod_sandbox_status(found)).status
        request.pod_sandbox_id = pod.id
        if pod.state == pb.SANDBOX_READY:
            started = await _started(client, request)
            old = pb.RemoveContainerRequest(container_id=container_id)
            await client.runtime.remove_container(old)
            return started, pod.id
        return await _in_a_pod_of_its_own(
            client, request, pod, _read(directory / _POD, pb.RunPodSandboxRequest)
        )


@contextlib.asynccontextmanager
async def _with_its_volumes(client: CriClient, request: pb.CreateContainerRequest) -> AsyncIterator[None]:
    """Have its named volumes where it expects them. Raises NotFound for one that was removed."""
    if not request.config.mounts:
        yield
        return
    # Most containers have none, and need nothing of what speaks CSI.
    from orlop.client import volumes

    wanted = volumes.named(client.path, request.config.mounts)
    async with volumes.provided(client.path, wanted):
        yield


def _keep_name(request: MutableMapping[str, str], shown: Mapping[str, str]) -> None:
    """It is made as it was made first, but for the name that it has been given since."""
    request.update({key: shown[key] for key in (RUN_LABEL, NAME_LABEL) if key in shown})


async def _pod_of(client: CriClient, container_id: str) -> str:
    wanted = pb.ListContainersRequest()
    wanted.filter.id = container_id
    found = (await client.runtime.list_containers(wanted)).containers
    if not found:
        raise NotFound(f"container {container_id[:13]} was removed meanwhile")
    return str(found[0].pod_sandbox_id)


async def _in_a_pod_of_its_own(
    client: CriClient,
    request: pb.CreateContainerRequest,
    old: pb.PodSandboxStatus,
    pod: pb.RunPodSandboxRequest,
) -> tuple[str, str]:
    name = old.labels.get(RUN_LABEL)
    if name is None or request.config.labels.get(RUN_LABEL) != name:
        raise FailedPrecondition(f"pod {name_of(old)} has ended with all its containers: make it anew")
    _keep_name(pod.config.labels, old.labels)
    pod.config.metadata.attempt = old.metadata.attempt + 1
    made = await tasks.wanted_or_undone(
        f"pod {name}",
        client.runtime.run_pod_sandbox(pod, timeout=START_TIMEOUT),
        lambda made: _remove_pod(client, made.pod_sandbox_id),
    )
    request.pod_sandbox_id = made.pod_sandbox_id
    try:
        started = await _started(client, request)
    except BaseException:
        await tasks.roll_back(f"pod {name}", _remove_pod(client, made.pod_sandbox_id))
        raise
    await _remove_pod(client, old.id)
    return started, made.pod_sandbox_id


async def _started(client: CriClient, request: pb.CreateContainerRequest) -> str:
    what = f"container {request.config.metadata.name}"

    async def remove(made: pb.CreateContainerResponse) -> None:
        await client.runtime.remove_container(pb.RemoveContainerRequest(container_id=made.container_id))

    created = await tasks.wanted_or_undone(
        what, client.runtime.create_container(request, timeout=START_TIMEOUT), remove
    )
    started = pb.StartContainerRequest(container_id=created.container_id)
    try:
        await client.runtime.start_container(started, timeout=START_TIMEOUT)
    except BaseException:
        await tasks.roll_back(what, remove(created))
        raise
    return str(created.container_id)


async def _remove_pod(client: CriClient, pod_id: str) -> None:
    await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    await client.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))


@contextlib.contextmanager
def _alone(path: Path, container_id: str) -> Iterator[None]:
    """Two at one time would take each other's container away."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise FailedPrecondition(f"container {container_id[:13]} is being restarted already") from None
    finally:
        os.close(descriptor)


def _read(path: Path, kind: type[M]) -> M:
    request = kind()
    try:
        request.ParseFromString(path.read_bytes())
    except (OSError, DecodeError) as error:
        raise FailedPrecondition(
            f"{path}, which says how to run this again, cannot be read: {error}"
        ) from error
    return request
