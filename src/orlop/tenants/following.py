"""What follows for one node's routers from what the API says of a tenant.

A pod's address in its tenant's network is an annotation, which the tenant's members may write. It counts
where it is in the block of the pod's node, with an alias of that node's range: with it a member leads calls
to an alias of the own tenant to an address of the own tenant, and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping

from orlop.tenantnet.model import Balanced, Floating, Ground, LocalNetwork, Peer
from orlop.tenants.allocation import Book, GivenAddress, Kind
from orlop.tenants.frontends import Endpoints, frontends
from orlop.tenants.places import ranges
from orlop.tenants.seen import NetworkSeen, NodeSeen, PodSeen, ServiceSeen, SliceSeen
from orlop.value import Value


class TenantSeen(Value, frozen=True):
    """What is known of a tenant: its network, and what is in its namespaces."""

    network: NetworkSeen | None = None
    namespaces: tuple[str, ...] = ()
    pods: tuple[PodSeen, ...] = ()
    services: tuple[ServiceSeen, ...] = ()
    slices: tuple[SliceSeen, ...] = ()


def local(
    tenant: TenantSeen, nodes: Mapping[str, NodeSeen], here: str, book: Book | None = None
) -> LocalNetwork | None:
    """A tenant's network as the node ``here`` has to know it; None when it has no block in it.

    ``book`` says which addresses of the world's its pods have.
    """
    network = tenant.network
    taken = dict(network.blocks) if network else {}
    if network is None or here not in taken:
        return None
    known = {name: nodes[name].address for name in taken if name in nodes}
    peers = [
        Peer(address=known[name], block=block)
        for name, block in network.blocks
        if name != here and known.get(name)
    ]
    places = placed(tenant, nodes)
    own = _given(network.name, "FloatingAddress", book or Book())
    calls = _given(network.name, "Service", book or Book())
    sources = {one.uid: one.sources for one in tenant.services}
    far = {pod.uid: pod for pod in places.values() if pod.node != here}
    pairs = [(pod.alias, pod.address) for pod in far.values()]
    # The tenant's own pods need not go out into the world to reach them.
    pairs += [(address, far[one.pod].address) for address, one in own if one.pod in far]
    balanced = [
        Balanced(address=address, sources=sources[one.uid])
        for address, one in calls
        if one.node == here and one.uid in sources
    ]
    aliases = ranges((name, node.aliases) for name, node in nodes.items())
    endpoints = Endpoints(tenant.slices, places, [*aliases.values()], here)
    return LocalNetwork(
        name=network.name,
        vni=network.vni,
        cidr=network.cidr,
        block=taken[here],
        peers=tuple(peers),
        elsewhere=tuple(sorted(pairs)),
        allow=network.allow,
        deny=network.deny,
        services=frontends(tenant.services, endpoints, {one.uid: address for address, one in calls}),
        floating=tuple(
            Floating(address=address, pod=one.pod) for address, one in own if one.node == here and one.pod
        ),
        balanced=tuple(balanced),
        forwarders=network.forwarders,
    )


def ground(
    nodes: Mapping[str, NodeSeen], here: str, *, closed: tuple[str, ...], port: int, dns: tuple[str, ...] = ()
) -> Ground | None:
    """The node ``here`` and the others; None when it is not known, or has no address or no aliases."""
    node = nodes.get(here)
    if node is None or not node.address or not node.aliases:
        return None
    return Ground(
        address=node.address,
        aliases=node.aliases,
        nodes=tuple(sorted({address for one in nodes.values() for address in one.addresses})),
        closed=closed,
        port=port,
        dns=dns,
    )


def _given(tenant: str, kind: Kind, book: Book) -> list[tuple[str, GivenAddress]]:
    """The addresses that a tenant's objects of a kind have, in order."""
    found = [(address, one) for address, one in book.given.items() if one.tenant == tenant]
    return sorted((pair for pair in found if pair[1].kind == kind), key=lambda pair: pair[0])


def placed(tenant: TenantSeen, nodes: Mapping[str, NodeSeen]) -> dict[str, PodSeen]:
    """The pods that have an address in the tenant's network, by their aliases."""
    blocks = ranges(tenant.network.blocks if tenant.network else ())
    aliases = ranges((name, node.aliases) for name, node in nodes.items() if name in blocks)
    found = {}
    # A node that gives an alias anew may be quicker than the word that its last pod is gone.
    for pod in sorted(tenant.pods, key=lambda pod: (pod.created, pod.uid)):
        if pod.ended or pod.node not in aliases:
            continue
        if pod.alias in aliases[pod.node] and pod.address in blocks[pod.node]:
            found[pod.alias] = pod
    return found
