"""Calls that run a command, join a container's streams, or reach a port."""

from __future__ import annotations

from orlop.cri import validate
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.streaming.server import StreamingServer
from orlop.errors import FailedPrecondition
from orlop.pods.service import PodService

MAX_OUTPUT = (16 << 20) - 4096
"""Clients take messages of at most 16 MiB."""

MAX_TIMEOUT = 10 * 365 * 86400


class StreamCalls:
    """ExecSync, Exec, Attach, PortForward."""

    def __init__(self, pods: PodService, streaming: StreamingServer) -> None:
        self._pods = pods
        self._streaming = streaming

    async def exec_sync(self, request: pb.ExecSyncRequest) -> pb.ExecSyncResponse:
        """Run a command to its end. Output that no client would take is cut off."""
        container_id = validate.identifier(request.container_id, "container_id")
        args = validate.command(request.cmd, "cmd", required=True)
        timeout = validate.number(request.timeout, "timeout", 0, validate.MAX_INT64)
        result = await self._pods.exec_sync(container_id, args, min(timeout, MAX_TIMEOUT))
        stdout = result.stdout[:MAX_OUTPUT]
        return pb.ExecSyncResponse(
            stdout=stdout, stderr=result.stderr[: MAX_OUTPUT - len(stdout)], exit_code=result.exit_code
        )

    async def exec(self, request: pb.ExecRequest) -> pb.ExecResponse:
        """Prepare an exec; it begins when the URL is used."""
        url = self._streaming.exec_url(
            self._running(request.container_id),
            validate.command(request.cmd, "cmd", required=True),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.ExecResponse(url=url)

    async def attach(self, request: pb.AttachRequest) -> pb.AttachResponse:
        """Prepare an attach; it begins when the URL is used."""
        url = self._streaming.attach_url(
            self._running(request.container_id),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return pb.AttachResponse(url=url)

    async def port_forward(self, request: pb.PortForwardRequest) -> pb.PortForwardResponse:
        """Prepare a port-forward; it begins when the URL is used."""
        record = self._pods.pod(validate.identifier(request.pod_sandbox_id, "pod_sandbox_id"))
        if not record.ready:
            raise FailedPrecondition(f"pod {record.id[:12]} does not run")
        ports = validate.items(request.port, "port", limit=1024)
        for port in ports:
            validate.number(port, "port", 1, 65535)
        return pb.PortForwardResponse(url=self._streaming.port_forward_url(record.id, ports))

    def _running(self, container_id: str) -> str:
        record = self._pods.container(validate.identifier(container_id, "container_id"))
        if not record.running:
            raise FailedPrecondition(
                f"container {record.name} ({record.id[:12]}) does not run, it is {record.phase}"
            )
        return record.id
