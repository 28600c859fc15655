"""podman behind the calls that the benchmark makes of a CRI runtime.

podman has no CRI: what a kubelet would ask of one is translated into the requests of its own REST API
that do the same work. A sandbox is a pod with its infra container started, and ExecSync is the three
requests that podman's own remote client makes for an exec.
"""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from orlop.cri.api import runtime_v1_pb2 as pb

VERSION = "v4.0.0"
# What precedes each piece of an attached stream: its number, three zeros, its length.
_FRAME_HEAD = 8
_STDERR = 2


class NotFound(RuntimeError):
    """podman knows no such object."""


class _Connection(http.client.HTTPConnection):
    """HTTP over a socket of the host's file system."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("podman", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect; http.client calls it when the first request is sent."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Podman:
    """``client.call("RunPodSandbox", request_message)`` returns the response message, as CRI's would."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._calls: dict[str, Callable[[Any, float], Any]] = {
            "Status": self._status,
            "PullImage": self._pull,
            "RunPodSandbox": self._run_pod,
            "CreateContainer": self._create,
            "StartContainer": self._start,
            "ExecSync": self._exec,
            "StopPodSandbox": self._stop_pod,
            "RemovePodSandbox": self._remove_pod,
        }
        # The directory of each pod's logs, which CRI tells when the pod is made.
        self._logs: dict[str, str] = {}

    def call(self, name: str, request: Any, timeout: float = 180.0) -> Any:
        """One CRI call; raises RuntimeError with podman's own message."""
        return self._calls[name](request, timeout)

    def close(self) -> None:
        """Nothing stays open between calls."""

    def _send(self, method: str, path: str, body: object = None, *, timeout: float) -> bytes:
        connection = _Connection(self._path, timeout)
        try:
            content = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"} if content else {}
            connection.request(method, f"/{VERSION}/libpod/{path}", content, headers)
            response = connection.getresponse()
            answer = response.read()
        except http.client.HTTPException as error:
            raise RuntimeError(f"podman: {method} {path}: {type(error).__name__} {error}") from error
        finally:
            connection.close()
        if response.status >= 400:
            kind = NotFound if response.status == 404 else RuntimeError
            raise kind(f"podman: {method} {path}: {response.status} {answer.decode(errors='replace')}")
        return answer

    def _status(self, _request: pb.StatusRequest, timeout: float) -> pb.StatusResponse:
        self._send("GET", "info", timeout=timeout)
        conditions = [
            pb.RuntimeCondition(type=name, status=True) for name in ("RuntimeReady", "NetworkReady")
        ]
        return pb.StatusResponse(status=pb.RuntimeStatus(conditions=conditions))

    def _pull(self, request: pb.PullImageRequest, timeout: float) -> pb.PullImageResponse:
        query = urlencode({"reference": request.image.image, "quiet": "true"})
        # A failure comes as a line of a stream whose status said that all was well.
        answer = self._send("POST", f"images/pull?{query}", timeout=timeout)
        lines = [json.loads(line) for line in answer.splitlines() if line.strip()]
        for line in lines:
            if line.get("error"):
                raise RuntimeError(f"podman: pull of {request.image.image}: {line['error']}")
        return pb.PullImageResponse(image_ref=next((str(line["id"]) for line in lines if "id" in line), ""))

    def _run_pod(self, request: pb.RunPodSandboxRequest, timeout: float) -> pb.RunPodSandboxResponse:
        config = request.config
        body = {"name": config.metadata.name, "hostname": config.hostname, "labels": dict(config.labels)}
        pod_id = str(json.loads(self._send("POST", "pods/create", body, timeout=timeout))["Id"])
        self._logs[pod_id] = config.log_directory
        try:
            answer = json.loads(self._send("POST", f"pods/{pod_id}/start", timeout=timeout))
            if answer.get("Errs"):
                raise RuntimeError(f"podman: start of the pod: {answer['Errs']}")
        except (RuntimeError, OSError):
            self._send("DELETE", f"pods/{pod_id}?force=true", timeout=timeout)
            raise
        return pb.RunPodSandboxResponse(pod_sandbox_id=pod_id)

    def _create(self, request: pb.CreateContainerRequest, timeout: float) -> pb.CreateContainerResponse:
        config = request.config
        log = Path(self._logs[request.pod_sandbox_id]) / request.pod_sandbox_id[:12] / config.log_path
        # conmon makes the file and no directory.
        log.parent.mkdir(parents=True, exist_ok=True)
        body = {
            "name": f"{config.metadata.name}-{request.pod_sandbox_id[:12]}",
            "pod": request.pod_sandbox_id,
            "image": config.image.image,
            "entrypoint": list(config.command),
            "command": list(config.args),
            # For podman a timeout of 0 in the stop of a pod is none given, and CRI stops without mercy.
            "stop_timeout": 0,
            "log_configuration": {"driver": "k8s-file", "path": f"{log}"},
        }
        answer = json.loads(self._send("POST", "containers/create", body, timeout=timeout))
        return pb.CreateContainerResponse(container_id=str(answer["Id"]))

    def _start(self, request: pb.StartContainerRequest, timeout: float) -> pb.StartContainerResponse:
        self._send("POST", f"containers/{quote(request.container_id)}/start", timeout=timeout)
        return pb.StartContainerResponse()

    def _exec(self, request: pb.ExecSyncRequest, timeout: float) -> pb.ExecSyncResponse:
        body = {"Cmd": list(request.cmd), "AttachStdout": True, "AttachStderr": True}
        made = self._send("POST", f"containers/{request.container_id}/exec", body, timeout=timeout)
        session = str(json.loads(made)["Id"])
        streams = self._send("POST", f"exec/{session}/start", {"Detach": False}, timeout=timeout)
        stdout, stderr = demultiplexed(streams)
        try:
            code = int(json.loads(self._send("GET", f"exec/{session}/json", timeout=timeout))["ExitCode"])
        except NotFound:
            code = self._last_exit_code(request.container_id, timeout)
        return pb.ExecSyncResponse(stdout=stdout, stderr=stderr, exit_code=code)

    def _last_exit_code(self, container_id: str, timeout: float) -> int:
        """How the container's latest exec ended, whose session podman's clean-up was quicker to remove.

        The event does not tell which session it was: only one exec at a time may run in a container.
        """
        filters = json.dumps({"container": [container_id], "event": ["exec_died"]})
        query = urlencode({"stream": "false", "since": "0", "filters": filters})
        events = self._send("GET", f"events?{query}", timeout=timeout).splitlines()
        return int(json.loads(events[-1])["Actor"]["Attributes"]["containerExitCode"])

    def _stop_pod(self, request: pb.StopPodSandboxRequest, timeout: float) -> pb.StopPodSandboxResponse:
        self._send("POST", f"pods/{request.pod_sandbox_id}/stop?t=0", timeout=timeout)
        return pb.StopPodSandboxResponse()

    def _remove_pod(self, request: pb.RemovePodSandboxRequest, timeout: float) -> pb.RemovePodSandboxResponse:
        self._send("DELETE", f"pods/{request.pod_sandbox_id}?force=true", timeout=timeout)
        return pb.RemovePodSandboxResponse()


def demultiplexed(data: bytes) -> tuple[bytes, bytes]:
    """``(stdout, stderr)`` of an attached stream; raises RuntimeError when it ends within a piece."""
    stdout, stderr = bytearray(), bytearray()
    at = 0
    while at < len(data):
        begin = at + _FRAME_HEAD
        end = begin + int.from_bytes(data[at + 4 : begin], "big")
        if end > len(data):
            raise RuntimeError(f"podman: the stream ends after {len(data)} bytes, within a piece up to {end}")
        (stderr if data[at] == _STDERR else stdout).extend(data[begin:end])
        at = end
    return bytes(stdout), bytes(stderr)
