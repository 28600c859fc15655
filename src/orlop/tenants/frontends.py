"""What a tenant's Services and EndpointSlices come to on one node: where each port leads.

An endpoint is known to the cluster by its pod's alias, and to the router by its address in the tenant's
network. Slices that somebody wrote by hand may have any address: aliases of others lead nowhere, and the
guards of the router judge the rest as if the pod had called it itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal

from orlop.tenantnet import services
from orlop.tenantnet.model import Frontend
from orlop.tenants.places import AddressRange, number
from orlop.tenants.seen import EndpointSeen, PodSeen, ServicePort, ServiceSeen, SliceSeen, by_service

log = logging.getLogger(__name__)

ELEMENTS: Final = 32768
"""What a tenant's Services may take in the tables of a router: the oldest Services come first."""

_PROTOCOLS: Final[Mapping[str, Literal["tcp", "udp", "sctp"]]] = {"TCP": "tcp", "UDP": "udp", "SCTP": "sctp"}


class Endpoints:
    """Finds endpoints on behalf of the node ``here``; ``pods`` are those of the tenant by their aliases."""

    def __init__(
        self,
        slices: Sequence[SliceSeen],
        pods: Mapping[str, PodSeen],
        aliases: Sequence[AddressRange],
        here: str,
    ) -> None:
        self._slices = by_service(slices)
        self._pods, self._aliases, self._here = pods, aliases, here

    def of(
        self, service: ServiceSeen, port: ServicePort, *, near: bool = False
    ) -> tuple[tuple[str, int], ...]:
        """Where a port of a Service leads: to those that are ready or, without any, to those that end.

        ``near`` leaves those out that are on other nodes.
        """
        every = list(self._every(service, port, near))
        ready = [place for endpoint, place in every if endpoint.ready or service.unready]
        found = ready or [place for endpoint, place in every if endpoint.serving and endpoint.terminating]
        return tuple(sorted(dict(found).items())[: services.ENDPOINTS])

    def _every(
        self, service: ServiceSeen, port: ServicePort, near: bool
    ) -> Iterator[tuple[EndpointSeen, tuple[str, int]]]:
        for one in self._slices.get((service.namespace, service.name), ()):
            ports = [its.port for its in one.ports if (its.name, its.protocol) == (port.name, port.protocol)]
            if not ports:
                continue
            for endpoint in one.endpoints:
                if near and endpoint.node != self._here:
                    continue
                if address := self._address(endpoint):
                    yield endpoint, (address, ports[0])

    def _address(self, endpoint: EndpointSeen) -> str:
        """By which address the router reaches it; "" for what is none."""
        if (pod := self._pods.get(endpoint.address)) is not None:
            return pod.address
        if number(endpoint.address) is None or any(endpoint.address in one for one in self._aliases):
            return ""
        return endpoint.address


def frontends(
    seen: Sequence[ServiceSeen], endpoints: Endpoints, outside: Mapping[str, str] | None = None
) -> tuple[Frontend, ...]:
    """The ports of Services by their ClusterIPs, and by the address in ``outside``, by the Service's uid."""
    found: list[Frontend] = []
    room = ELEMENTS
    for service in sorted(seen, key=lambda one: (one.created, one.uid)):
        if service.headless or service.type == "ExternalName":
            continue
        balanced = (outside or {}).get(service.uid)
        for address in (*service.addresses, *filter(None, [balanced])):
            near = service.local_inside and address != balanced
            for port in service.ports:
                one = Frontend(
                    address=address,
                    protocol=_PROTOCOLS[port.protocol],
                    port=port.port,
                    endpoints=endpoints.of(service, port, near=near),
                    affinity=service.affinity,
                )
                room -= 1 + services.length(len(one.endpoints)) * (2 if one.affinity else 1)
                if room < 0:
                    log.warning(
                        "Service %s/%s and younger ones have no room", service.namespace, service.name
                    )
                    return tuple(found)
                if number(address) is not None:
                    found.append(one)
    return tuple(found)
