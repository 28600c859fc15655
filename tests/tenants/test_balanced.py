"""Addresses of the world's that lead to Services: what comes to them, from whom, and who answers."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence

import pytest
from msgspec.structs import replace

from orlop.tenantnet.model import Balanced, Frontend, Lease
from tests.tenants.test_floating import answers_for
from tests.tenants.test_services import Answering
from tests.tenants.world import (
    GATEWAY,
    LIMIT,
    NODES,
    OUTSIDE,
    PORT,
    World,
    eventually,
    inside,
    run,
)

ADDRESS, NUMBER = "192.0.2.210", 80


def balance(
    world: World, pods: Sequence[Lease], *, at: int = 1, sources: Sequence[str] | None = None
) -> None:
    """Lead the address to these pods of blue's, by one node; every node's router knows it."""
    places = tuple((pod.address, PORT) for pod in pods)
    call = Frontend(address=ADDRESS, protocol="tcp", port=NUMBER, endpoints=places)
    world.serve("blue", *[call] if pods else ())
    own = Balanced(address=ADDRESS, sources=tuple(sources) if sources else None)
    world.balance("blue", *[own] if at else (), at=at)


@pytest.fixture
def balanced(two_nodes: World) -> Iterator[World]:
    yield two_nodes
    balance(two_nodes, (), at=0)


def blue(world: World) -> list[Lease]:
    return [world.pods["blue", node, 2] for node in NODES]


def dropped(world: World, guard: str, port: int = NUMBER) -> None:
    """Somebody in the world calls, and the guard drops it."""
    guards = world.nodes[1].guards("blue")
    before = guards.dropped(guard)

    def call() -> None:
        with socket.socket() as client:
            client.setblocking(False)
            client.connect_ex((ADDRESS, port))
            eventually(lambda: guards.dropped(guard) > before, f"{guard} saw nothing")

    inside(world.lan, call)


def test_the_world_is_led_to_pods_on_all_nodes(balanced: World) -> None:
    """A pod on the node that answers sees who calls; one on another node sees the router there."""
    near, far = blue(balanced)
    balance(balanced, [near, far])
    with Answering([near, far], (ADDRESS, NUMBER)) as pods:
        seen = {pods.call(balanced.lan) for _ in range(40)}
    assert seen == {(near, GATEWAY), (far, balanced.nodes[1].networks["blue"].gateway)}


@pytest.mark.parametrize("answering", [1, 2])
def test_pods_of_the_tenant_reach_it_from_every_node(balanced: World, answering: int) -> None:
    """In their own routers: whichever node answers for it outside."""
    near, far = blue(balanced)
    balance(balanced, [near, far], at=answering)
    other = balanced.pods["blue", 1, 3]
    with Answering([near, far], (ADDRESS, NUMBER)) as pods:
        assert {pods.call(balanced.pod("blue", 1, 3)) for _ in range(40)} == {
            (near, other.address),
            (far, other.address),
        }


def test_other_tenants_and_nodes_reach_it_as_the_world_does(balanced: World) -> None:
    near, _ = blue(balanced)
    balance(balanced, [near])
    for node in balanced.nodes.values():
        node.networks["green"] = replace(node.networks["green"], allow=("0.0.0.0/0",))
        run(node.settle())
    with Answering([near], (ADDRESS, NUMBER)) as pods:
        assert pods.call(balanced.pod("green", 1)) == (near, NODES[1])
        assert pods.call(balanced.pod("green", 2)) == (near, NODES[2])
        assert pods.call(balanced.nodes[1].place) == (near, NODES[1])
    for node in balanced.nodes.values():
        node.networks["green"] = replace(node.networks["green"], allow=(f"{OUTSIDE}/32",))


def test_only_the_ports_of_the_service_are_open(balanced: World) -> None:
    """Nothing else of the pod, of the router and of the node is reached by the address."""
    balance(balanced, blue(balanced))
    with (
        inside(balanced.nodes[1].place, lambda: socket.create_server(("", PORT))),
        inside(balanced.pod("blue", 1), lambda: socket.create_server(("", PORT))),
    ):
        dropped(balanced, "closed", PORT)


def test_only_those_may_call_whom_the_service_lets(balanced: World) -> None:
    near, _ = blue(balanced)
    balance(balanced, [near], sources=["198.51.100.0/24", "192.0.2.11/32", "192.0.2.0/31", "192.0.2.0/32"])
    with Answering([near], (ADDRESS, NUMBER)) as pods:
        assert pods.call(balanced.lan) == (near, GATEWAY)
    balance(balanced, [near], sources=["198.51.100.0/24"])
    dropped(balanced, "source-ranges")
    with Answering([near], (ADDRESS, NUMBER)) as pods:
        assert pods.call(balanced.pod("blue", 2))[0] == near, "the tenant's own pods need no leave"


def test_without_endpoints_and_when_it_is_gone_nobody_answers(balanced: World) -> None:
    balance(balanced, blue(balanced))
    assert answers_for(balanced.nodes[1]) == {ADDRESS}
    balance(balanced, (), at=1)
    dropped(balanced, "closed")
    balance(balanced, (), at=0)
    assert not answers_for(balanced.nodes[1])


def test_a_call_that_goes_to_another_node_is_a_whole_connection(balanced: World) -> None:
    _, far = blue(balanced)
    balance(balanced, [far])
    listener = inside(balanced.pod("blue", 2), lambda: socket.create_server(("", PORT)))

    def call() -> socket.socket:
        return socket.create_connection((ADDRESS, NUMBER), timeout=LIMIT)

    with listener, inside(balanced.lan, call) as client:
        served, _ = listener.accept()
        with served:
            served.settimeout(LIMIT)
            client.sendall(b"x" * 100_000)
            got = b""
            while len(got) < 100_000:
                got += served.recv(65536)
            # A restart of the agents makes all of it again, and changes no packet.
            for node in balanced.nodes.values():
                run(node.settle())
            served.sendall(b"whole")
            assert client.recv(10) == b"whole"
