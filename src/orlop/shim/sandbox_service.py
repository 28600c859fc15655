"""containerd's calls for sandboxes as they come in: checked, and handed to :mod:`orlop.shim.sandboxes`.

It is the sandboxer ``shim`` of a runtime in containerd's configuration that calls them.
"""

from __future__ import annotations

import time

from orlop.errors import InvalidArgument
from orlop.linux import architecture
from orlop.shim import asked, podspec
from orlop.shim.api import sandbox_pb2 as pb
from orlop.shim.api import types_pb2
from orlop.shim.metrics import metrics
from orlop.shim.sandboxes import Sandboxes

READY, NOT_READY = "SANDBOX_READY", "SANDBOX_NOTREADY"
"""States, by the names that CRI has for them: containerd looks them up there."""


class SandboxCalls:
    """The methods of the service ``Sandbox``."""

    def __init__(self, sandboxes: Sandboxes) -> None:
        self._sandboxes = sandboxes

    async def create_sandbox(self, request: pb.CreateSandboxRequest) -> pb.CreateSandboxResponse:
        """Describe one."""
        key = asked.of_call(request.sandbox_id)
        if request.rootfs:
            raise InvalidArgument(
                f"sandbox {key[1]} is to have a root file system, but it is a VM, and runs no program itself"
            )
        if request.netns_path and not asked.is_path(request.netns_path):
            raise InvalidArgument(f"{request.netns_path[:200]!r} is not the path of a network namespace")
        spec = podspec.spec(key, request.netns_path, podspec.config(request.options))
        await self._sandboxes.create(key, asked.bundle(request.bundle_path), spec)
        return pb.CreateSandboxResponse()

    async def start_sandbox(self, request: pb.StartSandboxRequest) -> pb.StartSandboxResponse:
        """Make its VM."""
        standing, spec = await self._sandboxes.start(asked.of_call(request.sandbox_id))
        found = pb.StartSandboxResponse(pid=standing.pid, spec=podspec.document(spec))
        found.created_at.FromNanoseconds(standing.created_at)
        return found

    async def platform(self, _request: pb.PlatformRequest) -> pb.PlatformResponse:
        """What its containers are for."""
        own = types_pb2.Platform(os="linux", architecture=architecture.own().debian)
        return pb.PlatformResponse(platform=own)

    async def stop_sandbox(self, request: pb.StopSandboxRequest) -> pb.StopSandboxResponse:
        """End it. How long that may take is for the engine to know: containers were asked to end before."""
        await self._sandboxes.stop(asked.of_call(request.sandbox_id))
        return pb.StopSandboxResponse()

    async def wait_sandbox(self, request: pb.WaitSandboxRequest) -> pb.WaitSandboxResponse:
        """Wait for its end."""
        status = await self._sandboxes.wait(asked.of_call(request.sandbox_id))
        found = pb.WaitSandboxResponse(exit_status=status.code)
        found.exited_at.FromNanoseconds(status.finished_at)
        return found

    async def sandbox_status(self, request: pb.SandboxStatusRequest) -> pb.SandboxStatusResponse:
        """How it stands."""
        standing = await self._sandboxes.status(asked.of_call(request.sandbox_id))
        found = pb.SandboxStatusResponse(
            sandbox_id=request.sandbox_id, pid=standing.pid, state=READY if standing.ready else NOT_READY
        )
        if standing.created_at:
            found.created_at.FromNanoseconds(standing.created_at)
        if standing.exited_at:
            found.exited_at.FromNanoseconds(standing.exited_at)
        return found

    async def ping_sandbox(self, request: pb.PingRequest) -> pb.PingResponse:
        """Whether it is there."""
        await self._sandboxes.status(asked.of_call(request.sandbox_id))
        return pb.PingResponse()

    async def shutdown_sandbox(self, request: pb.ShutdownSandboxRequest) -> pb.ShutdownSandboxResponse:
        """Remove it."""
        await self._sandboxes.shut_down(asked.of_call(request.sandbox_id))
        return pb.ShutdownSandboxResponse()

    async def sandbox_metrics(self, request: pb.SandboxMetricsRequest) -> pb.SandboxMetricsResponse:
        """What it uses."""
        usage = await self._sandboxes.usage(asked.of_call(request.sandbox_id))
        found = types_pb2.Metric(id=request.sandbox_id, data=metrics(usage))
        found.timestamp.FromNanoseconds(time.time_ns())
        return pb.SandboxMetricsResponse(metrics=found)
