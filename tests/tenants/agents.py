"""Agents on the two nodes, with a cluster that says what a test wants; ``python -m`` runs one to kill."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orlop.errors import Unavailable
from orlop.host import netns
from orlop.linux import nftables
from orlop.net import plugins, served
from orlop.net.plugins import Invocation
from orlop.tenantnet import devices
from orlop.tenantnet.agent import TenantAgent
from orlop.tenantnet.door import AgentDoor
from orlop.tenantnet.leases import LeaseRecords
from orlop.tenantnet.model import Lease, LocalNetwork
from tests.tenants.world import LIMIT, TestNode


class SaidCluster:
    """Knows the networks of a node by namespaces of the same names; ``plain`` is a namespace of no tenant."""

    def __init__(self, networks: Mapping[str, LocalNetwork]) -> None:
        self.networks = dict(networks)
        self.told_of: list[Lease] = []
        self.asked = asyncio.Event()

    async def network_of(self, namespace: str) -> LocalNetwork | None:
        self.asked.set()
        if namespace == "plain":
            return None
        if namespace not in self.networks:
            raise Unavailable(f"namespace {namespace} is not known yet")
        return self.networks[namespace]

    def told(self, lease: Lease) -> None:
        self.told_of.append(lease)


class Desk:
    """An agent on a node, and calls to it as a runtime makes them."""

    def __init__(self, node: TestNode, directory: Path) -> None:
        self.node = node
        self.state, self.socket = directory / "state", directory / "agent.sock"
        self.records = LeaseRecords(self.state)
        self.cluster = SaidCluster(node.networks)
        self.agent = TenantAgent(node.ground, node.kernel, self.records, self.cluster)
        self.door = AgentDoor(self.agent, self.socket)

    async def call(
        self, command: str, pod: str = "", netns: Path | str = "", tenant: str = "blue", **more: Any
    ) -> Any:
        """What the plug-in says. Raises PluginFailed."""
        return await call(self.socket, command, pod, netns, tenant, **more)


async def call(socket: Path, command: str, pod: str, netns: Path | str, tenant: str, **more: Any) -> Any:
    document = {"cniVersion": "1.0.0", "name": "cluster", "type": "orlop-tenant", served.KEY: str(socket)}
    about = {"K8S_POD_NAMESPACE": tenant, "K8S_POD_NAME": pod, "K8S_POD_UID": more.pop("uid", "")}
    arguments = (("IgnoreUnknown", "1"), *about.items())
    invocation = Invocation(container_id=pod, netns=str(netns), interface="eth0", arguments=arguments)
    directories = more.pop("bin_dirs", ())
    said = await plugins.execute(
        command, {**document, **more}, invocation, bin_dirs=directories, timeout=LIMIT
    )
    return json.loads(said) if said else None


@asynccontextmanager
async def desk(node: TestNode, directory: Path) -> AsyncIterator[Desk]:
    """An agent that serves, until the block ends."""
    directory.mkdir(exist_ok=True)
    one = Desk(node, directory)
    await one.agent.start()
    await one.door.open()
    try:
        yield one
    finally:
        await one.door.close()
        await one.agent.close()


@asynccontextmanager
async def pod_namespace(path: Path) -> AsyncIterator[Path]:
    await netns.create(path)
    try:
        yield path
    finally:
        await netns.delete(path)


STEPS: Mapping[str, tuple[Any, str]] = {
    "the record": (LeaseRecords, "take"),
    "the pair": (devices, "make_pair"),
    "the port": (devices, "plug"),
    "the pod's address": (devices, "assign"),
    "the route": (devices, "add_route"),
    "the elements": (nftables, "change"),
    "the link": (devices, "remove"),
    "the neighbour": (devices, "forget_neighbour"),
    "the route away": (devices, "remove_route"),
    "the record away": (LeaseRecords, "forget"),
}
"""Where an agent may be killed: in which function."""
ADDING = ("the record", "the pair", "the port", "the pod's address", "the route", "the elements")
REMOVING = ("the link", "the neighbour", "the route away", "the record away", "the elements")


def _die_at(step: str, armed: Path, *, after: bool) -> None:
    """Have this process killed where it does a step, once there is the file ``armed``."""
    owner, name = STEPS[step]
    done = getattr(owner, name)

    def doomed(*args: Any, **more: Any) -> Any:
        if armed.exists() and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = done(*args, **more)
        if armed.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, doomed)


async def main() -> None:
    """``python -m tests.tenants.agents WORLD NODE DIRECTORY [STEP before|after]``: be the agent of a node.

    With a step it is killed there, as soon as there is a file ``armed`` in the directory.
    """
    world, number, directory = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    if len(sys.argv) > 4:
        _die_at(sys.argv[4], directory / "armed", after=sys.argv[5] == "after")
    async with desk(TestNode(world, number), directory):
        print("ready", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
