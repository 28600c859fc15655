"""What pods of tenants are told about names by real sockets in real routers, and what they cannot do."""

from __future__ import annotations

import asyncio
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import dns.message
import dns.rcode
import pytest
from dns.flags import TC

from orlop.errors import Unavailable
from orlop.host import netns
from orlop.tenantdns import server
from orlop.tenantdns.names import Around, TenantNames
from orlop.tenantdns.zone import NamedEndpoint, NamedPod, NamedPort, NamedService, TenantContents
from tests.tenants.questions import LARGE, ask, ask_by_stream, records, resolver, send
from tests.tenants.world import (
    CLOSED,
    DENIED,
    DNS,
    LIMIT,
    NODES,
    OUTSIDE,
    PLAIN,
    SERVICE,
    TestNode,
    World,
    command,
    udp,
)

WEB = "web.{}.svc.cluster.local"
SHARED = "10.96.7.7"
HEADLESS = 300
NAMES_GUARDS = ("dns-questions", "dns-connections", "dns-silence")
"""What guards the DNS in a router: tried here, one after the other."""


def contents(tenant: str, address: str = SHARED) -> TenantContents:
    """The same names for each tenant, in a namespace of its own name."""
    endpoints = tuple(NamedEndpoint(address=f"10.0.{3 + n // 200}.{n % 200}") for n in range(HEADLESS))
    port = NamedPort(name="http", number=80)
    return TenantContents(
        namespaces=(tenant,),
        services=(
            NamedService(namespace=tenant, name="web", addresses=(address,), ports=(port,)),
            NamedService(namespace=tenant, name=f"only-{tenant}", addresses=(address,)),
            NamedService(namespace=tenant, name="many", endpoints=endpoints),
            NamedService(namespace=tenant, name="out", external="outside.example"),
        ),
        pods=(NamedPod(namespace=tenant, address="10.0.1.2", alias="10.64.1.152"),),
        ranges=("10.0.0.0/16", *CLOSED),
    )


@asynccontextmanager
async def serving(node: TestNode, resolvers: Path, **forwarders: str) -> AsyncIterator[TenantNames]:
    """The DNS of both tenants on a node, until the block ends."""
    names = TenantNames(Around(addresses=(DNS,), node=node.place, configuration=resolvers))
    try:
        for tenant in node.networks:
            names.told(tenant, contents(tenant), own=f"{tenant}.example.net")
            chosen = [forwarders[tenant]] if tenant in forwarders else []
            await names.stand(tenant, node.router(tenant), chosen)
        yield names
    finally:
        await names.close()


@pytest.fixture
def nobody(tmp_path: Path) -> Path:
    """A node that has no resolvers."""
    return tmp_path / "none"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A node whose resolver is in the world."""
    file = tmp_path / "resolv.conf"
    file.write_text(f"# the node's\nnameserver {OUTSIDE}\noptions ndots:1\n")
    return file


@pytest.fixture
async def names(two_nodes: World, nobody: Path) -> AsyncIterator[TenantNames]:
    async with serving(two_nodes.nodes[1], nobody) as one:
        yield one


async def test_each_pod_is_told_the_names_of_its_own_tenant(two_nodes: World, names: TenantNames) -> None:
    """Both tenants' pods have the same addresses, and ask the same address."""
    for tenant, other in (("blue", "green"), ("green", "blue")):
        pod = two_nodes.pod(tenant, 1)
        assert records(await ask(pod, WEB.format(tenant))) == {SHARED}
        assert records(await ask(pod, f"web.{tenant}.{tenant}.example.net")) == {SHARED}
        assert records(await ask(pod, f"_http._tcp.{WEB.format(tenant)}", "SRV"))
        assert records(await ask(pod, f"10-0-1-2.{tenant}.pod.cluster.local")) == {"10.0.1.2"}
        told = await ask(pod, "2.1.0.10.in-addr.arpa", "PTR")
        assert records(told) == {f"10-0-1-2.{tenant}.pod.cluster.local."}
        for foreign in (
            WEB.format(other),
            f"only-{other}.{tenant}.svc.cluster.local",
            f"{other}.svc.cluster.local",
        ):
            assert (await ask(pod, foreign)).rcode() == dns.rcode.NXDOMAIN, foreign
        assert (await ask(pod, "kubernetes.default.svc.cluster.local")).rcode() == dns.rcode.NXDOMAIN


async def test_the_resolver_that_every_program_has(
    two_nodes: World, names: TenantNames, tmp_path: Path
) -> None:
    """glibc's, with what a kubelet writes for it."""
    file = tmp_path / "pod.conf"
    file.write_text(f"search blue.svc.cluster.local svc.cluster.local\nnameserver {DNS}\noptions ndots:5\n")
    inside = f"mount --bind {file} /etc/resolv.conf && exec getent ahostsv4 web"
    argv = ["nsenter", f"--net={two_nodes.pod('blue', 1)}", "unshare", "--mount", "sh", "-c", inside]
    child = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
    said, _ = await child.communicate()
    assert child.returncode == 0
    assert said.startswith(SHARED.encode())


async def test_what_is_too_long_for_a_datagram_comes_by_a_connection(
    two_nodes: World, names: TenantNames
) -> None:
    pod, many = two_nodes.pod("blue", 1), "many.blue.svc.cluster.local"
    cut = await ask(pod, many)
    assert cut.flags & TC
    assert 10 < len(records(cut)) < HEADLESS
    whole, again = await ask_by_stream(pod, (many, "A"), (WEB.format("blue"), "A"))
    assert len(records(whole)) == HEADLESS
    assert records(again) == {SHARED}


async def test_names_follow_the_cluster(two_nodes: World, names: TenantNames) -> None:
    pod, web = two_nodes.pod("blue", 1), WEB.format("blue")
    assert records(await ask(pod, web)) == {SHARED}
    names.told("blue", contents("blue", "10.96.7.8"))
    assert records(await ask(pod, web)) == {"10.96.7.8"}
    names.forget("blue")
    assert (await ask(pod, web)).rcode() == dns.rcode.NXDOMAIN
    assert records(await ask(two_nodes.pod("green", 1), WEB.format("green"))) == {SHARED}


async def test_the_resolvers_of_the_node_know_the_rest(
    two_nodes: World, outside: Path, tmp_path: Path
) -> None:
    async with (
        resolver(two_nodes.lan, OUTSIDE, tmp_path / "log") as others,
        serving(two_nodes.nodes[1], outside),
    ):
        pod = two_nodes.pod("blue", 1)
        assert records(await ask(pod, "outside.example")) == {"192.0.2.77"}
        asked = others.asked("outside.example")
        assert records(await ask(pod, "OUTSIDE.example")) == {"192.0.2.77"}
        assert others.asked("outside.example") == asked
        assert records(await ask(pod, "alias.example")) == {"outside.example.", "192.0.2.77"}
        assert records(await ask(pod, "out.blue.svc.cluster.local")) == {"outside.example.", "192.0.2.77"}
        assert (await ask(pod, "none.example")).rcode() == dns.rcode.NXDOMAIN
        (large,) = await ask_by_stream(pod, ("large.example", "TXT"))
        assert len(records(large)) == LARGE
        # What is the tenant's own, or the cluster's, is never asked for outside.
        await ask(pod, WEB.format("green"))
        await ask(pod, "1.0.96.10.in-addr.arpa", "PTR")
        assert not others.asked(WEB.format("green"))
        assert not others.asked("10.96.0.1")


async def test_a_tenants_own_resolvers_are_asked_as_far_as_its_egress_goes(
    two_nodes: World, nobody: Path, tmp_path: Path
) -> None:
    """Blue chose one that it may not reach, green one that it may."""
    node = two_nodes.nodes[1]
    async with (
        resolver(two_nodes.lan, OUTSIDE, tmp_path / "outside") as allowed,
        resolver(two_nodes.lan, DENIED, tmp_path / "denied") as denied,
        serving(node, nobody, green=OUTSIDE, blue=DENIED),
    ):
        begun = denied.asked("outside.example")
        dropped = node.guards("blue").dropped("egress-deny")
        assert records(await ask(two_nodes.pod("green", 1), "outside.example")) == {"192.0.2.77"}
        assert allowed.asked("outside.example")
        refused = await ask(two_nodes.pod("blue", 1), "outside.example")
        assert refused.rcode() == dns.rcode.SERVFAIL
        assert denied.asked("outside.example") == begun
        assert node.guards("blue").dropped("egress-deny") > dropped
        # With the guard taken away it is asked: nothing else was in the way.
        node.guards("blue").take_away("egress-deny")
        try:
            async with asyncio.timeout(LIMIT):  # what failed is remembered for a while
                while refused.rcode() == dns.rcode.SERVFAIL:
                    refused = await ask(two_nodes.pod("blue", 1), "outside.example")
            assert records(refused) == {"192.0.2.77"}
        finally:
            await node.kernel.filter(node.networks["blue"], node.ground, node.of("blue"))


@pytest.mark.parametrize("address", [NODES[1], NODES[2], SERVICE, PLAIN[1], DNS])
async def test_resolvers_that_no_tenant_may_choose(two_nodes: World, nobody: Path, address: str) -> None:
    """Those of nodes, of the cluster, and itself: nothing is sent there, and no question goes round."""
    node = two_nodes.nodes[1]
    places = {
        NODES[1]: node.place,
        NODES[2]: two_nodes.nodes[2].place,
        SERVICE: node.place,
        PLAIN[1]: node.plain,
    }
    async with serving(node, nobody, blue=address):
        if address in places:
            with await asyncio.to_thread(udp, places[address], address, 53) as heard:
                heard.setblocking(False)
                assert (await ask(two_nodes.pod("blue", 1), "outside.example")).rcode() == dns.rcode.SERVFAIL
                with pytest.raises(BlockingIOError):
                    heard.recv(1)
        else:
            assert (await ask(two_nodes.pod("blue", 1), "outside.example")).rcode() == dns.rcode.SERVFAIL


async def test_a_tenants_resolver_may_be_a_pod_of_its_own(
    two_nodes: World, nobody: Path, tmp_path: Path
) -> None:
    for number, address in ((1, "10.0.1.3"), (2, "10.0.2.2")):
        place = two_nodes.pod("blue", number, 3 if number == 1 else 2)
        async with (
            resolver(place, address, tmp_path / f"log{number}"),
            serving(two_nodes.nodes[1], nobody, blue=address),
        ):
            assert records(await ask(two_nodes.pod("blue", 1), "outside.example")) == {"192.0.2.77"}


async def test_forged_answers_are_not_believed(two_nodes: World, outside: Path) -> None:
    """The resolver's address sends what answers nothing that was asked, and then the truth."""
    loop = asyncio.get_running_loop()
    with await asyncio.to_thread(udp, two_nodes.lan, OUTSIDE, 53) as line:
        line.setblocking(False)

        async def lie() -> None:
            asked, caller = await loop.sock_recvfrom(line, 4096)
            query = dns.message.from_wire(asked)
            for forged in (
                _answer(query, "192.0.2.66", number=query.id ^ 1),
                _answer(dns.message.make_query("else.example", "A", id=query.id), "192.0.2.66"),
                asked,
                b"",
                asked[:2] + b"\xff" * 40,
                _answer(query, "192.0.2.77", also="bank.example"),
            ):
                await loop.sock_sendto(line, forged, caller)

        async with serving(two_nodes.nodes[1], outside), asyncio.TaskGroup() as group:
            group.create_task(lie())
            pod = two_nodes.pod("blue", 1)
            answer = await ask(pod, "outside.example")
            assert records(answer) == {"192.0.2.77"}
            # What it said beside is not known: the resolver is silent about it now.
            assert (await ask(pod, "bank.example")).rcode() == dns.rcode.SERVFAIL


def _answer(query: dns.message.Message, address: str, *, number: int = -1, also: str = "") -> bytes:
    response = dns.message.make_response(query)  # type: ignore[arg-type]
    if number >= 0:
        response.id = number
    for name in filter(None, (query.question[0].name.to_text(), also and f"{also}.")):
        response.answer.append(dns.rrset.from_text(name, 60, "IN", "A", address))
    return response.to_wire()


async def test_pods_reach_nothing_of_the_resolver_but_its_port(two_nodes: World, names: TenantNames) -> None:
    """The router's other addresses and ports, the DNS of a node or of the cluster itself."""
    pod, node = two_nodes.pod("blue", 1), two_nodes.nodes[1]
    question = dns.message.make_query(WEB.format("blue"), "A").to_wire()
    for address in ("10.0.1.1", node.networks["blue"].sender, node.networks["green"].sender, NODES[1]):
        with pytest.raises((TimeoutError, OSError)):
            await send(pod, question, address)
    for place in (node.plain, node.place, two_nodes.pod("blue", 2)):
        # The address is a tenant's router's own: for others it is the cluster's, which is not there here.
        with pytest.raises((TimeoutError, OSError)):
            await send(place, question)
    with pytest.raises((TimeoutError, OSError)):
        await send(node.place, question, node.networks["blue"].sender)


async def test_a_pod_that_floods_slows_itself(two_nodes: World, names: TenantNames) -> None:
    """As many questions as it can send: the router drops them, and another pod of the tenant is answered."""
    node, flooding = two_nodes.nodes[1], two_nodes.pod("blue", 1, 3)
    question = dns.message.make_query(WEB.format("blue"), "A").to_wire()

    def flood() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as line:
            line.connect((DNS, 53))
            for _ in range(20000):
                line.send(question)

    before = node.guards("blue").dropped("dns-questions")
    await netns.within(flooding, flood)
    assert node.guards("blue").dropped("dns-questions") - before > 10000
    assert records(await ask(two_nodes.pod("blue", 1), WEB.format("blue"))) == {SHARED}
    entries = command(node.router("blue"), "nft", "list", "set", "ip", "orlop", "askers")
    assert "10.0.1.3" in entries


async def test_connections_are_counted(two_nodes: World, names: TenantNames) -> None:
    """Those that say nothing take no more than one pod may have."""
    pod, idle = two_nodes.pod("blue", 1), []
    loop = asyncio.get_running_loop()
    try:
        for _ in range(server.CONNECTIONS_EACH + 5):
            idle.append(await _connected(pod))
        gone = 0
        async with asyncio.timeout(LIMIT):
            for line in idle[server.CONNECTIONS_EACH :]:
                gone += not await loop.sock_recv(line, 1)
        assert gone == 5
        (other,) = await ask_by_stream(two_nodes.pod("blue", 1, 3), (WEB.format("blue"), "A"))
        assert records(other) == {SHARED}
    finally:
        for line in idle:
            line.close()


async def test_a_pod_makes_no_flood_of_connections(two_nodes: World, names: TenantNames) -> None:
    def flood() -> None:
        for _ in range(300):
            with socket.socket() as line:
                line.setblocking(False)
                line.connect_ex((DNS, 53))

    guards = two_nodes.nodes[1].guards("blue")
    before = guards.dropped("dns-connections")
    await netns.within(two_nodes.pod("blue", 1, 3), flood)
    assert guards.dropped("dns-connections") - before > 100
    (other,) = await ask_by_stream(two_nodes.pod("blue", 1), (WEB.format("blue"), "A"))
    assert records(other) == {SHARED}


async def _connected(place: Path) -> socket.socket:
    def make() -> socket.socket:
        line = socket.create_connection((DNS, 53), timeout=LIMIT)
        line.setblocking(False)
        return line

    return await netns.within(place, make)


async def test_an_agent_that_starts_anew_is_waited_for(two_nodes: World, nobody: Path) -> None:
    """Nobody is refused meanwhile: a pod that asked hears nothing, asks again, and is answered."""
    node, pod = two_nodes.nodes[1], two_nodes.pod("blue", 1)
    async with serving(node, nobody):
        assert records(await ask(pod, WEB.format("blue"))) == {SHARED}
    question = dns.message.make_query(WEB.format("blue"), "A").to_wire()
    silenced = node.guards("blue").dropped("dns-silence")
    with pytest.raises(TimeoutError):
        await send(pod, question)
    assert node.guards("blue").dropped("dns-silence") > silenced
    node.guards("blue").take_away("dns-silence")
    try:
        with pytest.raises(ConnectionRefusedError):
            await send(pod, question)
    finally:
        await node.kernel.filter(node.networks["blue"], node.ground, node.of("blue"))
    async with asyncio.TaskGroup() as group:
        waiting = group.create_task(ask(pod, WEB.format("blue")))
        async with serving(node, nobody):
            assert records(await waiting) == {SHARED}


async def test_a_router_that_is_not_there_has_no_dns(two_nodes: World, nobody: Path, tmp_path: Path) -> None:
    names = TenantNames(Around(addresses=(DNS,), node=two_nodes.nodes[1].place, configuration=nobody))
    with pytest.raises(Unavailable, match="cannot be opened"):
        await names.stand("blue", tmp_path / "gone")
    with pytest.raises(Unavailable, match="cannot be opened"):
        await names.stand("blue", two_nodes.lan)  # which has not that address
    await names.close()
