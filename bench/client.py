"""The one CRI client that every system with CRI is measured with: synchronous, one channel, no retries."""

from __future__ import annotations

from typing import Any, Protocol

import grpc

from orlop.cri.api import runtime_v1_pb2 as pb

IMAGE = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
_IMAGE_CALLS = frozenset({"PullImage", "ImageStatus", "ListImages", "RemoveImage", "ImageFsInfo"})


class Caller(Protocol):
    """Whatever takes CRI calls: :class:`Client`, or what stands in for CRI where a system has none."""

    def call(self, name: str, request: Any, timeout: float = 180.0) -> Any:
        """One call."""

    def close(self) -> None:
        """Close what is open."""


class Client:
    """``client.call("RunPodSandbox", request_message)`` returns the response message."""

    def __init__(self, path: str) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{path}", options=[("grpc.max_receive_message_length", 1 << 28)]
        )

    def call(self, name: str, request: Any, timeout: float = 180.0) -> Any:
        """One RPC; raises grpc.RpcError."""
        service = "ImageService" if name in _IMAGE_CALLS else "RuntimeService"
        response = getattr(pb, f"{name}Response")
        invoke = self._channel.unary_unary(
            f"/runtime.v1.{service}/{name}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=response.FromString,
        )
        return invoke(request, timeout=timeout)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()


def pod_config(name: str, logs: str) -> pb.PodSandboxConfig:
    """A pod as a kubelet would ask for it, without limits."""
    return pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="bench", attempt=0),
        hostname=name,
        log_directory=logs,
        linux=pb.LinuxPodSandboxConfig(),
    )


def container_config(name: str, *command: str) -> pb.ContainerConfig:
    """A container of the busybox image."""
    return pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(image=IMAGE),
        command=list(command),
        log_path=f"{name}.log",
        linux=pb.LinuxContainerConfig(),
    )
