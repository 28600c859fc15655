"""``orlop node switch``: exchange the kubelet's runtime. ``orlop-switch.service`` runs it on the node itself.

The pods of one runtime mean nothing to another: those of the runtime that is left are ended, while no kubelet
could start them again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from orlop.cli.node import kubelet
from orlop.cli.node.host import NodeHost
from orlop.client.calls import CriClient
from orlop.config import load
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import FailedPrecondition, OrlopError

READY_TIMEOUT = 600.0
"""Seconds for the guest image and the template of a machine that has never had any."""


async def switch_command(host: NodeHost) -> None:
    """``orlop node switch``: to what the kubelet is told to use."""
    own = f"unix://{load().socket}"
    left = kubelet.endpoint(host) if kubelet.used(host) else own
    if kubelet.used(host):
        await ready(own)
    await host.systemctl("daemon-reload")
    await host.systemctl("stop", "kubelet")
    try:
        if (count := await end_pods(left)) is not None:
            print(f"{count} pods of {left} have ended")
    finally:
        await host.systemctl("start", "kubelet")


async def ready(endpoint: str, timeout: float = READY_TIMEOUT) -> None:
    """Return when the runtime can run pods. Raises FailedPrecondition after ``timeout`` seconds."""
    loop = asyncio.get_running_loop()
    end = loop.time() + timeout
    while True:
        try:
            async with CriClient(_path(endpoint)) as client:
                status = await client.runtime.status(pb.StatusRequest(), timeout=30)
            found = status.status.conditions
            bad = [one.message for one in found if one.type == "RuntimeReady" and not one.status]
        except OrlopError as error:
            bad = [str(error)]
        if not bad:
            return
        if loop.time() > end:
            raise FailedPrecondition(f"{endpoint} cannot run pods after {timeout:g} seconds: {bad[0]}")
        await asyncio.sleep(1)


async def end_pods(endpoint: str) -> int | None:
    """Stop and remove all pods of a runtime; how many, None when it is not there.

    Raises FailedPrecondition when some did not end; the others have.
    """
    if not _path(endpoint).is_socket():
        return None
    failed = []
    async with CriClient(_path(endpoint)) as client:
        pods = (await client.runtime.list_pod_sandbox(pb.ListPodSandboxRequest())).items
        for one in pods:
            try:
                await client.runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=one.id))
                await client.runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=one.id))
            except OrlopError as error:
                failed.append(f"{one.metadata.namespace}/{one.metadata.name}: {error}")
    if failed:
        raise FailedPrecondition(f"{len(failed)} of {len(pods)} pods of {endpoint} did not end: {failed[0]}")
    return len(pods)


def _path(endpoint: str) -> Path:
    return Path(endpoint.removeprefix("unix://"))
