"""The node's agent as a process: hears the API server, keeps routers so, and serves the CNI plug-in."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from orlop.errors import InvalidArgument, OrlopError
from orlop.host import roots
from orlop.host.exporter import Exporter, listen_at
from orlop.host.tasks import uncancelled
from orlop.tenantdns.names import Around, TenantNames
from orlop.tenantdns.zone import DOMAIN, TenantContents
from orlop.tenantnet import program
from orlop.tenantnet.agent import TenantAgent
from orlop.tenantnet.door import AgentDoor
from orlop.tenantnet.kernel import OWN_NAMESPACE, NodeKernel
from orlop.tenantnet.leases import LeaseRecords
from orlop.tenantnet.model import LocalNetwork
from orlop.tenants.agentmetrics import AgentMetrics
from orlop.tenants.following import TenantSeen
from orlop.tenants.nodeview import NodeView
from orlop.value import Value

log = logging.getLogger(__name__)

SOCKET: Final = Path("/run/orlop-tenants/agent.sock")
STATE: Final = Path("/var/lib/orlop-tenants")
TOGETHER: Final = 0.2
"""Seconds for which changes are collected."""
PAUSE: Final = 5.0


class AgentPlaces(Value, frozen=True):
    """Where an agent has its socket, its records, the routers' namespaces, and its program (or none).

    ``root`` is where it finds what is ``/`` to the node: to its container runtime, its plug-ins, its nft.
    ``metrics`` is the ADDRESS:PORT that they are served on, if they are.
    ``resolvers`` is the file that names those which the node asks.
    """

    socket: Path = SOCKET
    state: Path = STATE
    routers: Path = Path("/run/netns")
    programs: Path | None = None
    node: Path = OWN_NAMESPACE
    root: Path = roots.OWN
    metrics: str = ""
    resolvers: Path = Path("/etc/resolv.conf")


async def serve(view: NodeView, places: AgentPlaces, domain: str = DOMAIN) -> None:
    """Be the node's agent, until cancelled; ``domain`` is the cluster's.

    Raises OrlopError when the node is not fit for it.
    """
    exporter = listen_at(places.metrics)
    await view.load()
    around = Around(
        addresses=view.ground.dns, domain=domain, node=places.node, configuration=places.resolvers
    )
    dns = TenantNames(around)
    try:
        await _serve(view, places, dns, exporter)
    finally:
        await uncancelled(dns.close())


async def _serve(view: NodeView, places: AgentPlaces, dns: TenantNames, exporter: Exporter) -> None:
    kernel = NodeKernel(places.routers, places.node, root=places.root)
    records = LeaseRecords(places.state)
    agent = TenantAgent(view.ground, kernel, records, view, (RouterNames(dns),))
    tell(view, dns, {})
    await agent.start(view.networks)
    for lease in records.leases:
        view.told(lease)
    metrics = AgentMetrics(records, places.routers, places.node)
    door = AgentDoor(agent, places.socket, places.root, meter=metrics.calls)
    await door.open()
    if places.programs is not None:
        program.install(places.programs, places.socket)
    log.info("tenants' networks are served on %s", places.socket)
    try:
        await exporter.start(metrics.into)
        async with asyncio.TaskGroup() as group:
            group.create_task(view.watch())
            await _follow(view, agent, dns)
    finally:
        await exporter.stop()
        await door.close()
        await agent.close()


async def _follow(view: NodeView, agent: TenantAgent, dns: TenantNames) -> None:
    """Have routers and names follow what changes, and try again what could not be done."""
    done, told = None, 0
    known: dict[str, TenantSeen] = {}
    while True:
        try:
            # Names first: they cannot fail for long, and routers may.
            known = tell(view, dns, known)
            wanted = (view.ground, view.networks)
            if wanted != done:
                await agent.renew(*wanted)
                done = wanted
            told = await view.changes(told)
            await asyncio.sleep(TOGETHER)
        except OrlopError as error:
            log.warning("%s; again in %g s", error, PAUSE)
            await asyncio.sleep(PAUSE)


class SeenTenants(Protocol):
    """The tenants that have a block on this node, and what the DNS of each is to tell."""

    @property
    def tenants(self) -> dict[str, TenantSeen]:
        """By name: the same objects as long as nothing in them has changed."""
        ...

    def contents(self, tenant: str) -> TenantContents:
        """All that a tenant has names for."""
        ...


def tell(view: SeenTenants, dns: TenantNames, known: Mapping[str, TenantSeen]) -> dict[str, TenantSeen]:
    """Have the DNS know those tenants that have changed; all that it knows then."""
    there = view.tenants if dns.answers else {}
    for name, tenant in there.items():
        if known.get(name) is not tenant:
            contents, own = view.contents(name), tenant.network.dns if tenant.network else ""
            try:
                dns.told(name, contents, own)
            except InvalidArgument as error:
                log.warning("tenant %s has no domain of its own: %s", name, error)
                dns.told(name, contents)
    for name in known.keys() - there.keys():
        dns.forget(name)
    return there


class RouterNames:
    """Has tenants' DNS in their routers, see :class:`orlop.tenantnet.agent.Attendant`."""

    def __init__(self, dns: TenantNames) -> None:
        self._dns = dns

    async def stand(self, network: LocalNetwork, router: Path) -> None:
        """See there."""
        await self._dns.stand(network.name, router, network.forwarders)

    async def go(self, tenant: str) -> None:
        """See there."""
        await self._dns.go(tenant)
