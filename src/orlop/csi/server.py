"""The CSI driver: its services, its own socket, and the word to the kubelet that it is there.

The services are served on the daemon's socket too, for the command line.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from orlop.config import CsiConfig
from orlop.csi import names
from orlop.csi.api import csi_v1_pb2, registration_pb2
from orlop.csi.controller import ControllerCalls
from orlop.csi.node import IdentityCalls, NodeServiceCalls
from orlop.rpc.deferred import Handler
from orlop.rpc.endpoint import Endpoint
from orlop.rpc.router import Router
from orlop.volumes.publisher import Inside, Publisher, nobody
from orlop.volumes.store import VolumeStore

log = logging.getLogger(__name__)

_MODE = 0o600
_KIND, _VERSION = "CSIPlugin", "1.0.0"


def handlers(router: Router, store: VolumeStore, node: str, inside: Inside = nobody) -> Sequence[Handler]:
    """The three services of CSI. ``inside`` knows how full the disks of VMs are, where there are any."""
    publisher = Publisher(store, inside)
    services = csi_v1_pb2.DESCRIPTOR.services_by_name
    return (
        router.handler(services["Identity"], IdentityCalls()),
        router.handler(services["Controller"], ControllerCalls(store, node)),
        router.handler(services["Node"], NodeServiceCalls(store, publisher, node)),
    )


class RegistrationCalls:
    """What a kubelet asks on the socket that it finds in its registry."""

    def __init__(self, socket: str) -> None:
        self._socket = socket

    async def get_info(self, request: registration_pb2.InfoRequest) -> registration_pb2.PluginInfo:
        """Who is to be registered."""
        return registration_pb2.PluginInfo(
            type=_KIND, name=names.DRIVER, endpoint=self._socket, supported_versions=[_VERSION]
        )

    async def notify_registration_status(
        self, request: registration_pb2.RegistrationStatus
    ) -> registration_pb2.RegistrationStatusResponse:
        """What became of it."""
        if request.plugin_registered:
            log.info("the kubelet knows the driver %s", names.DRIVER)
        else:
            log.error("the kubelet does not take the driver %s: %s", names.DRIVER, request.error)
        return registration_pb2.RegistrationStatusResponse()


class CsiServer:
    """The driver's sockets. :meth:`start` before use, :meth:`stop` after it."""

    def __init__(self, config: CsiConfig, store: VolumeStore, inside: Inside = nobody) -> None:
        self._config = config
        router = Router()
        path = Path(config.socket)
        services = handlers(router, store, names.node_of(config), inside)
        self._endpoints = [Endpoint(path, router, services, mode=_MODE)]
        if config.registry:
            service = registration_pb2.DESCRIPTOR.services_by_name["Registration"]
            told = router.handler(service, RegistrationCalls(config.socket))
            place = Path(config.registry) / f"{names.DRIVER}-reg.sock"
            # After the other: the kubelet calls the driver as soon as it finds this one.
            self._endpoints.append(Endpoint(place, router, [told], mode=_MODE))

    async def start(self) -> None:
        """Listen. Raises FailedPrecondition when a socket cannot be used."""
        for endpoint in self._endpoints:
            await endpoint.start()
        log.info("serving CSI as %s on %s", names.DRIVER, self._config.socket)

    async def stop(self, grace: float = 5.0) -> None:
        """Take no more calls; those in progress end within ``grace`` seconds."""
        for endpoint in reversed(self._endpoints):
            await endpoint.stop(grace)
