"""Services of a tenant: calls to their addresses, from pods on both nodes."""

from __future__ import annotations

import errno
import selectors
import socket
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

import pytest
from msgspec.structs import replace

from orlop.tenantnet.model import Frontend, Lease
from orlop.tenantnet.verdicts import Packet
from tests.tenants.told import told
from tests.tenants.world import LIMIT, OUTSIDE, PORT, World, command, eventually, frames, inside, run

IP, NUMBER = "10.96.0.77", 80
SCTP = 132


def frontend(*endpoints: Lease, protocol: Literal["tcp", "udp", "sctp"] = "tcp", **more: Any) -> Frontend:
    places = tuple((one.address, PORT) for one in endpoints)
    return Frontend(address=IP, protocol=protocol, port=NUMBER, endpoints=places, **more)


@pytest.fixture(autouse=True)
def none_left(two_nodes: World) -> Iterator[None]:
    yield
    for tenant in ("blue", "green"):
        two_nodes.serve(tenant)


class Answering:
    """Pods that answer calls."""

    def __init__(self, pods: Sequence[Lease], service: tuple[str, int] = (IP, NUMBER)) -> None:
        self._pods, self._service = pods, service

    def __enter__(self) -> Answering:
        self._stack = ExitStack()
        self._selector = self._stack.enter_context(selectors.DefaultSelector())
        for pod in self._pods:
            listener = self._stack.enter_context(inside(Path(pod.netns), self._listen))
            self._selector.register(listener, selectors.EVENT_READ, pod)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def _listen(self) -> socket.socket:
        return socket.create_server(("", PORT))

    def call(self, place: Path) -> tuple[Lease, str]:
        """Who answers a call to the Service, and from where it came."""

        def connect() -> socket.socket:
            return socket.create_connection(self._service, timeout=LIMIT)

        with inside(place, connect):
            ready = self._selector.select(LIMIT)
            assert len(ready) == 1
            listener = ready[0][0].fileobj
            assert isinstance(listener, socket.socket)
            served, caller = listener.accept()
            served.close()
            return ready[0][0].data, str(caller[0])


@contextmanager
def datagrams(pods: Sequence[Lease]) -> Iterator[dict[str, socket.socket]]:
    """Sockets of pods that hear datagrams, by the pods' addresses."""

    def listen() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind(("", PORT))
        return one

    with ExitStack() as stack:
        yield {pod.address: stack.enter_context(inside(Path(pod.netns), listen)) for pod in pods}


def _client(place: Path) -> socket.socket:
    """A socket that sends datagrams to the Service."""

    def make() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.settimeout(LIMIT)
        one.connect((IP, NUMBER))
        return one

    return inside(place, make)


def _said(client: socket.socket, servers: dict[str, socket.socket]) -> str:
    """Which pod a datagram came to; it answers, and is heard."""
    client.send(b"who")
    with selectors.DefaultSelector() as selector:
        for address, server in servers.items():
            selector.register(server, selectors.EVENT_READ, address)
        ready = selector.select(LIMIT)
    assert len(ready) == 1
    server = ready[0][0].fileobj
    assert isinstance(server, socket.socket)
    payload, caller = server.recvfrom(100)
    assert payload == b"who"
    server.sendto(b"me", caller)
    assert client.recv(100) == b"me"
    return str(ready[0][0].data)


@pytest.mark.parametrize("node", [1, 2])
def test_a_service_leads_to_all_its_endpoints_on_both_nodes(two_nodes: World, node: int) -> None:
    """Each is called, and sees who calls."""
    endpoints = [two_nodes.pods["blue", 1, 3], two_nodes.pods["blue", 2, 3]]
    caller = two_nodes.pods["blue", node, 2]
    two_nodes.serve("blue", frontend(*endpoints))
    with Answering(endpoints) as pods:
        seen: Counter[str] = Counter()
        while len(seen) < 2:
            answered, came_from = pods.call(Path(caller.netns))
            assert came_from == caller.address
            seen[answered.address] += 1
            assert sum(seen.values()) < 100, f"one of two is never called: {seen}"


@pytest.mark.parametrize("affinity", [0, 60])
def test_the_trace_follows_a_call(two_nodes: World, affinity: int) -> None:
    """To the endpoint, through both routers, with the rules that the kernel has."""
    two_nodes.serve("blue", frontend(two_nodes.pods["blue", 2, 3], affinity=affinity))
    way = told(two_nodes, two_nodes.pod("blue", 1), Packet(destination=IP, protocol="tcp", port=NUMBER))
    assert (way.arrives, way.end.name, way.packet.port) == (True, "blue/web-3", PORT)


def test_each_tenant_has_its_own_service_of_an_address(two_nodes: World) -> None:
    for tenant in ("blue", "green"):
        two_nodes.serve(tenant, frontend(two_nodes.pods[tenant, 2, 2]))
    for tenant in ("blue", "green"):
        with Answering([two_nodes.pods[one, 2, 2] for one in ("blue", "green")]) as pods:
            answered, _ = pods.call(two_nodes.pod(tenant, 1))
            assert answered.tenant == tenant


def test_a_pod_reaches_itself_by_its_service(two_nodes: World) -> None:
    pod = two_nodes.pods["blue", 1, 2]
    two_nodes.serve("blue", frontend(pod))
    with Answering([pod]) as pods:
        assert pods.call(Path(pod.netns)) == (pod, pod.alias)


@pytest.mark.parametrize("protocol", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_a_service_without_endpoints_refuses_at_once(two_nodes: World, protocol: int) -> None:
    two_nodes.serve("blue", frontend(), frontend(protocol="udp"))

    def call() -> int:
        with socket.socket(socket.AF_INET, protocol) as client:
            client.settimeout(LIMIT)
            try:
                client.connect((IP, NUMBER))
                client.send(b"hello")
                client.recv(100)
            except OSError as error:
                return error.errno or 0
        return 0

    assert inside(two_nodes.pod("blue", 1), call) == errno.ECONNREFUSED


@pytest.mark.parametrize("count", [3, 9])
def test_a_caller_with_affinity_keeps_its_endpoint_while_it_is_one(two_nodes: World, count: int) -> None:
    """Whatever other endpoints come and go. ``count`` of them: nine need a longer table than their number."""
    real = [two_nodes.pods["blue", 1, 3], two_nodes.pods["blue", 2, 2], two_nodes.pods["blue", 2, 3]]
    caller = two_nodes.pod("blue", 1)
    places = tuple((one.address, PORT) for one in real)
    # Further ports of the same pods would do, but an endpoint with affinity is known by its address.
    two_nodes.serve("blue", replace(frontend(affinity=3600), endpoints=places))
    with Answering(real) as pods:
        first, _ = pods.call(caller)
        for _ in range(10):
            assert pods.call(caller)[0] == first
        others = tuple((f"10.0.2.{200 + number}", PORT) for number in range(count - 1))
        two_nodes.serve("blue", replace(frontend(affinity=3600), endpoints=((first.address, PORT), *others)))
        for _ in range(10):
            assert pods.call(caller)[0] == first
        left = [one for one in real if one != first]
        two_nodes.serve("blue", frontend(*left, affinity=3600))
        second, _ = pods.call(caller)
        assert second in left
        two_nodes.serve("blue", frontend(*real, affinity=3600))
        for _ in range(10):
            assert pods.call(caller)[0] == second


def test_affinity_ends_when_nobody_has_called_for_its_time(two_nodes: World) -> None:
    """The kernel counts the time; that it was told the right one is seen in the table."""
    one, caller = two_nodes.pods["blue", 1, 2], two_nodes.pods["blue", 1, 3]
    two_nodes.serve("blue", frontend(one, affinity=40000))
    with Answering([one]) as pods:
        pods.call(Path(caller.netns))
    kept = command(two_nodes.nodes[1].router("blue"), "nft", "list", "map", "ip", "orlop", "kept")
    assert f"{IP} . tcp . {NUMBER} . {caller.address} timeout 12h expires" in kept


def test_datagrams_go_to_another_endpoint_when_theirs_is_gone(two_nodes: World) -> None:
    """From the socket that sent to the old one, which the kernel would send there for ever."""
    one, other = two_nodes.pods["blue", 1, 3], two_nodes.pods["blue", 2, 2]
    caller = two_nodes.pod("blue", 1)
    two_nodes.serve("blue", frontend(one, protocol="udp"))
    with datagrams([one, other]) as servers, _client(caller) as client:
        assert _said(client, servers) == one.address
        two_nodes.serve("blue", frontend(one, other, protocol="udp"))
        for _ in range(20):
            assert _said(client, servers) == one.address
        two_nodes.serve("blue", frontend(other, protocol="udp"))
        assert _said(client, servers) == other.address
        two_nodes.serve("blue", frontend(protocol="udp"))
        with pytest.raises(ConnectionRefusedError):
            client.send(b"who")
            client.recv(100)
        two_nodes.serve("blue", frontend(one, protocol="udp"))
        assert _said(client, servers) == one.address


def test_an_agent_that_starts_ends_flows_of_datagrams_that_lead_nowhere(two_nodes: World) -> None:
    one, other = two_nodes.pods["blue", 1, 3], two_nodes.pods["blue", 2, 2]
    two_nodes.serve("blue", frontend(one, protocol="udp"))
    with datagrams([one, other]) as servers, _client(two_nodes.pod("blue", 1)) as client:
        assert _said(client, servers) == one.address
        node = two_nodes.nodes[1]
        node.networks["blue"] = replace(node.networks["blue"], services=(frontend(other, protocol="udp"),))
        node.kernel = type(node.kernel)(node.routers, node.place)
        run(node.settle())
        assert _said(client, servers) == other.address


def _checksum(data: bytes) -> int:
    """CRC32c, which SCTP has (RFC 9260, appendix A)."""
    found = 0xFFFFFFFF
    for byte in data:
        found ^= byte
        for _ in range(8):
            found = found >> 1 ^ (0x82F63B78 if found & 1 else 0)
    return found ^ 0xFFFFFFFF


def test_an_association_of_sctp_is_led(two_nodes: World) -> None:
    """Its first packet, made by hand: not every kernel has such sockets."""
    pod, caller = two_nodes.pods["blue", 2, 2], two_nodes.pods["blue", 1, 2]
    two_nodes.serve("blue", frontend(pod, protocol="sctp"))
    begin = struct.pack("!BBHIIHHI", 1, 0, 20, 1, 65536, 1, 1, 1)
    head = struct.pack("!HHI", 40000, NUMBER, 0)
    packet = head + struct.pack("<I", _checksum(head + bytes(4) + begin)) + begin

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, SCTP) as client:
            client.sendto(packet, (IP, 0))

    with frames(Path(pod.netns), "eth0", 0x0800) as heard:
        inside(Path(caller.netns), send)
        came = heard.recv(1000)
    assert came[14 + 9] == SCTP
    assert struct.unpack("!HH", came[34:38]) == (40000, PORT)


def test_a_service_comes_and_goes_without_a_rule_that_is_written(two_nodes: World) -> None:
    def rules() -> str:
        """With their numbers, which rules that are written anew do not keep."""
        return command(two_nodes.nodes[1].router("blue"), "nft", "-a", "-s", "-t", "list", "ruleset")

    one, other = two_nodes.pods["blue", 1, 3], two_nodes.pods["blue", 2, 2]
    two_nodes.serve("blue", nodes=(1,))
    before = rules()
    hundred = [replace(frontend(one), port=8000 + number) for number in range(100)]
    two_nodes.serve("blue", *hundred, nodes=(1,))
    two_nodes.serve("blue", *hundred, frontend(one, other, affinity=60), nodes=(1,))
    assert rules() == before


def test_another_tenants_service_is_the_clusters_business(two_nodes: World) -> None:
    two_nodes.serve("green", frontend(two_nodes.pods["green", 1, 2], protocol="udp"))
    guards = two_nodes.nodes[1].guards("blue")
    before = guards.dropped("cluster")
    with _client(two_nodes.pod("blue", 1)) as client:
        client.send(b"who")
        eventually(lambda: guards.dropped("cluster") > before, "it meets no guard")


def test_connections_outlive_the_change_of_their_service(two_nodes: World) -> None:
    """Twenty of them, while endpoints and other Services come and go under load."""
    one, other = two_nodes.pods["blue", 1, 3], two_nodes.pods["blue", 2, 2]
    caller = two_nodes.pod("blue", 1)

    def connect() -> socket.socket:
        return socket.create_connection((IP, NUMBER), timeout=LIMIT)

    two_nodes.serve("blue", frontend(other))
    listener = inside(Path(other.netns), lambda: socket.create_server(("", PORT)))
    with ExitStack() as stack, Answering([one]):
        stack.enter_context(listener)
        links = []
        for _ in range(20):
            client = stack.enter_context(inside(caller, connect))
            served, _ = listener.accept()
            stack.enter_context(served)
            served.settimeout(LIMIT)
            links.append((client, served))
        for step in range(30):
            more = [replace(frontend(one), port=8000 + number) for number in range(step)]
            chosen = (one, other) if step % 2 else (other,)
            two_nodes.serve("blue", frontend(*chosen), *more, nodes=(1,))
            for client, served in links:
                client.sendall(b"%d" % step)
                assert served.recv(100) == b"%d" % step


def test_a_service_may_lead_outside_where_its_tenant_may_go(two_nodes: World) -> None:
    """As one with a slice that was written by hand; the world sees the node."""
    node = two_nodes.nodes[1]
    two_nodes.serve("blue", replace(frontend(), endpoints=((OUTSIDE, PORT),)))
    listener = inside(two_nodes.lan, lambda: socket.create_server((OUTSIDE, PORT)))

    def connect() -> socket.socket:
        return socket.create_connection((IP, NUMBER), timeout=LIMIT)

    with listener, inside(two_nodes.pod("blue", 1), connect):
        listener.settimeout(LIMIT)
        served, caller = listener.accept()
        served.close()
        assert caller[0] == node.address
