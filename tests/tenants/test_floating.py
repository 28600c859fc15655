"""Addresses of the world's that are one pod's own: who reaches it by them, what is seen of it."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec
import pytest

from orlop.tenantnet.leases import LeaseRecords
from orlop.tenantnet.model import Floating, LocalNetwork
from tests.tenants.agents import Desk, desk
from tests.tenants.attacks import ethernet, packet
from tests.tenants.test_traffic import Server, have_the_trace_agree
from tests.tenants.world import (
    GATEWAY,
    NODES,
    OUTSIDE,
    PORT,
    TENANTS,
    TestNode,
    World,
    command,
    eventually,
    inside,
    run,
    udp,
)

ADDRESSES = {"blue": "192.0.2.200", "green": "192.0.2.201"}
"""Of the nodes' own network: whoever wants to reach them asks for them with ARP."""


def floating(node: TestNode, tenant: str, *addresses: str) -> LocalNetwork:
    """The tenant's network with these addresses for its first pod on the node."""
    uid = f"uid-{tenant}-{node.number}-2"
    return msgspec.structs.replace(
        node.networks[tenant], floating=tuple(Floating(address=one, pod=uid) for one in addresses)
    )


def give(node: TestNode, addresses: Mapping[str, str]) -> None:
    """Have these addresses by tenant on the node, and no others."""
    for tenant in TENANTS:
        mine = [addresses[tenant]] if tenant in addresses else []
        node.networks[tenant] = floating(node, tenant, *mine)
    run(node.settle())


@pytest.fixture
def addressed(two_nodes: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Both tenants' first pods on the first node have one."""
    give(two_nodes.nodes[1], ADDRESSES)
    have_the_trace_agree(two_nodes, monkeypatch)
    yield two_nodes
    for node in two_nodes.nodes.values():
        give(node, {})
    command(two_nodes.lan, "ip", "neigh", "flush", "all")


def known_as(world: World, address: str) -> str:
    """The MAC by which the world knows an address, "" when it does not."""
    found = re.search(r"lladdr (\S+)", command(world.lan, "ip", "neigh", "show", address))
    return found[1] if found else ""


def mac(node: TestNode) -> str:
    found = re.search(r"link/ether (\S+)", command(node.place, "ip", "link", "show", "eth0"))
    assert found
    return found[1]


def answers_for(node: TestNode) -> set[str]:
    """The addresses that a node answers ARP for."""
    listed = command(node.place, "ip", "neigh", "show", "proxy")
    return {line.split()[0] for line in listed.splitlines()}


@pytest.mark.parametrize("tenant", TENANTS)
def test_the_world_reaches_the_pod_and_sees_it_under_its_address(addressed: World, tenant: str) -> None:
    """Both pods have the same address in their networks; who calls is seen as who it is."""
    pod = addressed.pod(tenant, 1)
    with Server(pod, tenant) as server:
        assert server.asked(addressed.lan, ADDRESSES[tenant]) == (tenant, GATEWAY)
        assert server.asked(addressed.nodes[1].place, ADDRESSES[tenant]) == (tenant, NODES[1])
        assert server.asked(addressed.nodes[2].place, ADDRESSES[tenant]) == (tenant, NODES[2])
    with Server(addressed.lan, "world") as server:
        assert server.asked(pod, OUTSIDE) == ("world", ADDRESSES[tenant])
        other = addressed.pod(tenant, 1, 3)
        assert server.asked(other, OUTSIDE) == ("world", NODES[1]), "others leave as before"


def test_tenants_reach_each_others_addresses_as_the_world_does(addressed: World) -> None:
    """From the same node and from another; a pod with an address of its own is seen under that."""
    blue, green = addressed.pods["blue", 1, 2], addressed.pods["green", 1, 2]
    # It may go to one address in the world alone, and to this one for now.
    allow = (f"{OUTSIDE}/32", f"{ADDRESSES['blue']}/32")
    kept = {number: node.networks["green"] for number, node in addressed.nodes.items()}
    for node in addressed.nodes.values():
        node.networks["green"] = msgspec.structs.replace(node.networks["green"], allow=allow)
        run(node.settle())
    with Server(Path(blue.netns), "blue") as server:
        assert server.asked(addressed.pod("green", 1, 3), ADDRESSES["blue"]) == ("blue", NODES[1])
        assert server.asked(addressed.pod("green", 2), ADDRESSES["blue"]) == ("blue", NODES[2])
        assert server.asked(Path(green.netns), ADDRESSES["blue"]) == ("blue", ADDRESSES["green"])
    for number, node in addressed.nodes.items():
        node.networks["green"] = kept[number]
        run(node.settle())


def test_a_tenant_that_may_not_go_there_does_not(addressed: World) -> None:
    """Its own rules say what it may reach in the world, other tenants' addresses among it."""
    with udp(addressed.pod("blue", 1)):
        guards = addressed.nodes[1].guards("green")
        before = guards.dropped("egress-allow")

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
                client.sendto(b"no", (ADDRESSES["blue"], PORT))

        inside(addressed.pod("green", 1, 3), send)
        eventually(lambda: guards.dropped("egress-allow") > before, "the guard saw nothing")


def test_pods_of_the_tenant_reach_it_and_itself(addressed: World) -> None:
    one, near = addressed.pods["blue", 1, 2], addressed.pods["blue", 1, 3]
    with Server(Path(one.netns), "blue") as server:
        assert server.asked(Path(near.netns), ADDRESSES["blue"]) == ("blue", near.address)
        assert server.asked(Path(one.netns), ADDRESSES["blue"]) == ("blue", one.alias)
        assert server.asked(addressed.pod("blue", 2), ADDRESSES["blue"])[0] == "blue"


def test_the_node_itself_is_not_reached_by_it(addressed: World) -> None:
    """Every port is the pod's, those too on which the node listens."""
    with Server(addressed.nodes[1].place, "node"), Server(addressed.pod("blue", 1), "pod") as server:
        assert server.asked(addressed.lan, ADDRESSES["blue"]) == ("pod", GATEWAY)


def test_no_router_sends_under_an_address_that_is_anothers(addressed: World) -> None:
    node = addressed.nodes[1]
    router, guards = node.router("green"), node.guards()
    before = guards.dropped("uplink-source")
    near, far = (f"0e:6f:0{end}:00:00:{TENANTS['green']:02x}" for end in (0, 1))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as link:
            link.bind(("node", 0))
            link.send(ethernet(near, far, 0x0800, packet(ADDRESSES["blue"], OUTSIDE)))

    inside(router, send)
    eventually(lambda: guards.dropped("uplink-source") > before, "the guard saw nothing")


def test_what_is_not_given_any_more_is_nobodys(addressed: World) -> None:
    node = addressed.nodes[1]
    command(node.place, "ip", "neigh", "add", "proxy", "192.0.2.222", "dev", "eth0")
    give(node, {"green": ADDRESSES["green"]})
    assert answers_for(node) == {ADDRESSES["green"], "192.0.2.222"}, "what an administrator made stays"
    command(node.place, "ip", "neigh", "del", "proxy", "192.0.2.222", "dev", "eth0")
    assert ADDRESSES["blue"] not in command(node.place, "ip", "route")
    assert ADDRESSES["blue"] not in command(node.router("blue"), "nft", "list", "ruleset")
    with Server(addressed.lan, "world") as server:
        assert server.asked(addressed.pod("blue", 1), OUTSIDE) == ("world", NODES[1])


async def agent_says(one: Desk, tenant: str, *addresses: str) -> None:
    """Have the agent told that its node has these addresses of a tenant."""
    one.cluster.networks[tenant] = floating(one.node, tenant, *addresses)
    await one.agent.renew(one.node.ground, one.cluster.networks.values())


def asked(world: World, number: int, address: str) -> str:
    """What the world hears at an address that is the pod's on that node."""
    with Server(world.pod("blue", number), f"node {number}") as server:
        return server.asked(world.lan, address)[0]


def record(world: World, node: TestNode, directory: Path) -> None:
    """The pods that are there, as the node's agent would have recorded them."""
    records = LeaseRecords(directory / "state")
    for network in node.networks.values():
        records.stand(network)
    for lease in node.leases:
        (directory / "state/leases" / f"{lease.port}.json").write_bytes(msgspec.json.encode(lease))


async def test_an_address_moves_and_the_world_learns_it_at_once(two_nodes: World, tmp_path: Path) -> None:
    first, second = two_nodes.nodes.values()
    address = ADDRESSES["blue"]
    for node in (first, second):
        (tmp_path / str(node.number)).mkdir()
        record(two_nodes, node, tmp_path / str(node.number))
    async with desk(first, tmp_path / "1") as one, desk(second, tmp_path / "2") as other:
        await agent_says(one, "blue", address)
        assert await asyncio.to_thread(asked, two_nodes, 1, address) == "node 1"
        assert known_as(two_nodes, address) == mac(first)
        await agent_says(one, "blue")
        await agent_says(other, "blue", address)
        # Nobody asks: it is told.
        await asyncio.to_thread(
            eventually, lambda: known_as(two_nodes, address) == mac(second), "the world was not told"
        )
        assert await asyncio.to_thread(asked, two_nodes, 2, address) == "node 2"
        await agent_says(other, "blue")
        assert not answers_for(second)


async def test_an_agent_that_was_down_gives_up_what_moved_meanwhile(two_nodes: World, tmp_path: Path) -> None:
    """And keeps what did not, without a word to anybody: it was there all the time."""
    node = two_nodes.nodes[1]
    record(two_nodes, node, tmp_path)
    async with desk(node, tmp_path) as one:
        await agent_says(one, "blue", ADDRESSES["blue"])
        await agent_says(one, "green", ADDRESSES["green"])
    assert answers_for(node) == set(ADDRESSES.values()), "an agent that ends changes nothing"
    again = Desk(node, tmp_path)
    try:
        await again.agent.start([floating(node, "blue"), floating(node, "green", ADDRESSES["green"])])
        assert answers_for(node) == {ADDRESSES["green"]}
        await again.agent.renew(node.ground, list(node.networks.values()))
        assert not answers_for(node)
    finally:
        await again.agent.close()
