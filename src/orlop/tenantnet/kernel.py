"""A node's kernel as tenants' networks need it: routers, the ports of pods, the packet filters.

Each router is a network namespace of its own: its connection tracking, addresses and routes are its own, so
that tenants may have the same. All of it is made as it is wanted and found as it is: doing it again changes
nothing, and repairs what is not so.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from ipaddress import IPv4Network
from pathlib import Path

from orlop.errors import FailedPrecondition, NotFound
from orlop.host import netns, roots
from orlop.linux import conntrack, netlink
from orlop.linux.netlink import Netlink
from orlop.net import links
from orlop.tenantnet import devices, rules, uplink
from orlop.tenantnet.devices import End
from orlop.tenantnet.filters import Filters
from orlop.tenantnet.model import (
    BRIDGE,
    GATEWAY_MAC,
    PORT_PREFIX,
    TUNNEL,
    UPLINK,
    Ground,
    Lease,
    LocalNetwork,
    router_mac,
    uplink_macs,
)

Place = tuple[str, int]
"""An address and a port."""

OWN_NAMESPACE = Path("/proc/self/ns/net")
_NEXT = "169.254.1.1"
"""What node and router call each other: neither has the address, and each knows the other's MAC."""
_LOOPBACK = "127.0.0.1"
_OVERHEAD = 50
"""Bytes that VXLAN puts around a packet."""

_ROUTER_SETTINGS = {
    "ipv4/ip_forward": "1",
    "ipv4/conf/all/rp_filter": "1",
    # Pods are next to the router and to nobody else: it must not send them to one another.
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    "ipv4/conf/all/accept_redirects": "0",
    "ipv4/conf/all/accept_source_route": "0",
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
    # Frames are judged as frames, and packets once, where they are routed.
    "bridge/bridge-nf-call-iptables": "0",
    "bridge/bridge-nf-call-arptables": "0",
}


class NodeKernel:
    """The kernel of the node whose network namespace is ``node``; routers are pinned in ``directory``.

    ``root`` is the node's root directory, with its nft(8).
    """

    def __init__(self, directory: Path, node: Path = OWN_NAMESPACE, *, root: Path = roots.OWN) -> None:
        self._directory = directory
        self._node = node
        self._filters = Filters(root)
        self._led: dict[Path, dict[Place, set[Place]]] = {}

    def place(self, network: LocalNetwork) -> Path:
        """Where the namespace of a tenant's router is, or will be."""
        return self._router(network.namespace)

    def _router(self, tenant_namespace: str) -> Path:
        return self._directory / tenant_namespace

    async def prepare(self, ground: Ground) -> None:
        """Let the node forward packets. Raises FailedPrecondition when its address is on no link of it."""

        def make_ready(kernel: Netlink) -> None:
            _mtu(kernel, ground.address)
            _write({"ipv4/ip_forward": "1"})

        await netns.ask(self._node, make_ready)

    async def set_up(self, network: LocalNetwork, ground: Ground, leases: Sequence[Lease]) -> None:
        """Have the tenant's router, with its ways to the node and to other nodes, as it is wanted.

        Ports of it that no lease is about are removed. Raises OrlopError, OSError.
        """
        router = self._router(network.namespace)
        found = await self._namespace(router)

        def fill(kernel: Netlink) -> None:
            _fill_router(kernel, network, leases, mtu)
            _have_names(kernel, ground.dns)

        mtu = await netns.ask(self._node, lambda kernel: _make_ways(kernel, router, network, ground, found))
        await netns.ask(router, fill)
        await netns.ask(self._node, lambda kernel: _lead_to_router(kernel, network, ground, leases))
        await self.filter(network, ground, leases)

    async def filter(self, network: LocalNetwork, ground: Ground, leases: Sequence[Lease]) -> None:
        """Put the router's rules in place. Raises FailedPrecondition, OSError."""
        router = self._router(network.namespace)
        await self._filters.put(router, rules.router(network, ground, leases))
        led = _datagrams(network)
        former = self._led.pop(router, None)
        if former is None or any(not ends <= led.get(called, set()) for called, ends in former.items()):
            await netns.ask(router, lambda kernel: _forget_flows(kernel, led), netlink.NETFILTER)
        self._led[router] = led

    async def filter_node(self, ground: Ground, outside: Collection[str] = ()) -> None:
        """Put the node's rules in place; ``outside`` as in :func:`rules.node`. Raises FailedPrecondition."""
        await self._filters.put(self._node, rules.node(ground, outside))

    async def answer_for(self, ground: Ground, outside: Collection[str]) -> list[tuple[str, str]]:
        """See :func:`uplink.answer_for`; who is on the link is told of what is new."""

        def work(kernel: Netlink) -> list[tuple[str, str]]:
            new = uplink.answer_for(kernel, ground.address, outside)
            uplink.tell(new)
            return new

        return await netns.ask(self._node, work)

    async def tell(self, told: Sequence[tuple[str, str]]) -> None:
        """Tell once more: who was not listening then may be now."""
        await netns.ask(self._node, lambda kernel: uplink.tell(told))

    async def plug(self, network: LocalNetwork, ground: Ground, lease: Lease) -> int:
        """Give the pod its interface; the MTU of it. Raises OrlopError, OSError EEXIST if it has one."""
        router = self._router(network.namespace)

        def make(kernel: Netlink) -> int:
            bridge = links.find(kernel, BRIDGE)
            devices.remove(kernel, lease.port)
            with _opened(Path(lease.netns)) as pod:
                own = End(name=lease.port, mac=lease.port_mac, mtu=bridge.mtu)
                inside = End(name=lease.interface, mac=lease.mac, mtu=bridge.mtu, namespace=pod)
                devices.make_pair(kernel, own, inside)
            _settle_port(kernel, bridge.index, lease)
            return bridge.mtu

        mtu = await netns.ask(router, make)
        await netns.ask(Path(lease.netns), lambda kernel: _fill_pod(kernel, network, lease))
        await netns.ask(self._node, lambda kernel: _add_alias(kernel, network, ground, lease))
        return mtu

    async def unplug(self, lease: Lease) -> None:
        """Take the pod's interface away, and the ways to it. Idempotent."""

        def part(kernel: Netlink) -> None:
            devices.remove(kernel, lease.port)
            if bridge := devices.look(kernel, BRIDGE):
                devices.forget_neighbour(kernel, bridge.index, lease.address)

        def close(kernel: Netlink) -> None:
            if link := devices.look(kernel, lease.uplink):
                devices.remove_route(kernel, _path(link.index, lease.alias))

        with suppress(NotFound):
            await netns.ask(self._router(lease.router), part)
        await netns.ask(self._node, close)

    async def check(self, lease: Lease) -> None:
        """Raises FailedPrecondition when the pod's interface is not as :meth:`plug` left it."""

        def inside(kernel: Netlink) -> str:
            link = devices.look(kernel, lease.interface)
            if link is None or link.mac != lease.mac:
                return f"has no interface {lease.interface} of ours"
            return "" if f"{lease.address}/32" in links.addresses(kernel, link.index) else "lost its address"

        def outside(kernel: Netlink) -> str:
            return "" if devices.look(kernel, lease.port) else "is plugged in nowhere"

        problem = await netns.ask(Path(lease.netns), inside)
        problem = problem or await netns.ask(self._router(lease.router), outside)
        if problem:
            raise FailedPrecondition(f"pod {lease.container[:12]} {problem}")

    async def take_down(self, network_namespace: str, uplink: str) -> None:
        """Remove a router with all its links. Idempotent."""
        router = self._router(network_namespace)
        with suppress(NotFound, FailedPrecondition):
            # At once: the kernel frees a namespace later, and meanwhile its VXLAN keeps the number.
            await netns.ask(router, lambda kernel: devices.remove(kernel, TUNNEL))
        await netns.ask(self._node, lambda kernel: devices.remove(kernel, uplink))
        self._filters.forget(router)
        self._led.pop(router, None)
        await netns.delete(router)

    async def _namespace(self, path: Path) -> frozenset[str]:
        """Have a namespace at ``path``; the links in it."""

        def names(kernel: Netlink) -> frozenset[str]:
            return frozenset(link.name for link in links.links(kernel))

        try:
            return await netns.ask(path, names)
        except NotFound:
            pass
        except OSError as error:
            # The file is there and no namespace on it: whoever was to pin it was killed in between.
            if error.errno != errno.EINVAL:
                raise
            await netns.delete(path)
        self._filters.forget(path)
        await netns.create(path)
        return frozenset()


def _datagrams(network: LocalNetwork) -> dict[Place, set[Place]]:
    """The ports of Services that take datagrams, and where each leads."""
    found = (one for one in network.services if one.protocol == "udp")
    return {(one.address, one.port): set(one.endpoints) for one in found}


def _forget_flows(kernel: Netlink, led: dict[Place, set[Place]]) -> None:
    """Datagrams go on to the endpoint that their flow began with: those whose endpoint is gone begin anew."""
    for flow in conntrack.datagrams(kernel):
        if flow.mark and flow.led not in led.get(flow.called, ()):
            conntrack.forget(kernel, flow)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _write(settings: dict[str, str]) -> None:
    for name, value in settings.items():
        with suppress(FileNotFoundError):  # a kernel without IPv6, or without the bridge's filter
            Path("/proc/sys/net", name).write_text(value, encoding="ascii")


def _mtu(kernel: Netlink, address: str) -> int:
    """What fits into a packet that VXLAN is put around, on the link with the node's address."""
    for link in links.links(kernel):
        if any(one.partition("/")[0] == address for one in links.addresses(kernel, link.index)):
            return link.mtu - _OVERHEAD
    raise FailedPrecondition(f"no interface of the node has its address {address}")


def _make_ways(
    kernel: Netlink, router: Path, network: LocalNetwork, ground: Ground, found: frozenset[str]
) -> int:
    """On the node: the link to the router, and the VXLAN that ends in it; the MTU of both."""
    mtu = _mtu(kernel, ground.address)
    near, far = uplink_macs(network.vni)
    with _opened(router) as namespace:
        if UPLINK not in found or devices.look(kernel, network.uplink) is None:
            devices.remove(kernel, network.uplink)
            devices.make_pair(
                kernel,
                End(name=network.uplink, mac=near, mtu=mtu),
                End(name=UPLINK, mac=far, mtu=mtu, namespace=namespace),
            )
        if TUNNEL not in found:
            end = End(name=TUNNEL, mac=router_mac(ground.address), mtu=mtu, namespace=namespace)
            devices.make_tunnel(kernel, end, vni=network.vni, local=ground.address, port=ground.port)
    _write({f"ipv6/conf/{network.uplink}/disable_ipv6": "1"})
    index = links.find(kernel, network.uplink).index
    devices.describe(kernel, index, f"tenant {network.name}")
    devices.set_neighbours(kernel, index, {_NEXT: far})
    links.set_up(kernel, index)
    return mtu


def _fill_router(kernel: Netlink, network: LocalNetwork, leases: Sequence[Lease], mtu: int) -> None:
    """In the router: its bridge, its routes, who is behind them, and the ports of pods that are there."""
    _write(_ROUTER_SETTINGS)
    if devices.look(kernel, BRIDGE) is None:
        devices.make_bridge(kernel, End(name=BRIDGE, mac=GATEWAY_MAC, mtu=mtu))
    found = {link.name: link for link in links.links(kernel)}
    bridge, tunnel, uplink = found[BRIDGE].index, found[TUNNEL].index, found[UPLINK].index
    bits = IPv4Network(network.block).prefixlen
    devices.assign(kernel, bridge, f"{network.gateway}/{bits}")
    devices.assign(kernel, uplink, f"{network.sender}/32")
    for index in (bridge, tunnel, uplink):
        links.set_up(kernel, index)
    paths = [devices.Way(destination="0.0.0.0/0", link=uplink, gateway=_NEXT)]
    behind, carriers = {}, {}
    for peer in network.peers:
        gateway = str(IPv4Network(peer.block)[1])
        # The router's address in its block as the source: the others let no other pass.
        way = devices.Way(destination=peer.block, link=tunnel, gateway=gateway, source=network.gateway)
        paths.append(way)
        behind[gateway] = router_mac(peer.address)
        carriers[router_mac(peer.address)] = peer.address
    near, _ = uplink_macs(network.vni)
    devices.set_neighbours(kernel, uplink, {_NEXT: near})
    devices.set_neighbours(kernel, tunnel, behind)
    devices.set_forwarding(kernel, tunnel, carriers)
    devices.set_neighbours(kernel, bridge, {lease.address: lease.mac for lease in leases})
    devices.set_routes(kernel, paths, (bridge, tunnel, uplink))
    kept = {lease.port for lease in leases}
    for name in found:
        if name.startswith(PORT_PREFIX) and name not in kept:
            devices.remove(kernel, name)


def _have_names(kernel: Netlink, wanted: Sequence[str]) -> None:
    """In the router: have the addresses of the cluster's DNS, and no others like them."""
    loop = links.find(kernel, "lo").index
    found = {one.partition("/")[0] for one in links.addresses(kernel, loop)}
    for address in found - {*wanted, _LOOPBACK}:
        devices.withdraw(kernel, loop, f"{address}/32")
    for address in wanted:
        # Of the scope "host": the router speaks to nobody under it but to who asked there.
        devices.assign(kernel, loop, f"{address}/32", scope=devices.HOST)


def _settle_port(kernel: Netlink, bridge: int, lease: Lease) -> None:
    index = links.find(kernel, lease.port).index
    devices.describe(kernel, index, f"{lease.namespace}/{lease.pod}")
    devices.plug(kernel, index, bridge, lease.mac)
    devices.add_neighbour(kernel, bridge, lease.address, lease.mac)
    links.set_up(kernel, index)


def _fill_pod(kernel: Netlink, network: LocalNetwork, lease: Lease) -> None:
    """In the pod's namespace: its address, and the router as the way to everything."""
    _write({f"ipv6/conf/{lease.interface}/disable_ipv6": "1"})
    index = links.find(kernel, lease.interface).index
    devices.assign(kernel, index, f"{lease.address}/32")
    links.set_up(kernel, index)
    devices.add_neighbour(kernel, index, network.gateway, GATEWAY_MAC)
    devices.add_route(kernel, devices.Way(destination=f"{network.gateway}/32", link=index))
    devices.add_route(kernel, devices.Way(destination="0.0.0.0/0", link=index, gateway=network.gateway))


def _path(link: int, address: str, source: str = "") -> devices.Way:
    """The route to an address behind a router; without a source it stands for that with any."""
    return devices.Way(destination=f"{address}/32", link=link, gateway=_NEXT, source=source)


def _add_alias(kernel: Netlink, network: LocalNetwork, ground: Ground, lease: Lease) -> None:
    # The node's own address as the source: one of a pod's range would be taken for a foreign pod's.
    path = _path(links.find(kernel, network.uplink).index, lease.alias, ground.address)
    devices.add_route(kernel, path)


def _lead_to_router(kernel: Netlink, network: LocalNetwork, ground: Ground, leases: Sequence[Lease]) -> None:
    """On the node: a route to each address behind the router, and none that nobody has any more."""
    index = links.find(kernel, network.uplink).index
    behind = [*(lease.alias for lease in leases), *network.outside, network.sender]
    devices.set_routes(kernel, [_path(index, one, ground.address) for one in behind], (index,))
