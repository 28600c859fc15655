"""What pods of tenants reach, and by which address they are reached."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from msgspec.structs import replace

from orlop.tenantnet.verdicts import Packet
from tests.tenants.told import told
from tests.tenants.world import LIMIT, OUTSIDE, PLAIN, PORT, TENANTS, World, command, inside, run, udp


class Server:
    """Says its name and the caller's address to everyone who calls."""

    def __init__(self, place: Path, name: str) -> None:
        self._name = name
        self._socket = inside(place, self._listen)

    def _listen(self) -> socket.socket:
        return socket.create_server(("", PORT))

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        self._socket.close()

    def asked(self, place: Path, address: str) -> tuple[str, str]:
        """The name said and the address seen, when somebody at ``place`` calls ``address``."""

        def call() -> socket.socket:
            link = socket.socket()
            link.settimeout(LIMIT)
            link.connect((address, PORT))
            return link

        with inside(place, call) as client:
            self._socket.settimeout(LIMIT)
            served, caller = self._socket.accept()
            with served:
                served.sendall(self._name.encode())
            return client.recv(100).decode(), str(caller[0])


def have_the_trace_agree(two_nodes: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever is asked here is found by the trace, too, and sees the address that it says."""
    asked = Server.asked

    def told_and_asked(self: Server, place: Path, address: str) -> tuple[str, str]:
        journey = told(two_nodes, place, Packet(destination=address, protocol="tcp", port=PORT))
        name, caller = asked(self, place, address)
        assert (journey.guards, journey.arrives, journey.packet.source) == ((), True, caller)
        return name, caller

    monkeypatch.setattr(Server, "asked", told_and_asked)


@pytest.fixture(autouse=True)
def told_beforehand(two_nodes: World, monkeypatch: pytest.MonkeyPatch) -> None:
    have_the_trace_agree(two_nodes, monkeypatch)


@pytest.mark.parametrize("tenant", TENANTS)
@pytest.mark.parametrize(("node", "number"), [(1, 3), (2, 2)], ids=["same node", "other node"])
def test_pods_of_a_tenant_reach_each_other(two_nodes: World, tenant: str, node: int, number: int) -> None:
    """Both tenants have a pod of each address; who answers is the own one, and it sees who calls."""
    one, other = two_nodes.pods[tenant, 1, 2], two_nodes.pods[tenant, node, number]
    with Server(Path(other.netns), tenant) as server:
        assert server.asked(Path(one.netns), other.address) == (tenant, one.address)
    with Server(Path(one.netns), tenant) as server:
        assert server.asked(Path(other.netns), one.address) == (tenant, other.address)


@pytest.mark.parametrize("tenant", TENANTS)
@pytest.mark.parametrize("node", [1, 2])
def test_a_node_reaches_its_pods_by_their_aliases(two_nodes: World, tenant: str, node: int) -> None:
    """As the kubelet's probes do, with the node's address."""
    pod, here = two_nodes.pods[tenant, node, 2], two_nodes.nodes[node]
    with Server(Path(pod.netns), tenant) as server:
        assert server.asked(here.place, pod.alias) == (tenant, here.address)


def test_another_node_and_the_world_reach_a_pod_by_its_alias(two_nodes: World) -> None:
    """As the API server and calls to ports of the host do."""
    pod = two_nodes.pods["green", 1, 2]
    with Server(Path(pod.netns), "green") as server:
        assert server.asked(two_nodes.nodes[2].place, pod.alias) == ("green", "192.0.2.12")
        assert server.asked(two_nodes.lan, pod.alias) == ("green", "192.0.2.1")


def test_a_pod_reaches_itself_and_its_neighbour_by_alias(two_nodes: World) -> None:
    one, other = two_nodes.pods["blue", 1, 2], two_nodes.pods["blue", 1, 3]
    with Server(Path(one.netns), "blue") as server:
        assert server.asked(Path(one.netns), one.alias) == ("blue", one.alias)
        assert server.asked(Path(other.netns), one.alias) == ("blue", other.address)


@pytest.mark.parametrize("tenant", TENANTS)
def test_a_pod_reaches_pods_of_its_tenant_on_other_nodes_by_alias(two_nodes: World, tenant: str) -> None:
    one, other = two_nodes.pods[tenant, 1, 2], two_nodes.pods[tenant, 2, 2]
    node = two_nodes.nodes[1]
    network = node.networks[tenant]
    node.networks[tenant] = replace(network, elsewhere=((other.alias, other.address),))
    try:
        run(node.settle())
        with Server(Path(other.netns), tenant) as server:
            assert server.asked(Path(one.netns), other.alias) == (tenant, one.address)
    finally:
        node.networks[tenant] = network
        run(node.settle())


@pytest.mark.parametrize("tenant", TENANTS)
def test_what_leaves_the_cluster_has_the_nodes_address(two_nodes: World, tenant: str) -> None:
    for number, node in two_nodes.nodes.items():
        with Server(two_nodes.lan, "world") as server:
            assert server.asked(two_nodes.pod(tenant, number), OUTSIDE) == ("world", node.address)


def test_packets_as_large_as_the_link_allows_cross_the_tunnel(two_nodes: World) -> None:
    one, other = two_nodes.pods["blue", 1, 2], two_nodes.pods["blue", 2, 2]
    link = command(Path(one.netns), "ip", "-o", "link", "show", "eth0")
    mtu = int(link.split("mtu ")[1].split()[0])
    payload = bytes(mtu - 28)

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.IPPROTO_IP, 10, 2)  # IP_MTU_DISCOVER: never in fragments
            client.sendto(payload, (other.address, PORT))

    with udp(Path(other.netns)) as server:
        inside(Path(one.netns), send)
        assert server.recv(2 * mtu) == payload


def _state(world: World) -> list[str]:
    found = []
    for node in world.nodes.values():
        for place in (node.place, *(node.router(tenant) for tenant in TENANTS)):
            found += [
                command(place, "ip", "-o", "link"),
                command(place, "ip", "route"),
                command(place, "ip", "neigh", "show", "nud", "permanent"),
                command(place, "nft", "-s", "list", "ruleset"),
            ]
    return found


def test_doing_it_again_changes_nothing(two_nodes: World) -> None:
    before = _state(two_nodes)
    for node in two_nodes.nodes.values():
        run(node.settle())
    assert _state(two_nodes) == before


def test_a_connection_outlives_a_restart(two_nodes: World) -> None:
    """Its packets meet the tables of before or of after, and the same connection tracking."""
    one = two_nodes.pods["blue", 1, 2]

    def call() -> socket.socket:
        return socket.create_connection((OUTSIDE, PORT), timeout=LIMIT)

    listener = inside(two_nodes.lan, lambda: socket.create_server(("", PORT)))
    with listener, inside(Path(one.netns), call) as client:
        served, _ = listener.accept()
        with served:
            for node in two_nodes.nodes.values():
                run(node.settle())
            client.sendall(b"still here")
            served.settimeout(LIMIT)
            assert served.recv(100) == b"still here"


def test_what_is_broken_is_repaired(two_nodes: World) -> None:
    node, one, other = two_nodes.nodes[1], two_nodes.pods["blue", 1, 2], two_nodes.pods["blue", 2, 2]
    router = node.router("blue")
    command(router, "ip", "route", "flush", "proto", "111")
    command(router, "ip", "neigh", "flush", "all", "nud", "permanent")
    command(router, "bridge", "fdb", "del", "0a:6f:c0:00:02:0c", "dev", "vxlan", "dst", "192.0.2.12", "self")
    command(router, "nft", "flush", "ruleset")
    command(node.place, "ip", "route", "flush", "proto", "111")
    run(node.settle())
    with Server(Path(other.netns), "blue") as server:
        assert server.asked(Path(one.netns), other.address) == ("blue", one.address)
    with Server(Path(one.netns), "blue") as server:
        assert server.asked(node.place, one.alias) == ("blue", node.address)


def test_what_an_administrator_made_is_left_alone(two_nodes: World) -> None:
    node = two_nodes.nodes[1]
    command(node.place, "ip", "route", "add", "198.51.100.0/24", "via", "192.0.2.1")
    command(node.place, "nft", "add", "table", "inet", "by_hand")
    run(node.settle())
    assert "198.51.100.0/24" in command(node.place, "ip", "route")
    assert "by_hand" in command(node.place, "nft", "list", "tables")


def test_a_pod_without_a_tenant_reaches_its_node_as_before(two_nodes: World) -> None:
    node = two_nodes.nodes[1]
    with Server(node.place, "node") as server:
        assert server.asked(node.plain, node.address) == ("node", PLAIN[1])
