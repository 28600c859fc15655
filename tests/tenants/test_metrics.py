"""What an agent serves for Prometheus, and that it is what has happened."""

from __future__ import annotations

import asyncio
import contextlib
import re
import select
import socket
import urllib.request
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from orlop.host.exporter import Exporter
from orlop.tenantnet import meter
from orlop.tenantnet.agent import TenantAgent
from orlop.tenantnet.door import AgentDoor
from orlop.tenantnet.leases import LeaseRecords
from orlop.tenants import agentmetrics
from orlop.tenants.agentmetrics import AgentMetrics
from tests.conformance.tools import free_port
from tests.tenants.agents import SaidCluster, call, pod_namespace
from tests.tenants.attacks import datagram
from tests.tenants.world import OUTSIDE, TestNode, World, eventually, inside, udp

SAMPLE = re.compile(r"^(orlop_tenants_\w+)(?:\{(.*)\})? (\S+)$", re.MULTILINE)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[TestNode]:
    """A node without routers."""
    one = World(tmp_path)
    try:
        await one.build_nodes()
        yield one.nodes[1]
    finally:
        await one.clear()


class Metered:
    """An agent that serves metrics, and what they say."""

    def __init__(self, node: TestNode, directory: Path, place: Path) -> None:
        self.records = LeaseRecords(directory / "state")
        self.socket, self.port = directory / "agent.sock", free_port()
        self.agent = TenantAgent(node.ground, node.kernel, self.records, SaidCluster(node.networks))
        self.metrics = AgentMetrics(self.records, node.routers, place)
        self.door = AgentDoor(self.agent, self.socket, meter=self.metrics.calls)
        self.exporter = Exporter("127.0.0.1", self.port)

    async def said(self) -> dict[tuple[str, str], float]:
        """What is served, by the name and the labels."""

        def ask() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics") as answer:
                return str(answer.read().decode())

        text = await asyncio.to_thread(ask)
        return {(name, labels): float(value) for name, labels, value in SAMPLE.findall(text)}


@asynccontextmanager
async def _metered(node: TestNode, directory: Path, place: Path | None = None) -> AsyncIterator[Metered]:
    one = Metered(node, directory, place or node.place)
    await one.agent.start()
    await one.door.open()
    await one.exporter.start(one.metrics.into)
    try:
        yield one
    finally:
        await one.exporter.stop()
        await one.door.close()


def _send(place: Path, address: str) -> None:
    inside(place, lambda: datagram(address)(None))  # type: ignore[arg-type]


def _send_until_heard(place: Path, address: str, heard: socket.socket) -> None:
    """The kernel opens a new port of a bridge a moment after it is there, and drops what comes before."""
    heard.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while heard.recv(100):
            pass

    def came() -> bool:
        _send(place, address)
        return bool(select.select([heard], [], [], 0.5)[0])

    eventually(came, "no datagram comes out")


async def test_what_happened_is_counted(
    node: TestNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agentmetrics, "FRESH", 0.0)
    async with AsyncExitStack() as stack:
        one = await stack.enter_async_context(_metered(node, tmp_path))
        places = {}
        for tenant in ("blue", "green"):
            place = await stack.enter_async_context(pod_namespace(tmp_path / tenant))
            await call(one.socket, "ADD", tenant, place, tenant)
            places[tenant] = place
        with await asyncio.to_thread(udp, node.place.parent / "lan", OUTSIDE) as heard:
            await asyncio.to_thread(_send_until_heard, places["blue"], OUTSIDE, heard)
            before = await one.said()
            for _ in range(3):
                await asyncio.to_thread(_send, places["blue"], node.address)
            await asyncio.to_thread(_send_until_heard, places["green"], OUTSIDE, heard)
        after = await one.said()
        await call(one.socket, "DEL", "green", places["green"], "green")
        last = await one.said()
    blocked = ("orlop_tenants_drops_total", 'guard="nodes",tenant="blue"')
    assert after[blocked] - before[blocked] == 3
    assert after["orlop_tenants_drops_total", 'guard="nodes",tenant="green"'] == 0
    assert after["orlop_tenants_drops_total", 'guard="between-tenants",tenant=""'] == 0
    for kind, least in (("packets", 1), ("bytes", 48)):
        sent = (f"orlop_tenants_{kind}_total", 'direction="out",link="uplink",tenant="green"')
        assert after[sent] - before[sent] >= least
    assert after["orlop_tenants_connections", 'tenant="green"'] >= 1
    assert after["orlop_tenants_connections_max", 'tenant="green"'] > 1
    assert after["orlop_tenants_node_pods", 'tenant="blue"'] == 1
    assert ("orlop_tenants_node_pods", 'tenant="green"') not in last
    assert last["orlop_tenants_cni_calls_total", 'code="ok",command="ADD"'] == 2
    assert last["orlop_tenants_cni_seconds_count", 'command="DEL"'] == 1
    assert last["orlop_tenants_kernel_read", ""] == 1


async def test_the_kernel_is_asked_once_however_many_ask(node: TestNode, tmp_path: Path) -> None:
    async with _metered(node, tmp_path) as one:
        found = [await one.said() for _ in range(3)]
        read = one.metrics._kernel._at
        await asyncio.gather(*(one.said() for _ in range(5)))
        assert one.metrics._kernel._at == read
        assert all(said["orlop_tenants_kernel_read", ""] == 1 for said in found)


async def test_what_cannot_be_read_is_said(node: TestNode, tmp_path: Path) -> None:
    async with _metered(node, tmp_path, tmp_path / "gone") as one:
        said = await one.said()
    assert said["orlop_tenants_kernel_read", ""] == 0


async def test_guards_are_those_that_nft_lists(two_nodes: World) -> None:
    for node in two_nodes.nodes.values():
        assert {name for name, _ in await meter.drops(node.place)} == node.guards().names()
        for tenant in ("blue", "green"):
            found = await meter.of_router(node.router(tenant))
            assert {name for name, _ in found.drops} == node.guards(tenant).names()
