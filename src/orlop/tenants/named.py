"""What a tenant's DNS on a node tells, of what the API says of the tenant.

Members make Services and EndpointSlices as they like. What they write changes the names of their own
namespaces and no others; an endpoint that is a pod's alias is told by the pod's address in the tenant's
network, which all of the tenant's pods reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from orlop.tenantdns.zone import NamedEndpoint, NamedPod, NamedPort, NamedService, TenantContents
from orlop.tenants import following
from orlop.tenants.following import TenantSeen
from orlop.tenants.seen import NodeSeen, PodSeen, ServicePort, ServiceSeen, SliceSeen, by_service

EXTERNAL: Final = "ExternalName"


def contents(tenant: TenantSeen, nodes: Mapping[str, NodeSeen], closed: tuple[str, ...]) -> TenantContents:
    """All that the tenant has names for. ``closed`` are the ranges of the cluster's pods and Services."""
    pods = following.placed(tenant, nodes)
    slices = by_service(tenant.slices)
    return TenantContents(
        namespaces=tenant.namespaces,
        services=tuple(
            _service(one, slices.get((one.namespace, one.name), []), pods) for one in tenant.services
        ),
        pods=tuple(
            NamedPod(namespace=pod.namespace, address=pod.address, alias=pod.alias) for pod in pods.values()
        ),
        ranges=(tenant.network.cidr, *closed) if tenant.network else closed,
    )


def _service(service: ServiceSeen, slices: list[SliceSeen], pods: Mapping[str, PodSeen]) -> NamedService:
    endpoints: tuple[NamedEndpoint, ...] = ()
    if service.headless:
        endpoints = tuple(
            NamedEndpoint(
                address=pods[one.address].address if one.address in pods else one.address,
                hostname=one.hostname,
                ports=_ports(each.ports),
            )
            for each in slices
            for one in each.endpoints
            if one.ready or service.unready
        )
    return NamedService(
        namespace=service.namespace,
        name=service.name,
        addresses=() if service.headless else service.addresses,
        ports=_ports(service.ports),
        endpoints=endpoints,
        external=service.external_name if service.type == EXTERNAL else "",
    )


def _ports(ports: tuple[ServicePort, ...]) -> tuple[NamedPort, ...]:
    return tuple(NamedPort(name=one.name, number=one.port, protocol=one.protocol) for one in ports)
