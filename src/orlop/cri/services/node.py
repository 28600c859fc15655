"""Calls about the runtime itself."""

from __future__ import annotations

import ipaddress
import logging

import msgspec

from orlop import __version__
from orlop.config import Config
from orlop.cri import validate, verbose
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.services.images import Pulls
from orlop.errors import InvalidArgument
from orlop.pods.records import Handler
from orlop.pods.service import PodService

log = logging.getLogger(__name__)

RUNTIME_NAME = "orlop"
API_VERSION = "v1"
KUBELET_API_VERSION = "0.1.0"
"""What every runtime answers in VersionResponse.version, a field of the time before API versions."""

_DRIVERS = {"cgroupfs": pb.CGROUPFS, "systemd": pb.SYSTEMD}


class NodeCalls:
    """Version, Status, RuntimeConfig, UpdateRuntimeConfig."""

    def __init__(self, config: Config, pods: PodService, pulls: Pulls) -> None:
        self._config = config
        self._pods = pods
        self._pulls = pulls

    async def version(self, request: pb.VersionRequest) -> pb.VersionResponse:
        """Who we are."""
        return pb.VersionResponse(
            version=KUBELET_API_VERSION,
            runtime_name=RUNTIME_NAME,
            runtime_version=__version__,
            runtime_api_version=API_VERSION,
        )

    async def status(self, request: pb.StatusRequest) -> pb.StatusResponse:
        """Whether pods can be run, and what they may ask for."""
        handlers = tuple(await self._pods.handlers())
        runtime = await self._pods.runtime_reason()
        network = await self._pods.network_reason()
        response = pb.StatusResponse(
            status=pb.RuntimeStatus(
                conditions=[
                    _condition("RuntimeReady", runtime, "RuntimeNotReady"),
                    _condition("NetworkReady", network, "NetworkPluginNotReady"),
                ]
            ),
            runtime_handlers=[_handler(item) for item in self._offered(handlers)],
            features=pb.RuntimeFeatures(
                supplemental_groups_policy=True,
                mount_options=True,
                user_namespaces_host_network=any(item.user_namespaces_host_network for item in handlers),
            ),
        )
        if request.verbose:
            response.info["config"] = verbose.text(self._config.document())
            response.info["handlers"] = verbose.text(
                {item.name: {"ready": not item.reason, "reason": item.reason} for item in handlers}
            )
            response.info["gauges"] = verbose.text(self._pods.gauges())
            response.info["pulls"] = verbose.text(self._pulls.shown())
        return response

    def _offered(self, handlers: tuple[Handler, ...]) -> list[Handler]:
        """The handlers that can be used, with "" for that of pods which name none."""
        default = "vm" if self._config.default_handler == "auto" else self._config.default_handler
        usable = [item for item in handlers if not item.reason]
        unnamed = [msgspec.structs.replace(item, name="") for item in usable if item.name == default]
        return unnamed + usable

    async def runtime_config(self, request: pb.RuntimeConfigRequest) -> pb.RuntimeConfigResponse:
        """Who makes the cgroups."""
        driver = _DRIVERS[self._config.cgroup_driver]
        return pb.RuntimeConfigResponse(linux=pb.LinuxRuntimeConfiguration(cgroup_driver=driver))

    async def update_runtime_config(
        self, request: pb.UpdateRuntimeConfigRequest
    ) -> pb.UpdateRuntimeConfigResponse:
        """Take note of the node's pod network. Addresses are the business of the CNI configuration."""
        cidrs = validate.line(request.runtime_config.network_config.pod_cidr, "network_config.pod_cidr")
        for cidr in filter(None, cidrs.split(",")):
            try:
                ipaddress.ip_network(cidr, strict=False)
            except ValueError:
                raise InvalidArgument(
                    f"network_config.pod_cidr {validate.excerpt(cidr)} is not a network"
                ) from None
        if cidrs:
            log.info("the node's pod network is %s; the CNI configuration says who uses it", cidrs)
        return pb.UpdateRuntimeConfigResponse()


def _condition(kind: str, reason: str, name: str) -> pb.RuntimeCondition:
    return pb.RuntimeCondition(type=kind, status=not reason, reason=name if reason else "", message=reason)


def _handler(value: Handler) -> pb.RuntimeHandler:
    return pb.RuntimeHandler(
        name=value.name,
        features=pb.RuntimeHandlerFeatures(
            recursive_read_only_mounts=value.recursive_read_only_mounts,
            user_namespaces=value.user_namespaces,
        ),
    )
