"""The node's agent as a process: hears the API server, keeps routers so, and serves the CNI plug-in."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from orlop.errors import OrlopError
from orlop.host import roots
from orlop.host.exporter import listen_at
from orlop.tenantnet import program
from orlop.tenantnet.agent import TenantAgent
from orlop.tenantnet.door import AgentDoor
from orlop.tenantnet.kernel import OWN_NAMESPACE, NodeKernel
from orlop.tenantnet.leases import LeaseRecords
from orlop.tenants.agentmetrics import AgentMetrics
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
    """

    socket: Path = SOCKET
    state: Path = STATE
    routers: Path = Path("/run/netns")
    programs: Path | None = None
    node: Path = OWN_NAMESPACE
    root: Path = roots.OWN
    metrics: str = ""


async def serve(view: NodeView, places: AgentPlaces) -> None:
    """Be the node's agent, until cancelled. Raises OrlopError when the node is not fit for it."""
    exporter = listen_at(places.metrics)
    await view.load()
    kernel = NodeKernel(places.routers, places.node, root=places.root)
    records = LeaseRecords(places.state)
    agent = TenantAgent(view.ground, kernel, records, view)
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
            await _follow(view, agent)
    finally:
        await exporter.stop()
        await door.close()
        await agent.close()


async def _follow(view: NodeView, agent: TenantAgent) -> None:
    """Have the routers follow what changes, and try again what could not be done."""
    done, told = None, 0
    while True:
        try:
            wanted = (view.ground, view.networks)
            if wanted != done:
                await agent.renew(*wanted)
                done = wanted
            told = await view.changes(told)
            await asyncio.sleep(TOGETHER)
        except OrlopError as error:
            log.warning("%s; again in %g s", error, PAUSE)
            await asyncio.sleep(PAUSE)
