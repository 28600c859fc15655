"""``orlop inspect``: everything about one thing; with ``--format`` in the words of podman's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from orlop.cli import formats, output
from orlop.cli.formats import Bytes, moment
from orlop.cli.problems import CliError
from orlop.cli.ps import shown_address
from orlop.client import session
from orlop.client.calls import CriClient
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import NotFound

Document = dict[str, Any]


async def inspect_command(socket: str, names: Sequence[str], kind: str, text: str) -> None:
    """``orlop inspect``: containers, pods or images, whichever has that name, or only those of a ``kind``."""
    async with session.connect(socket) as client:
        found = [await _found(client, name, kind) for name in names]
    if not text:
        for document, _ in found:
            output.print_json(document)
        return
    formats.show_documents(text, [described for _, described in found])


async def _found(client: CriClient, name: str, kind: str) -> tuple[Document, Document]:
    """The daemon's answers, and the same as podman has it."""
    if kind in ("", "container"):
        try:
            container = await session.find_container(client, name)
        except NotFound:
            if kind:
                raise
        else:
            return await _container(client, container)
    if kind in ("", "pod") and (pod_id := await session.find_pod_id(client, name)):
        return await _pod(client, pod_id)
    if kind in ("", "image"):
        request = pb.ImageStatusRequest(image=pb.ImageSpec(image=name), verbose=True)
        image = await client.images.image_status(request)
        if image.HasField("image"):
            answer = output.message_to_dict(image)
            return answer, _described_image(image.image, answer.get("info", {}).get("info", {}))
    what = f"no {kind}" if kind else "no container, pod or image"
    raise CliError(f"nothing here is called {name}: {what}")


async def _container(client: CriClient, one: pb.Container) -> tuple[Document, Document]:
    wanted = pb.ContainerStatusRequest(container_id=one.id, verbose=True)
    told = await client.runtime.container_status(wanted)
    status = output.message_to_dict(told)
    pod = await _pod_answer(client, one.pod_sandbox_id)
    told_pod = output.message_to_dict(pod)
    described = _described_container(told.status, status.get("info", {}).get("info", {}))
    described.update(
        Pod=one.pod_sandbox_id,
        PodName=session.name_of(pod.status),
        NetworkSettings=_network(pod.status, told_pod.get("info", {}).get("info", {})),
    )
    return {"container": status, "pod": told_pod}, described


async def _pod_answer(client: CriClient, pod_id: str) -> pb.PodSandboxStatusResponse:
    wanted = pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True)
    answer: pb.PodSandboxStatusResponse = await client.runtime.pod_sandbox_status(wanted)
    return answer


async def _pod(client: CriClient, pod_id: str) -> tuple[Document, Document]:
    told = await _pod_answer(client, pod_id)
    answer = output.message_to_dict(told)
    info = answer.get("info", {}).get("info", {})
    wanted = pb.ListContainersRequest()
    wanted.filter.pod_sandbox_id = pod_id
    members = (await client.runtime.list_containers(wanted)).containers
    status = told.status
    described = {
        "Id": status.id,
        "Name": session.name_of(status),
        "Namespace": status.metadata.namespace,
        "Created": moment(status.created_at),
        "State": "ready" if status.state == pb.SANDBOX_READY else "ended",
        "Handler": info.get("handler", status.runtime_handler),
        "Labels": dict(status.labels),
        "NumContainers": len(members),
        "Containers": [
            {"Id": one.id, "Name": session.name_of(one), "State": session.STATES.get(one.state, "unknown")}
            for one in members
        ],
        "NetworkSettings": _network(status, info),
    }
    return answer, described


def _network(status: pb.PodSandboxStatus, info: Mapping[str, Any]) -> Document:
    ports = {
        f"{one['inside']}/{one['protocol'].lower()}": shown_address(one) for one in info.get("ports") or ()
    }
    return {
        "IPAddress": status.network.ip,
        "AdditionalIPs": [one.ip for one in status.network.additional_ips],
        "Ports": ports,
    }


def _described_container(status: pb.ContainerStatus, info: Mapping[str, Any]) -> Document:
    spec = info.get("runtimeSpec", {})
    process = spec.get("process", {})
    user = process.get("user", {})
    limits = status.resources.linux
    return {
        "Id": status.id,
        "Name": session.name_of(status),
        "Created": moment(status.created_at),
        "Image": status.image_id,
        "ImageName": status.image.user_specified_image or status.image.image,
        "Path": next(iter(process.get("args", ())), ""),
        "Args": list(process.get("args", ()))[1:],
        "State": _state(status, info),
        "Config": {
            "Hostname": spec.get("hostname", ""),
            "User": f"{user['uid']}:{user['gid']}" if "uid" in user and "gid" in user else "",
            "Env": list(process.get("env", ())),
            "Cmd": list(process.get("args", ())),
            "WorkingDir": process.get("cwd", ""),
            "Tty": bool(process.get("terminal", False)),
            "Labels": dict(status.labels),
            "Annotations": dict(status.annotations),
            "StopSignal": pb.Signal.Name(status.stop_signal),
            "Healthcheck": info.get("health", {}).get("check", {}),
        },
        "HostConfig": {
            "Memory": limits.memory_limit_in_bytes,
            "CpuPeriod": limits.cpu_period,
            "CpuQuota": limits.cpu_quota,
            "CpuShares": limits.cpu_shares,
            "ReadonlyRootfs": bool(spec.get("root", {}).get("readonly", False)),
        },
        "Mounts": [
            {"Source": one.host_path, "Destination": one.container_path, "RW": not one.readonly}
            for one in status.mounts
        ],
        "RestartCount": status.metadata.attempt + info.get("restarts", 0),
        "LogPath": status.log_path,
        "Handler": info.get("handler", ""),
    }


def _state(status: pb.ContainerStatus, info: Mapping[str, Any]) -> Document:
    state = session.STATES.get(status.state, "unknown")
    still = bool(info.get("paused")) and state == "running"
    return {
        "Status": "paused" if still else state,
        "Running": state == "running",
        "Paused": still,
        "ExitCode": status.exit_code,
        "OOMKilled": status.reason == "OOMKilled",
        "Reason": status.reason,
        "Error": status.message,
        "Pid": info.get("pid", 0),
        "StartedAt": moment(status.started_at),
        "FinishedAt": moment(status.finished_at),
        "Health": _health(info.get("health", {})),
    }


def _health(told: Mapping[str, Any]) -> Document:
    """Of a container that nobody checks, the status is ""."""
    return {
        "Status": told.get("status", ""),
        "FailingStreak": told.get("failingStreak", 0),
        "Log": [
            {
                "Start": moment(one["start"]),
                "End": moment(one["end"]),
                "ExitCode": one["exitCode"],
                "Output": one["output"],
            }
            for one in told.get("log", ())
        ],
    }


def _described_image(image: pb.Image, info: Mapping[str, Any]) -> Document:
    told = info.get("imageSpec", {})
    config = told.get("config", {})
    return {
        "Id": image.id,
        "RepoTags": list(image.repo_tags),
        "RepoDigests": list(image.repo_digests),
        "Created": told.get("created", ""),
        "Size": Bytes(image.size),
        "Architecture": told.get("architecture", ""),
        "Os": told.get("os", ""),
        "User": config.get("User", ""),
        "Labels": config.get("Labels", {}),
        "Config": config,
        "Layers": info.get("layers", 0),
        "Pinned": image.pinned,
    }
