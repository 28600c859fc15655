"""The whole cluster as its tenants' networks see it, from what the API says at one moment."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final, TypeVar

import msgspec

from orlop.errors import NotFound
from orlop.host.tasks import together
from orlop.tenantnet.journey import NodeNow
from orlop.tenantnet.model import Lease
from orlop.tenants import addressbook, following, names, seen
from orlop.tenants.allocation import Book
from orlop.tenants.api import (
    NAMESPACES,
    NETWORKS,
    NODES,
    PODS,
    POLICIES,
    SERVICES,
    SLICES,
    Api,
    Document,
    Resource,
)
from orlop.tenants.following import TenantSeen
from orlop.tenants.policies import Side
from orlop.tenants.seen import NetworkSeen, NodeSeen, PodSeen, Reader, ServiceSeen, SliceSeen

V = TypeVar("V")

AGENTS: Final = Resource(group="apps", version="v1", kind="DaemonSet", plural="daemonsets", namespaced=True)
AGENT: Final = "orlop-tenants-agent"
RANGES: Final = Resource(group="networking.k8s.io", version="v1", kind="ServiceCIDR", plural="servicecidrs")
_KINDS: Final = (NODES, NAMESPACES, NETWORKS, PODS, SERVICES, SLICES, POLICIES)


class Picture:
    """What there is in the cluster; ``closed`` and ``port`` are what its agents were told."""

    def __init__(
        self,
        found: Mapping[Resource, Sequence[Document]],
        closed: Sequence[str],
        port: int,
        book: Book | None = None,
    ) -> None:
        self.nodes: dict[str, NodeSeen] = _named(found[NODES], seen.node)
        self.networks: dict[str, NetworkSeen] = _named(found[NETWORKS], seen.network)
        self.spaces = {_name(one): one for one in found[NAMESPACES]}
        self.documents = {_place(one): one for one in found[PODS]}
        self.pods: dict[tuple[str, str], PodSeen] = _placed(found[PODS], seen.pod)
        self.services: dict[tuple[str, str], ServiceSeen] = _placed(found[SERVICES], seen.service)
        self.slices: dict[tuple[str, str], SliceSeen] = _placed(found[SLICES], seen.slice_of)
        self.policies = list(found[POLICIES])
        self.book = book or Book()
        self._closed, self._port = tuple(closed), port

    def owner(self, namespace: str) -> str:
        """The tenant that a namespace belongs to, or ""."""
        space = self.spaces.get(namespace, {"metadata": {}})
        return str((space["metadata"].get("labels") or {}).get(names.TENANT, ""))

    @functools.cached_property
    def tenants(self) -> dict[str, TenantSeen]:
        """What each tenant with a Network has."""
        found = {}
        for name, network in self.networks.items():
            inside = {space for space in self.spaces if self.owner(space) == name}
            found[name] = TenantSeen(
                network=network,
                namespaces=tuple(sorted(inside)),
                pods=_of(self.pods, inside),
                services=_of(self.services, inside),
                slices=_of(self.slices, inside),
            )
        return found

    @functools.cached_property
    def inside(self) -> dict[tuple[str, str], Lease]:
        """What pods in tenants' networks were given, as far as the API knows."""
        found = {}
        for name, tenant in self.tenants.items():
            for pod in following.placed(tenant, self.nodes).values():
                assert tenant.network is not None
                found[pod.namespace, pod.name] = Lease(
                    container=pod.uid,
                    interface="eth0",
                    netns="",
                    tenant=name,
                    vni=tenant.network.vni,
                    address=pod.address,
                    alias=pod.alias,
                    namespace=pod.namespace,
                    pod=pod.name,
                    uid=pod.uid,
                )
        return found

    def uses_host(self, pod: PodSeen) -> bool:
        """Whether a pod has its node's network."""
        return bool(self.documents[pod.namespace, pod.name]["spec"].get("hostNetwork"))

    def machine(self, name: str, tenants: Collection[str]) -> NodeNow | None:
        """A node with the routers of some tenants; None for one without any: it has no range for aliases."""
        ground = following.ground(self.nodes, name, closed=self._closed, port=self._port)
        if ground is None:
            return None
        networks = (
            following.local(self.tenants[one], self.nodes, name, self.book) for one in sorted(tenants)
        )
        here = [one for one in self.pods.values() if one.node == name and one.alias and not one.ended]
        return NodeNow(
            name=name,
            ground=ground,
            networks=tuple(one for one in networks if one is not None),
            leases=tuple(
                self.inside[pod.namespace, pod.name]
                for pod in here
                if (pod.namespace, pod.name) in self.inside
            ),
            own=self.nodes[name].addresses,
            plain=tuple(
                pod.alias
                for pod in here
                if (pod.namespace, pod.name) not in self.inside and not self.uses_host(pod)
            ),
        )

    def machines(self, tenants: Collection[str]) -> list[NodeNow]:
        """All nodes with routers, with those of some tenants."""
        found = (self.machine(name, tenants) for name in sorted(self.nodes))
        return [one for one in found if one is not None]

    def at(self, address: str) -> PodSeen | None:
        """The pod that the cluster knows by an address."""
        for pod in self.pods.values():
            if pod.alias == address and not pod.ended and not self.uses_host(pod):
                return pod
        return None

    def side(self, address: str, pod: PodSeen | None = None) -> Side:
        """An end of a connection, as NetworkPolicies see it."""
        if pod is None:
            return Side(address=address)
        document = self.documents[pod.namespace, pod.name]
        space = self.spaces.get(pod.namespace, {"metadata": {}})
        ports = [
            (one["name"], one["containerPort"])
            for container in document["spec"].get("containers") or ()
            for one in container.get("ports") or ()
            if "name" in one
        ]
        return Side(
            address=address,
            namespace=pod.namespace,
            labels=tuple((document["metadata"].get("labels") or {}).items()),
            namespace_labels=tuple((space["metadata"].get("labels") or {}).items()),
            ports=tuple(ports),
        )


async def look(api: Api, *, closed: Sequence[str] = (), port: int = 14789) -> Picture:
    """Read all of it. Without ``closed`` it is what the agents' DaemonSet says, or else the cluster's own.

    Raises OrlopError.
    """
    found = await together(*(api.list(kind) for kind in _KINDS))
    known = dict(zip(_KINDS, found, strict=True))
    book, _ = await addressbook.read(api)
    return Picture(known, closed or await _ranges(api, known[NODES]), port, book)


async def _ranges(api: Api, nodes: Iterable[Document]) -> list[str]:
    agents = await api.find(AGENTS, AGENT, names.SYSTEM)
    if agents is not None:
        (container, *_) = agents["spec"]["template"]["spec"]["containers"]
        words = [*(container.get("command") or ()), *(container.get("args") or ())]
        told = [after for word, after in itertools.pairwise(words) if word == "--closed"]
        if told := [*told, *(word.partition("=")[2] for word in words if word.startswith("--closed="))]:
            return told
    ranges = [one["spec"].get("podCIDR", "") for one in nodes]
    try:
        for one in await api.list(RANGES):
            ranges += one["spec"].get("cidrs") or ()
    except NotFound:
        pass  # Kubernetes before 1.33
    return [one for one in ranges if one and ":" not in one]


def _name(document: Document) -> str:
    return str(document["metadata"]["name"])


def _place(document: Document) -> tuple[str, str]:
    return document["metadata"]["namespace"], _name(document)


def _of(found: Mapping[tuple[str, str], V], spaces: set[str]) -> tuple[V, ...]:
    return tuple(one for (space, _), one in found.items() if space in spaces)


def _read(documents: Iterable[Document], reader: Reader[V]) -> Iterable[tuple[Document, V]]:
    for document in documents:
        try:
            one = reader(document)
        except msgspec.ValidationError:
            continue
        if one is not None:
            yield document, one


def _named(documents: Iterable[Document], reader: Reader[V]) -> dict[str, V]:
    return {_name(document): one for document, one in _read(documents, reader)}


def _placed(documents: Iterable[Document], reader: Reader[V]) -> dict[tuple[str, str], V]:
    return {_place(document): one for document, one in _read(documents, reader)}
