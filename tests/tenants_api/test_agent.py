"""The agents of two nodes, told by a real API server: blocks, networks, namespaces. Needs root."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import dns.rcode
import pytest

from orlop.host import netns
from orlop.host.tasks import beside
from orlop.net.plugins import PluginFailed
from orlop.tenants import blocks, names
from orlop.tenants.api import connect
from orlop.tenants.nodeagent import AgentPlaces, serve
from orlop.tenants.nodeview import NodeView
from tests.conftest import needs_root
from tests.tenants.agents import call, pod_namespace
from tests.tenants.questions import ask, records
from tests.tenants.test_floating import answers_for
from tests.tenants.test_traffic import Server
from tests.tenants.world import CLOSED, DNS, GATEWAY, LIMIT, OUTSIDE, PORT, TestNode, World, inside
from tests.tenants_api.conftest import Ship, tenant
from tests.tenants_api.plane import COMES_TRUE, eventually
from tests.tenants_api.test_addresses import bind, floating, pool

pytestmark = needs_root
ADDRESS = "192.0.2.200"


def test_blocks_do_not_overlap() -> None:
    assert blocks.free("10.0.0.0/16", ()) == "10.0.0.0/24"
    assert blocks.free("10.0.0.0/16", ("10.0.0.0/24", "10.0.1.0/28")) == "10.0.2.0/24"
    assert blocks.free("10.0.7.0/24", ("10.0.7.0/28",)) == "10.0.7.16/28"


@pytest.fixture
async def nodes(ship: Ship, tmp_path: Path) -> AsyncIterator[World]:
    """Two machines that the API server knows as nodes."""
    world = World(tmp_path)
    try:
        await world.build_nodes()
        for node in world.nodes.values():
            about = {"name": _name(node), "annotations": {names.ALIASES: node.ground.aliases}}
            ship.plane.apply({"apiVersion": "v1", "kind": "Node", "metadata": about})
            status = {"status": {"addresses": [{"type": "InternalIP", "address": node.address}]}}
            patch = ["--subresource=status", "--type=merge", "-p", json.dumps(status)]
            ship.plane.kubectl("patch", "node", _name(node), *patch)
        yield world
    finally:
        for node in world.nodes.values():
            ship.plane.kubectl("delete", "node", _name(node), "--ignore-not-found")
        await world.clear()


def _name(node: TestNode) -> str:
    return f"machine{node.number}"


def _socket(directory: Path, node: TestNode) -> Path:
    return directory / f"agent{node.number}" / "agent.sock"


@asynccontextmanager
async def _agent(ship: Ship, node: TestNode, directory: Path) -> AsyncIterator[None]:
    """An agent as the service account that the manifests make, bound to its node, until the block ends."""
    account = ship.plane.account("orlop-system", "orlop-tenants-agent", node=_name(node))
    places = AgentPlaces(
        socket=_socket(directory, node),
        state=directory / f"agent{node.number}",
        routers=node.routers,
        node=node.place,
        resolvers=directory / "resolv.conf",
    )
    async with connect(account.kubeconfig) as api:
        view = NodeView(api, _name(node), closed=CLOSED, port=node.ground.port, dns=(DNS,))
        async with beside(serve(view, places)) as serving:
            async with asyncio.timeout(LIMIT):
                while not places.socket.exists():
                    assert not serving.done(), serving.result()
                    await asyncio.sleep(0.05)
            yield


@pytest.fixture
def tenants(ship: Ship) -> Iterator[tuple[str, str]]:
    both = ("azure", "olive")
    ship.add(*(tenant(name) for name in both))
    yield both
    ship.end(*both)


def _pod(ship: Ship, name: str, namespace: str) -> str:
    """A pod that the API server knows; its uid. Which node it is on is nobody's business here."""
    container: dict[str, Any] = {"name": "main", "image": "busybox"}
    ship.plane.apply(
        {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"containers": [container], "runtimeClassName": "vm"},
        }
    )
    return str(ship.plane.json("get", "pod", name, "-n", namespace)["metadata"]["uid"])


async def test_nodes_do_what_the_api_server_tells_them(
    ship: Ship, nodes: World, tenants: tuple[str, str], tmp_path: Path
) -> None:
    first, second = nodes.nodes.values()
    async with AsyncExitStack() as stack:
        for node in (first, second):
            await stack.enter_async_context(_agent(ship, node, tmp_path))
        places = {}
        for name in tenants:
            await asyncio.to_thread(_pod, ship, f"{name}-one", name)
            await asyncio.to_thread(bind, ship.plane, f"{name}-one", name, _name(first))
            for node in (first, second):
                place = tmp_path / f"{name}{node.number}"
                places[name, node.number] = await stack.enter_async_context(pod_namespace(place))
                await call(_socket(tmp_path, node), "ADD", f"{name}-one", place, name)
        # Whoever came first took the first block; both tenants have the same addresses.
        for name in tenants:
            found = ship.plane.json("get", "network", name)["status"]["blocks"]
            assert found == {"machine1": "10.0.0.0/24", "machine2": "10.0.1.0/24"}
            annotation = await asyncio.to_thread(_told, ship, name)
            assert annotation == "10.0.0.2", "the node that the pod is not on must not say so"
        # The first node heard of the second's blocks; each tenant's pod is reached by its own alone.
        for name in tenants:
            assert await asyncio.to_thread(_asked, places[name, 1], places[name, 2], name) == name
        with pytest.raises(PluginFailed, match="no delegate"):
            await call(_socket(tmp_path, first), "ADD", "two", places[tenants[0], 1], "default")
        for (name, number), place in places.items():
            await call(_socket(tmp_path, nodes.nodes[number]), "DEL", f"{name}-one", place, name)
        for name in tenants:
            # There is no kubelet that would let it go.
            ship.plane.kubectl("delete", "pod", f"{name}-one", "-n", name, "--force", "--grace-period=0")


def _bind(ship: Ship, namespace: str, name: str, node: TestNode, alias: str) -> None:
    """Have a pod run on a node, as far as a scheduler and a kubelet would have told of it."""
    bind(ship.plane, name, namespace, _name(node))
    status = {"status": {"phase": "Running", "podIP": alias, "podIPs": [{"ip": alias}]}}
    patch = ["--subresource=status", "--type=merge", "-p", json.dumps(status), "-n", namespace]
    ship.plane.kubectl("patch", "pod", name, *patch)


def _called(caller: Path, address: str) -> int:
    """Call a Service; the number of what went wrong, or 0."""

    def call() -> int:
        with socket.socket() as client:
            client.settimeout(LIMIT)
            try:
                client.connect((address, PORT))
            except OSError as error:
                return error.errno or errno.ETIMEDOUT
        return 0

    return inside(caller, call)


async def test_a_service_of_the_api_leads_to_its_pod_on_another_node(
    ship: Ship, nodes: World, tenants: tuple[str, str], tmp_path: Path
) -> None:
    """Its EndpointSlice is the controllers' work."""
    first, second = nodes.nodes.values()
    space = tenants[0]
    spec = {"selector": {"app": "web"}, "ports": [{"port": PORT}], "publishNotReadyAddresses": True}
    web = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "web", "namespace": space},
        "spec": spec,
    }
    async with AsyncExitStack() as stack:
        for node in (first, second):
            await stack.enter_async_context(_agent(ship, node, tmp_path))
        caller = await stack.enter_async_context(pod_namespace(tmp_path / "caller"))
        served = await stack.enter_async_context(pod_namespace(tmp_path / "served"))
        await asyncio.to_thread(_pod, ship, "web", space)
        ship.plane.kubectl("label", "pod", "web", "-n", space, "app=web")
        await call(_socket(tmp_path, first), "ADD", "caller", caller, space)
        outcome = await call(_socket(tmp_path, second), "ADD", "web", served, space)
        alias = str(outcome["ips"][0]["address"]).partition("/")[0]
        await asyncio.to_thread(_bind, ship, space, "web", second, alias)
        await asyncio.to_thread(ship.plane.apply, web)
        address = str(ship.plane.json("get", "service", "web", "-n", space)["spec"]["clusterIP"])
        listener = await asyncio.to_thread(inside, served, lambda: socket.create_server(("", PORT)))
        with listener:
            await asyncio.to_thread(eventually, lambda: _called(caller, address), lambda said: said == 0)
            assert await asyncio.to_thread(_called, caller, alias) == 0
        ship.plane.kubectl("delete", "pod", "web", "-n", space, "--force", "--grace-period=0")
        await asyncio.to_thread(
            eventually, lambda: _called(caller, address), lambda said: said == errno.ECONNREFUSED
        )
        await call(_socket(tmp_path, first), "DEL", "caller", caller, space)
        await call(_socket(tmp_path, second), "DEL", "web", served, space)


@pytest.fixture
def late(ship: Ship) -> Iterator[str]:
    """A namespace that is nobody's, with a Service in it."""
    about = {"name": "late"}
    ship.plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": about})
    spec = {"ports": [{"port": PORT}]}
    about = {"name": "web", "namespace": "late"}
    ship.plane.apply({"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": spec})
    yield "late"
    ship.plane.kubectl("delete", "namespace", "late", "--wait=false")


async def test_what_is_known_of_a_tenant_follows_its_namespaces(ship: Ship, late: str) -> None:
    """What was made before its namespace became a tenant's is not forgotten."""

    def kubectl(*words: str) -> None:
        ship.plane.kubectl(*words, "-n", late)

    account = ship.plane.account("orlop-system", "orlop-tenants-agent")
    async with connect(account.kubeconfig) as api:
        view = NodeView(api, "machine1", closed=CLOSED, port=PORT)

        async def known(*wanted: str) -> None:
            told = 0
            async with asyncio.timeout(COMES_TRUE):
                while {one.name for one in view.tenant("nobody").services} != set(wanted):
                    told = await view.changes(told)

        await view.load()
        async with beside(view.watch()):
            await known()
            kubectl("create", "service", "clusterip", "two", "--tcp=80")
            kubectl("label", "namespace", late, f"{names.TENANT}=nobody")
            await known("web", "two")
            kubectl("delete", "service", "web")
            await known("two")
            kubectl("label", "namespace", late, f"{names.TENANT}-")
            await known()


def _told(ship: Ship, namespace: str) -> str:
    def look() -> str:
        about = ship.plane.json("get", "pod", f"{namespace}-one", "-n", namespace)["metadata"]
        return str(about.get("annotations", {}).get(names.ADDRESS, ""))

    return eventually(look)


def _asked(one: Path, other: Path, name: str) -> str:
    """Who answers the pod ``one`` at the address of ``other``, which another tenant's pod has as well."""
    with Server(other, name) as server:
        return server.asked(one, "10.0.1.2")[0]


async def test_pods_are_told_their_own_tenants_names(
    ship: Ship, nodes: World, tenants: tuple[str, str], tmp_path: Path
) -> None:
    """From the API server to a pod's question; also under a domain of the tenant's own."""
    one, other = tenants
    change = {"spec": {"network": {"dns": "azure.example"}}}
    ship.plane.kubectl("patch", "tenant", one, "--type=merge", "-p", json.dumps(change))
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(_agent(ship, nodes.nodes[1], tmp_path))
        places = {}
        for name in tenants:
            await asyncio.to_thread(_pod, ship, f"{name}-one", name)
            places[name] = await stack.enter_async_context(pod_namespace(tmp_path / name))
            await call(_socket(tmp_path, nodes.nodes[1]), "ADD", f"{name}-one", places[name], name)
        for name in tenants:
            ports = [{"name": "http", "port": 80}]
            about = {"name": f"web-{name}", "namespace": name}
            spec = {"ports": ports, "selector": {"app": "web"}}
            ship.plane.apply({"apiVersion": "v1", "kind": "Service", "metadata": about, "spec": spec})
        for name, foreign in ((one, other), (other, one)):
            told = ship.plane.json("get", "service", f"web-{name}", "-n", name)["spec"]["clusterIP"]
            asked = f"web-{name}.{name}.svc.cluster.local"
            assert await _known(places[name], asked) == {told}
            hidden = await ask(places[name], f"web-{foreign}.{foreign}.svc.cluster.local")
            assert hidden.rcode() == dns.rcode.NXDOMAIN
        await _known(places[one], f"web-{one}.{one}.azure.example")


async def _known(place: Path, name: str) -> set[str]:
    """The records of a name that the agent is about to hear of."""
    async with asyncio.timeout(LIMIT):
        while True:
            answer = await ask(place, name)
            if answer.rcode() == dns.rcode.NOERROR:
                return records(answer)
            await asyncio.sleep(0.1)


async def test_a_namespace_that_no_one_has_told_of_gets_no_network(
    ship: Ship, nodes: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orlop.tenants.nodeview.KNOWN_WITHIN", 0.2)
    node = nodes.nodes[1]
    place = tmp_path / "pod"
    await netns.create(place)
    try:
        async with _agent(ship, node, tmp_path):
            with pytest.raises(PluginFailed, match="not known on this node yet") as caught:
                await call(_socket(tmp_path, node), "ADD", "one", place, "unheard-of")
            assert caught.value.cni_code == 11
    finally:
        await netns.delete(place)


async def test_the_node_of_a_pod_answers_for_its_floating_address(
    ship: Ship, nodes: World, tenants: tuple[str, str], tmp_path: Path
) -> None:
    """From the object that a member makes to the first packet, and to another node with its pod."""
    name = tenants[0]
    await asyncio.to_thread(_give, ship, name)
    async with AsyncExitStack() as stack:
        for node in nodes.nodes.values():
            await stack.enter_async_context(_agent(ship, node, tmp_path))
        for node in nodes.nodes.values():
            uid = await asyncio.to_thread(_pod, ship, "web", name)
            await asyncio.to_thread(bind, ship.plane, "web", name, _name(node))
            container = f"web-{node.number}"
            place = await stack.enter_async_context(pod_namespace(tmp_path / container))
            await call(_socket(tmp_path, node), "ADD", container, place, name, uid=uid)
            await asyncio.to_thread(_answered, node)
            with await asyncio.to_thread(Server, place, container) as server:
                assert await asyncio.to_thread(server.asked, nodes.lan, ADDRESS) == (container, GATEWAY)
            with await asyncio.to_thread(Server, nodes.lan, "world") as server:
                assert await asyncio.to_thread(server.asked, place, OUTSIDE) == ("world", ADDRESS)
            away = ("delete", "pod", "web", "-n", name, "--force", "--grace-period=0")
            await asyncio.to_thread(ship.plane.kubectl, *away)
            await asyncio.to_thread(_silent, node)
            await call(_socket(tmp_path, node), "DEL", container, place, name)
    await asyncio.to_thread(ship.plane.kubectl, "delete", "addresspool", "uplink")


def _give(ship: Ship, name: str) -> None:
    ship.change(name, quota={"floatingIPs": 1})
    ship.plane.apply(pool(f"{ADDRESS}/32"), floating("web", name))


def _answered(node: TestNode) -> None:
    eventually(lambda: ADDRESS in answers_for(node))


def _silent(node: TestNode) -> None:
    eventually(lambda: not answers_for(node))
