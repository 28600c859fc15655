"""Two nodes with two tenants, and the world around them: network namespaces, and a kernel in them.

    lan (192.0.2.1, the world: 203.0.113.x, 169.254.169.254)
     |- node1 192.0.2.11 - routers of blue and green - pods
     |- node2 192.0.2.12 - routers of blue and green - pods

Both tenants have the same range, the same blocks and the same addresses. Nothing has a name outside: the
namespaces are pinned below one directory, and what is in them goes with them.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from msgspec.structs import replace

from orlop.host import netns
from orlop.tenantnet.kernel import NodeKernel
from orlop.tenantnet.model import Balanced, Frontend, Ground, Lease, LocalNetwork, Peer
from tests.patience import PATIENCE

T = TypeVar("T")

LIMIT = 20.0 * PATIENCE
CIDR = "10.0.0.0/16"
BLOCKS = {1: "10.0.1.0/24", 2: "10.0.2.0/24"}
NODES = {1: "192.0.2.11", 2: "192.0.2.12"}
CLOSED = ("10.64.0.0/16", "10.96.0.0/16")
GATEWAY, OUTSIDE, DENIED, METADATA = "192.0.2.1", "203.0.113.1", "203.0.113.66", "169.254.169.254"
SERVICE, DNS = "10.96.0.1", "10.96.0.10"
NOWHERE = "10.0.77.7"
"""Of the tenants' range and no node's block; the world has it, too."""
PLAIN = {1: "10.64.1.5", 2: "10.64.2.5"}
"""Pods of no tenant."""
TENANTS = {"blue": 42, "green": 43}
PORT = 7000


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(work)


def inside(place: Path, work: Callable[[], T]) -> T:
    """Call a function in a network namespace. A socket that it makes stays there, whoever uses it."""
    return asyncio.run(netns.within(place, work))


def command(place: Path, *argv: str, stdin: str = "") -> str:
    """Run a command in a network namespace. Raises AssertionError when it fails."""
    done = subprocess.run(
        ["nsenter", f"--net={place}", *argv], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stderr}"
    return done.stdout


def udp(place: Path, address: str = "", port: int = PORT) -> socket.socket:
    """A socket in a network namespace that hears datagrams."""

    def make() -> socket.socket:
        one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        one.bind((address, port))
        one.settimeout(LIMIT)
        return one

    return inside(place, make)


def frames(place: Path, link: str, kind: int = 0x0003) -> socket.socket:
    """A socket that hears, and says, whole frames of a link."""

    def make() -> socket.socket:
        one = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        one.bind((link, kind))
        one.settimeout(LIMIT)
        return one

    return inside(place, make)


def eventually(look: Callable[[], bool], what: str) -> None:
    limit = time.monotonic() + LIMIT
    while not look():
        assert time.monotonic() < limit, what
        time.sleep(0.01)


class Guards:
    """The guards in a network namespace: rules that drop, by their names."""

    def __init__(self, place: Path) -> None:
        self._place = place

    def _rules(self) -> dict[str, dict[str, Any]]:
        listed = json.loads(command(self._place, "nft", "-j", "-a", "list", "ruleset"))
        found = (entry["rule"] for entry in listed["nftables"] if "rule" in entry)
        return {rule["comment"]: rule for rule in found if "comment" in rule}

    def names(self) -> set[str]:
        return set(self._rules())

    def dropped(self, name: str) -> int:
        """How many packets the guard has dropped."""
        parts = self._rules()[name]["expr"]
        return next(part["counter"]["packets"] for part in parts if "counter" in part)

    def take_away(self, name: str) -> None:
        rule = self._rules()[name]
        words = (
            "delete",
            "rule",
            rule["family"],
            rule["table"],
            rule["chain"],
            "handle",
            str(rule["handle"]),
        )
        command(self._place, "nft", *words)


class TestNode:
    """A node: its namespace, its kernel, and the pods on it."""

    __test__ = False

    def __init__(self, directory: Path, number: int) -> None:
        self.number, self.address = number, NODES[number]
        self.place = directory / f"node{number}"
        self.routers = directory / f"routers{number}"
        self.plain = directory / f"plain{number}"
        self.kernel = NodeKernel(self.routers, self.place)
        self.ground = Ground(
            address=self.address,
            aliases=f"10.64.{number}.128/25",
            nodes=tuple(NODES.values()),
            closed=CLOSED,
            dns=(DNS,),
        )
        self.leases: list[Lease] = []
        self.networks = {name: self._network(name, vni) for name, vni in TENANTS.items()}

    def _network(self, name: str, vni: int) -> LocalNetwork:
        other = 3 - self.number
        return LocalNetwork(
            name=name,
            vni=vni,
            cidr=CIDR,
            block=BLOCKS[self.number],
            peers=(Peer(address=NODES[other], block=BLOCKS[other]),),
            allow=("0.0.0.0/0",) if name == "blue" else (f"{OUTSIDE}/32",),
            deny=("169.254.0.0/16", f"{DENIED}/32"),
        )

    def router(self, tenant: str) -> Path:
        return self.routers / self.networks[tenant].namespace

    def guards(self, tenant: str = "") -> Guards:
        """Those of a tenant's router, or of the node itself."""
        return Guards(self.router(tenant) if tenant else self.place)

    def of(self, tenant: str) -> list[Lease]:
        return [lease for lease in self.leases if lease.tenant == tenant]

    async def settle(self) -> None:
        """Make everything as it is wanted."""
        await self.kernel.prepare(self.ground)
        for name, network in self.networks.items():
            await self.kernel.set_up(network, self.ground, self.of(name))
        outside = [address for network in self.networks.values() for address in network.outside]
        await self.kernel.filter_node(self.ground, outside)
        await self.kernel.answer_for(self.ground, outside)

    async def add(self, directory: Path, tenant: str, number: int) -> Lease:
        """A pod: the tenants' pods of one number have the same address."""
        network = self.networks[tenant]
        place = directory / f"{tenant}-{self.number}-{number}"
        await netns.create(place)
        lease = Lease(
            container=f"{tenant}-{self.number}-{number}",
            interface="eth0",
            netns=str(place),
            tenant=tenant,
            vni=network.vni,
            address=f"10.0.{self.number}.{number}",
            alias=f"10.64.{self.number}.{TENANTS[tenant] + 90 + 10 * number}",
            namespace=tenant,
            pod=f"web-{number}",
            uid=f"uid-{tenant}-{self.number}-{number}",
        )
        await self.kernel.plug(network, self.ground, lease)
        self.leases.append(lease)
        await self.kernel.filter(network, self.ground, self.of(tenant))
        return lease

    async def clear(self) -> None:
        """Take it down."""
        for network in self.networks.values():
            await self.kernel.take_down(network.namespace, network.uplink)
        for router in [*self.routers.glob("*")]:
            await netns.delete(router)
        for lease in self.leases:
            await netns.delete(Path(lease.netns))
        await netns.delete(self.plain)
        await netns.delete(self.place)


class World:
    """All of it. ``pods`` are the leases by tenant, node and number."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.lan = directory, directory / "lan"
        self.nodes = {number: TestNode(directory, number) for number in NODES}
        self.pods: dict[tuple[str, int, int], Lease] = {}

    async def build(self) -> None:
        """The nodes with their routers and pods."""
        await self.build_nodes()
        for node in self.nodes.values():
            await node.settle()
            for tenant in TENANTS:
                for pod in (2, 3):
                    self.pods[tenant, node.number, pod] = await node.add(self.directory, tenant, pod)

    async def build_nodes(self) -> None:
        """The nodes alone."""
        await netns.create(self.lan)
        command(self.lan, "ip", "link", "add", "lan0", "type", "bridge")
        for address in (f"{GATEWAY}/24", f"{OUTSIDE}/32", f"{DENIED}/32", f"{METADATA}/32", f"{NOWHERE}/32"):
            command(self.lan, "ip", "address", "add", address, "dev", "lan0")
        command(self.lan, "ip", "link", "set", "lan0", "up")
        for number, node in self.nodes.items():
            await netns.create(node.place)
            ends = ["name", f"n{number}", "type", "veth", "peer", "name", "eth0", "netns", str(node.place)]
            command(self.lan, "ip", "link", "add", *ends)
            command(self.lan, "ip", "link", "set", f"n{number}", "master", "lan0", "up")
            command(self.lan, "ip", "route", "add", f"10.64.{number}.0/24", "via", node.address)
            self._node(node)
            await self._plain(node)

    def _node(self, node: TestNode) -> None:
        other = 3 - node.number
        command(node.place, "ip", "address", "add", f"{node.address}/24", "dev", "eth0")
        command(node.place, "ip", "link", "set", "eth0", "up")
        command(node.place, "ip", "route", "add", "default", "via", GATEWAY)
        command(node.place, "ip", "route", "add", f"10.64.{other}.0/24", "via", NODES[other])
        command(node.place, "ip", "address", "add", f"{SERVICE}/32", "dev", "lo")

    async def _plain(self, node: TestNode) -> None:
        """A pod of no tenant, as a bridge plug-in makes it."""
        await netns.create(node.plain)
        gateway = f"10.64.{node.number}.1"
        ends = ["name", "plain0", "type", "veth", "peer", "name", "eth0", "netns", str(node.plain)]
        command(node.place, "ip", "link", "add", *ends)
        command(node.place, "ip", "address", "add", f"{gateway}/24", "dev", "plain0")
        command(node.place, "ip", "link", "set", "plain0", "up")
        command(node.plain, "ip", "address", "add", f"{PLAIN[node.number]}/24", "dev", "eth0")
        command(node.plain, "ip", "link", "set", "eth0", "up")
        command(node.plain, "ip", "route", "add", "default", "via", gateway)
        command(node.plain, "ip", "route", "add", node.ground.aliases, "via", gateway)

    def serve(self, tenant: str, *services: Frontend, nodes: Sequence[int] = (1, 2)) -> None:
        """Have the tenant's routers know these Services and no others."""
        for node in (self.nodes[number] for number in nodes):
            network = replace(node.networks[tenant], services=services)
            node.networks[tenant] = network
            run(node.kernel.filter(network, node.ground, node.of(tenant)))

    def balance(self, tenant: str, *balanced: Balanced, at: int = 1) -> None:
        """Have these addresses lead to the tenant's Services by one node, and no others by any."""
        for node in self.nodes.values():
            own = balanced if node.number == at else ()
            if node.networks[tenant].balanced != own:
                node.networks[tenant] = replace(node.networks[tenant], balanced=own)
                run(node.settle())

    def pod(self, tenant: str, node: int, number: int = 2) -> Path:
        """The network namespace of a pod."""
        return Path(self.pods[tenant, node, number].netns)

    async def clear(self) -> None:
        for node in self.nodes.values():
            await node.clear()
        await netns.delete(self.lan)


@contextmanager
def world(directory: Path) -> Iterator[World]:
    """The two nodes, until the block ends."""
    one = World(directory)
    try:
        run(one.build())
        yield one
    finally:
        run(one.clear())
