"""``orlop debug``: all that is known of a pod, in one archive for whoever looks into it.

It has containers' environment and output in it: it is for those who may see them.
"""

from __future__ import annotations

import io
import json
import os
import platform
import shutil
import tarfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from orlop.cli import output
from orlop.cli.observe import waterfall
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import OrlopError
from orlop.host import process

MOST = 4 << 20
"""Bytes of a log that are taken: its end."""

_JOURNAL = ("journalctl", "--no-pager", "-o", "short-precise", "-n", "20000", "-u")


async def debug_command(socket: str, name: str, target: Path | None, *, as_json: bool) -> None:
    """``orlop debug``: write the archive; print its name, or what is in it as JSON."""
    async with session.connect(socket) as client:
        pod = await waterfall.pod_of(client, name)
        pod_id = pod.facts["pod"]
        path = target or Path(f"orlop-debug-{pod_id[:13]}.tar.gz")
        members = await collect(client, pod_id)
    if pod.calls:
        members["start.html"] = waterfall.page(pod).encode()
    write(path, f"orlop-debug-{pod_id[:13]}", members)
    if as_json:
        output.print_json({"file": str(path), "members": {key: len(data) for key, data in members.items()}})
    else:
        print(path)


async def collect(client: CriClient, pod_id: str) -> dict[str, bytes]:
    """The archive's files by name. What cannot be had leaves a file that says why."""
    members: dict[str, bytes] = {}

    async def take(name: str, work: Callable[[], Awaitable[bytes]]) -> None:
        try:
            members[name] = await work()
        except (OrlopError, OSError, ValueError) as error:
            members[f"{name}.error"] = f"{error}\n".encode()

    pod = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
    status = output.message_to_dict(await client.runtime.pod_sandbox_status(pod))
    members["pod.json"] = _json(status)
    runtime = output.message_to_dict(await client.runtime.status(pb.StatusRequest(verbose=True)))
    members["node.json"] = _json(runtime | {"host": platform.uname()._asdict()})

    async def statistics() -> bytes:
        request = pb.PodSandboxStatsRequest(pod_sandbox_id=pod_id)
        return _json(output.message_to_dict(await client.runtime.pod_sandbox_stats(request)))

    async def metrics() -> bytes:
        answer = await client.runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())
        found = [one for one in answer.pod_metrics if one.pod_sandbox_id == pod_id]
        return _json([output.message_to_dict(one) for one in found])

    # What the guest's kernel counts, and the host of its VM.
    await take("guest/stats.json", statistics)
    await take("guest/metrics.json", metrics)
    info = status.get("info", {})
    if info.get("info", {}).get("sandbox", {}).get("vm"):
        # A guest that was cloned has said nothing yet: its kernel had begun before.
        members["guest/console.log"] = info.get("console", {}).get("tail", "").encode()
    request = pb.ListContainersRequest()
    request.filter.pod_sandbox_id = pod_id
    for one in (await client.runtime.list_containers(request)).containers:
        await _container(client, one, take)
    await take("daemon.log", lambda: _daemon_log(pod_id))
    return members


async def _container(
    client: CriClient,
    container: pb.Container,
    take: Callable[[str, Callable[[], Awaitable[bytes]]], Awaitable[None]],
) -> None:
    name = f"containers/{container.metadata.name}-{container.id[:13]}"
    log_path = ""

    async def describe() -> bytes:
        nonlocal log_path
        request = pb.ContainerStatusRequest(container_id=container.id, verbose=True)
        answer = await client.runtime.container_status(request)
        log_path = answer.status.log_path
        return _json(output.message_to_dict(answer))

    await take(f"{name}/container.json", describe)
    if log_path:
        await take(f"{name}/output.log", lambda: _tail(Path(log_path)))


async def _daemon_log(pod_id: str) -> bytes:
    """What the daemon's unit has logged, where systemd runs it; lines about this pod first."""
    if shutil.which("journalctl") is None:
        raise ValueError("there is no journalctl here: the log is wherever orlopd's stderr goes")
    done = await process.run([*_JOURNAL, "orlopd"], timeout=60)
    lines = done.stdout.splitlines(keepends=True)
    short = pod_id[:12].encode()
    return b"".join([*(line for line in lines if short in line), b"\n", *lines])[-MOST:]


async def _tail(path: Path) -> bytes:
    # Nobody's link, and no FIFO that never ends: root reads this.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - MOST))
        return file.read(MOST)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def write(path: Path, top: str, members: dict[str, bytes]) -> None:
    """Write the archive, readable to its owner alone."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
        for name, data in sorted(members.items()):
            entry = tarfile.TarInfo(f"{top}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(time.time()), 0o600
            archive.addfile(entry, io.BytesIO(data))
