"""Services with an address of the world's: from the object to the first call, over two nodes. Needs root."""

from __future__ import annotations

import asyncio
import json
import socket
from contextlib import AsyncExitStack
from pathlib import Path

from tests.conftest import needs_root
from tests.tenants.agents import call, pod_namespace
from tests.tenants.test_floating import answers_for
from tests.tenants.world import LIMIT, PORT, TestNode, World, inside
from tests.tenants_api import test_agent as agents
from tests.tenants_api.conftest import Ship
from tests.tenants_api.plane import eventually
from tests.tenants_api.test_addresses import bind, pool

pytestmark = needs_root
nodes, tenants = agents.nodes, agents.tenants
ADDRESS = "192.0.2.200"


def called(caller: Path) -> bool:
    """Whether a call from there comes through."""

    def call() -> bool:
        try:
            socket.create_connection((ADDRESS, PORT), timeout=LIMIT).close()
        except OSError:
            return False
        return True

    return inside(caller, call)


def runs(ship: Ship, name: str, namespace: str, alias: str) -> None:
    """Say what a kubelet says of a pod that runs."""
    status = {"status": {"phase": "Running", "podIP": alias, "podIPs": [{"ip": alias}]}}
    patch = ["--subresource=status", "--type=merge", "-p", json.dumps(status), "-n", namespace]
    ship.plane.kubectl("patch", "pod", name, *patch)


def answered(here: TestNode, other: TestNode | None = None) -> None:
    """Wait until one node answers for the address, and the other does not."""
    eventually(lambda: ADDRESS in answers_for(here))
    if other is not None:
        silent(other)


def silent(node: TestNode) -> None:
    """Wait until a node does not answer for it."""
    eventually(lambda: ADDRESS not in answers_for(node))


async def test_a_service_with_an_address_is_called_from_outside(
    ship: Ship, nodes: World, tenants: tuple[str, str], tmp_path: Path
) -> None:
    """The operator chooses a node that is ready, whose router leads to the pod, there or elsewhere."""
    first, second = nodes.nodes.values()
    space = tenants[0]
    ship.change(space, quota={"floatingIPs": 1})
    spec = {
        "type": "LoadBalancer",
        "selector": {"app": "web"},
        "ports": [{"port": PORT}],
        "publishNotReadyAddresses": True,
    }
    about = {"name": "web", "namespace": space}
    ship.plane.apply(pool(f"{ADDRESS}/32"))
    ship.plane.apply({"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": spec})
    async with AsyncExitStack() as stack:
        for node in (first, second):
            await stack.enter_async_context(agents._agent(ship, node, tmp_path))
        served = await stack.enter_async_context(pod_namespace(tmp_path / "served"))
        caller = await stack.enter_async_context(pod_namespace(tmp_path / "caller"))
        await asyncio.to_thread(agents._pod, ship, "web", space)
        ship.plane.kubectl("label", "pod", "web", "-n", space, "app=web")
        await call(agents._socket(tmp_path, first), "ADD", "caller", caller, space)
        outcome = await call(agents._socket(tmp_path, second), "ADD", "web", served, space)
        alias = str(outcome["ips"][0]["address"]).partition("/")[0]
        await asyncio.to_thread(bind, ship.plane, "web", space, agents._name(second))
        await asyncio.to_thread(runs, ship, "web", space, alias)
        listener = await asyncio.to_thread(inside, served, lambda: socket.create_server(("", PORT)))
        with listener:
            for here, other in ((first, second), (second, first)):
                await asyncio.to_thread(ready, ship, here, other)
                await asyncio.to_thread(answered, here, other)
                for place in (nodes.lan, caller):
                    await asyncio.to_thread(eventually, lambda place=place: called(place))  # type: ignore[misc]
        await asyncio.to_thread(ship.plane.kubectl, "delete", "service", "web", "-n", space)
        await asyncio.to_thread(silent, second)
        for node, place in ((first, caller), (second, served)):
            await call(agents._socket(tmp_path, node), "DEL", place.name, place, space)
    ship.plane.kubectl("delete", "pod", "web", "-n", space, "--force", "--grace-period=0")
    ship.plane.kubectl("delete", "addresspool", "uplink")


def ready(ship: Ship, here: TestNode, other: TestNode) -> None:
    """Have one node be ready, and the other not."""
    for node, said in ((here, "True"), (other, "False")):
        status = {"status": {"conditions": [{"type": "Ready", "status": said}]}}
        patch = ["--subresource=status", "--type=merge", "-p", json.dumps(status)]
        ship.plane.kubectl("patch", "node", agents._name(node), *patch)
