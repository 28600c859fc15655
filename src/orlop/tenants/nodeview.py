"""What one node knows of the cluster's tenants, as the API server tells, and what follows for its routers."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final, TypeVar

from orlop.errors import Aborted, FailedPrecondition, Unavailable
from orlop.tenantdns.zone import TenantContents
from orlop.tenantnet.model import Ground, Lease, LocalNetwork
from orlop.tenants import addressbook, blocks, following, named, names, seen
from orlop.tenants.allocation import Book
from orlop.tenants.annotated import AnnotatedPods
from orlop.tenants.api import ADDRESS_BOOK, NAMESPACES, NETWORKS, NODES, PODS, SERVICES, SLICES, Api
from orlop.tenants.following import TenantSeen
from orlop.tenants.seen import NamespaceSeen, NetworkSeen, NodeSeen, PodSeen, ServiceSeen, SliceSeen
from orlop.tenants.watching import News, Watched

log = logging.getLogger(__name__)

KNOWN_WITHIN: Final = 10.0
"""Seconds within which a namespace that a pod is in must have been told of."""

V = TypeVar("V")


class NodeView:
    """The cluster as a node's agent needs it; ``closed`` are the ranges of its pods and Services.

    ``dns`` are the addresses of its DNS, at which the agent answers tenants' pods.
    Everybody's pods are told of, and those of tenants are remembered: in a namespace of a tenant, or in one
    that nobody has told of yet.
    """

    def __init__(
        self, api: Api, node: str, *, closed: tuple[str, ...], port: int, dns: tuple[str, ...] = ()
    ) -> None:
        self._api, self._node = api, node
        self._closed, self._port, self._dns = closed, port, dns
        self._namespaces: Watched[NamespaceSeen] = Watched(
            api, NAMESPACES, seen.namespace, lambda _, name: self._namespace_changed(name)
        )
        self._networks: Watched[NetworkSeen] = Watched(
            api, NETWORKS, seen.network, lambda _, name: self._tenant_changed(name)
        )
        self._nodes: Watched[NodeSeen] = Watched(api, NODES, seen.node, lambda *_: self._all_changed())
        self._pods: Watched[PodSeen] = Watched(api, PODS, seen.pod, self._inside_changed, self._wanted)
        self._services: Watched[ServiceSeen] = Watched(
            api, SERVICES, seen.service, self._inside_changed, self._wanted
        )
        self._slices: Watched[SliceSeen] = Watched(
            api, SLICES, seen.slice_of, self._inside_changed, self._wanted
        )
        self._book: Watched[Book] = Watched(
            api, ADDRESS_BOOK, addressbook.parse, lambda *_: self._all_changed()
        )
        self._tenants: dict[str, TenantSeen] = {}
        self._locals: dict[str, LocalNetwork | None] = {}
        self._owners: dict[str, str] = {}
        self._news = News()
        self._annotated = AnnotatedPods(api, lambda space, name: self._pods.find(name, space), self._news)

    @property
    def _inside(self) -> tuple[Watched[PodSeen], Watched[ServiceSeen], Watched[SliceSeen]]:
        """The kinds of what members make."""
        return self._pods, self._services, self._slices

    @property
    def _kinds(self) -> tuple[Watched[Any], ...]:
        return (self._namespaces, self._networks, self._nodes, self._book, *self._inside)

    async def load(self) -> None:
        """Read everything once. Raises OrlopError."""
        for kind in self._kinds:
            await kind.load()

    async def watch(self) -> None:
        """Keep what is known up to date, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind in self._kinds:
                group.create_task(kind.watch())
            group.create_task(self._annotated.serve())

    async def changes(self, since: int = 0) -> int:
        """Wait until something has changed since that change; the number of the last one."""
        return await self._news.after(since)

    def _wanted(self, namespace: str) -> bool:
        known = self._namespaces.find(namespace)
        return known is None or bool(known.tenant)

    def _namespace_changed(self, name: str) -> None:
        known, before = self._namespaces.find(name), self._owners.pop(name, None)
        if known is not None:
            self._owners[name] = known.tenant
            if not known.tenant:
                for kind in self._inside:
                    kind.forget(name)
            elif before == "":
                # It was nobody's, so that nothing of it has been remembered.
                for kind in self._inside:
                    kind.anew()
        self._all_changed()

    def _inside_changed(self, namespace: str, _name: str) -> None:
        # What is in a namespace that nobody has told of yet changes nothing before somebody does.
        if owner := self._owners.get(namespace):
            self._tenant_changed(owner)

    def _tenant_changed(self, tenant: str) -> None:
        self._tenants.pop(tenant, None)
        self._locals.pop(tenant, None)
        self._news.tell()

    def _all_changed(self) -> None:
        self._tenants.clear()
        self._locals.clear()
        self._news.tell()

    @property
    def ground(self) -> Ground:
        """This node and the others. Raises FailedPrecondition when it is not known, or has no aliases."""
        own = self._nodes.find(self._node)
        if own is None or not own.address:
            raise FailedPrecondition(f"the cluster has no node {self._node} with an InternalIP: see --node")
        found = following.ground(
            self._nodes.of(), self._node, closed=self._closed, port=self._port, dns=self._dns
        )
        if found is None:
            raise FailedPrecondition(
                f"node {self._node} has no range for aliases: annotate it with {names.ALIASES}"
            )
        return found

    @property
    def networks(self) -> list[LocalNetwork]:
        """Those in which this node has a block."""
        found = (self._local(one) for one in self._networks.of())
        return [one for one in found if one is not None]

    def contents(self, tenant: str) -> TenantContents:
        """What the tenant's DNS here tells."""
        return named.contents(self.tenant(tenant), self._nodes.of(), self._closed)

    @property
    def tenants(self) -> dict[str, TenantSeen]:
        """What members have made in the networks in which this node has a block, by the tenants' names."""
        return {network.name: self.tenant(network.name) for network in self.networks}

    def tenant(self, name: str) -> TenantSeen:
        """What the members of a tenant have made, in all of its namespaces."""
        if (known := self._tenants.get(name)) is None:
            spaces = sorted(space for space, owner in self._owners.items() if owner == name)
            known = self._tenants[name] = TenantSeen(
                network=self._networks.find(name),
                namespaces=tuple(spaces),
                pods=tuple(one for space in spaces for one in self._pods.of(space).values()),
                services=tuple(one for space in spaces for one in self._services.of(space).values()),
                slices=tuple(one for space in spaces for one in self._slices.of(space).values()),
            )
        return known

    def _local(self, name: str) -> LocalNetwork | None:
        if name not in self._locals:
            book = self._book.find(names.ADDRESS_BOOK, names.SYSTEM) or Book()
            self._locals[name] = following.local(self.tenant(name), self._nodes.of(), self._node, book)
        return self._locals[name]

    async def network_of(self, namespace: str) -> LocalNetwork | None:
        """See :class:`orlop.tenantnet.agent.Cluster`."""
        if not namespace:
            return None
        found = await self._known(lambda: self._namespaces.find(namespace), f"namespace {namespace}")
        if not (tenant := found.tenant):
            return None
        await self._known(lambda: self._networks.find(tenant), f"the network of tenant {tenant}")
        while (local := self._local(tenant)) is None:
            await self._claim(tenant)
        return local

    async def _known(self, look: Callable[[], V | None], what: str) -> V:
        try:
            async with asyncio.timeout(KNOWN_WITHIN):
                told = 0
                while (found := look()) is None:
                    told = await self._news.after(told)
                return found
        except TimeoutError as error:
            raise Unavailable(f"{what} is not known on this node yet") from error

    async def _claim(self, tenant: str) -> None:
        """Have a block of the tenant's addresses. Raises ResourceExhausted, Unavailable."""
        while True:
            document = await self._api.find(NETWORKS, tenant)
            if document is None:
                raise Unavailable(f"the network of tenant {tenant} is gone")
            network = seen.network(document)
            taken = dict(network.blocks)
            if self._node in taken:
                self._networks.put(tenant, network)
                return
            block = blocks.free(network.cidr, taken.values())
            change = {
                "metadata": {"resourceVersion": document["metadata"]["resourceVersion"]},
                "status": {"blocks": {self._node: block}},
            }
            # Another node was quicker: look again.
            with contextlib.suppress(Aborted):
                await self._api.merge(NETWORKS, tenant, change, status=True)

    def told(self, lease: Lease) -> None:
        """See :class:`orlop.tenantnet.agent.Cluster`: the pod gets an annotation, and keeps it."""
        self._annotated.wish(lease)
