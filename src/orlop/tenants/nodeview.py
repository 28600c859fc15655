"""What one node knows of the cluster's tenants: namespaces, networks, nodes, as the API server tells."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any, Final

from orlop.errors import Aborted, FailedPrecondition, OrlopError, Unavailable
from orlop.host.tasks import Tasks
from orlop.tenantnet.model import Ground, Lease, LocalNetwork, Peer
from orlop.tenants import blocks, names
from orlop.tenants.api import NAMESPACES, NETWORKS, NODES, PODS, Api, Document, Resource

log = logging.getLogger(__name__)

ANEW: Final = 300.0
"""Seconds after which each kind is listed anew, whatever its watch said."""
PAUSE: Final = 2.0
KNOWN_WITHIN: Final = 10.0
"""Seconds within which a namespace that a pod is in must have been told of."""


class NodeView:
    """The cluster as a node's agent needs it; ``closed`` are the ranges of its pods and Services."""

    def __init__(self, api: Api, node: str, *, closed: tuple[str, ...], port: int) -> None:
        self._api, self._node = api, node
        self._closed, self._port = closed, port
        self._namespaces: dict[str, Document] = {}
        self._networks: dict[str, Document] = {}
        self._nodes: dict[str, Document] = {}
        self._changed, self._news = asyncio.Condition(), asyncio.Event()
        self._tasks = Tasks()

    def _kinds(self) -> tuple[tuple[Resource, dict[str, Document]], ...]:
        return (NAMESPACES, self._namespaces), (NETWORKS, self._networks), (NODES, self._nodes)

    async def load(self) -> None:
        """Read everything once. Raises OrlopError."""
        for kind, known in self._kinds():
            await self._list(kind, known)

    async def _list(self, kind: Resource, known: dict[str, Document]) -> None:
        found = {one["metadata"]["name"]: one for one in await self._api.list(kind)}
        known.clear()
        known.update(found)
        await self._tell()

    async def _tell(self) -> None:
        self._news.set()
        async with self._changed:
            self._changed.notify_all()

    async def watch(self) -> None:
        """Keep what is known up to date, until cancelled."""
        try:
            async with asyncio.TaskGroup() as group:
                for kind, known in self._kinds():
                    group.create_task(self._watch(kind, known))
        finally:
            await self._tasks.close()

    async def _watch(self, kind: Resource, known: dict[str, Document]) -> None:
        while True:
            try:
                await self._list(kind, known)
                async with asyncio.timeout(ANEW), contextlib.aclosing(self._api.news(kind)) as news:
                    async for there, one in news:
                        if there:
                            known[one["metadata"]["name"]] = one
                        else:
                            known.pop(one["metadata"]["name"], None)
                        await self._tell()
            except TimeoutError:
                continue
            except OrlopError as error:
                log.warning("%s: %s; again in %g s", kind.plural, error, PAUSE)
                await asyncio.sleep(PAUSE)

    async def changes(self) -> None:
        """Wait until something has changed since this was asked the last time."""
        await self._news.wait()
        self._news.clear()

    @property
    def ground(self) -> Ground:
        """This node and the others. Raises FailedPrecondition when it is not known, or has no aliases."""
        own = self._nodes.get(self._node)
        address = _address(own) if own else ""
        if own is None or not address:
            raise FailedPrecondition(f"the cluster has no node {self._node} with an InternalIP: see --node")
        aliases = own["metadata"].get("annotations", {}).get(names.ALIASES, "")
        if not aliases:
            raise FailedPrecondition(
                f"node {self._node} has no range for aliases: annotate it with {names.ALIASES}"
            )
        every = {one for node in self._nodes.values() for one in _addresses(node)}
        return Ground(
            address=address, aliases=aliases, nodes=tuple(sorted(every)), closed=self._closed, port=self._port
        )

    @property
    def networks(self) -> list[LocalNetwork]:
        """Those in which this node has a block."""
        found = (self._local(one) for one in self._networks.values())
        return [one for one in found if one is not None]

    def _local(self, network: Document) -> LocalNetwork | None:
        spec, taken = network["spec"], _blocks(network)
        if self._node not in taken:
            return None
        addresses = {name: _address(node) for name, node in self._nodes.items()}
        peers = [
            Peer(address=addresses[name], block=block)
            for name, block in sorted(taken.items())
            if name != self._node and addresses.get(name)
        ]
        egress = spec.get("egress", {})
        return LocalNetwork(
            name=network["metadata"]["name"],
            vni=spec["vni"],
            cidr=spec["cidr"],
            block=taken[self._node],
            peers=tuple(peers),
            allow=tuple(egress.get("allow", ())),
            deny=tuple(egress.get("deny", ())),
        )

    async def network_of(self, namespace: str) -> LocalNetwork | None:
        """See :class:`orlop.tenantnet.agent.Cluster`."""
        if not namespace:
            return None
        found = await self._known(lambda: self._namespaces.get(namespace), f"namespace {namespace}")
        tenant = found["metadata"].get("labels", {}).get(names.TENANT, "")
        if not tenant:
            return None
        network = await self._known(lambda: self._networks.get(tenant), f"the network of tenant {tenant}")
        if (local := self._local(network)) is None:
            local = await self._claim(tenant)
        return local

    async def _known(self, look: Callable[[], Document | None], what: str) -> Document:
        try:
            async with asyncio.timeout(KNOWN_WITHIN), self._changed:
                while (found := look()) is None:
                    await self._changed.wait()
                return found
        except TimeoutError as error:
            raise Unavailable(f"{what} is not known on this node yet") from error

    async def _claim(self, tenant: str) -> LocalNetwork:
        """Have a block of the tenant's addresses. Raises ResourceExhausted, Unavailable."""
        while True:
            network = await self._api.find(NETWORKS, tenant)
            if network is None:
                raise Unavailable(f"the network of tenant {tenant} is gone")
            if (local := self._local(network)) is not None:
                self._networks[tenant] = network
                return local
            block = blocks.free(network["spec"]["cidr"], _blocks(network).values())
            change = {
                "metadata": {"resourceVersion": network["metadata"]["resourceVersion"]},
                "status": {"blocks": {self._node: block}},
            }
            # Another node was quicker: look again.
            with contextlib.suppress(Aborted):
                await self._api.merge(NETWORKS, tenant, change, status=True)

    def told(self, lease: Lease) -> None:
        """See :class:`orlop.tenantnet.agent.Cluster`: the pod gets an annotation."""
        self._tasks.spawn(self._annotate(lease), f"the annotation of pod {lease.namespace}/{lease.pod}")

    async def _annotate(self, lease: Lease) -> None:
        about: dict[str, Any] = {"annotations": {names.ADDRESS: lease.address}}
        if lease.uid:
            about["uid"] = lease.uid  # another pod of that name is left alone
        await self._api.merge(PODS, lease.pod, {"metadata": about}, namespace=lease.namespace)


def _blocks(network: Document) -> dict[str, str]:
    found: dict[str, str] = network.get("status", {}).get("blocks", {})
    return found


def _addresses(node: Document) -> list[str]:
    """Those of IPv4."""
    told = node.get("status", {}).get("addresses", ())
    return [one["address"] for one in told if one["type"].endswith("IP") and ":" not in one["address"]]


def _address(node: Document) -> str:
    told = node.get("status", {}).get("addresses", ())
    own = (one["address"] for one in told if one["type"] == "InternalIP" and ":" not in one["address"])
    return next(own, "")
