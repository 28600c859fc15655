"""What the CNI verbs mean on a node with tenants' networks.

Calls about one tenant wait for one another. A record is written before the kernel is touched and removed
after it; so who is killed in between finds what it has to finish.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol

from orlop.errors import NotFound, OrlopError, Unavailable
from orlop.host.tasks import Tasks, Undo, roll_back, uncancelled
from orlop.host.turns import Turns
from orlop.tenantnet.kernel import NodeKernel
from orlop.tenantnet.leases import Attempt, LeaseRecords
from orlop.tenantnet.model import Ground, Lease, LocalNetwork

log = logging.getLogger(__name__)

AT_ONCE: Final = 8
"""Routers that are worked on at the same time."""
TELL_AGAIN: Final = 2.0
"""Seconds after which a link is told a second time of an address (RFC 5227, 2.3)."""


class Cluster(Protocol):
    """What the agent has to know of the cluster."""

    async def network_of(self, namespace: str) -> LocalNetwork | None:
        """The network that pods of a namespace belong to, with a block for this node; None for no tenant's.

        Raises Unavailable as long as that is not known: a pod must not be given another network meanwhile.
        """
        ...

    def told(self, lease: Lease) -> None:
        """A pod was given this; returns at once."""
        ...


class Attendant(Protocol):
    """Who has something in each router for as long as it stands."""

    async def stand(self, network: LocalNetwork, router: Path) -> None:
        """The tenant's router is there, as the namespace at ``router``. Idempotent. Raises OrlopError."""
        ...

    async def go(self, tenant: str) -> None:
        """The tenant's router is about to go. Idempotent. Raises OrlopError."""
        ...


class TenantAgent:
    """Makes and removes pods' interfaces in tenants' networks, and keeps routers as the cluster wants."""

    def __init__(
        self,
        ground: Ground,
        kernel: NodeKernel,
        records: LeaseRecords,
        cluster: Cluster,
        attendants: Sequence[Attendant] = (),
    ) -> None:
        self._ground = ground
        self._kernel = kernel
        self._records = records
        self._cluster = cluster
        self._attendants = tuple(attendants)
        self._pods, self._turns = Turns(), Turns()
        self._answering, self._tasks = asyncio.Lock(), Tasks()
        self._made: dict[str, tuple[LocalNetwork, Ground]] = {}

    async def start(self, networks: Collection[LocalNetwork] = ()) -> None:
        """Finish what a predecessor had begun, and have the kernel as records and cluster say.

        ``networks`` are those that are known: of another one that was recorded, the last is kept, without the
        addresses of the world's, which may be another node's by now. Raises OrlopError.
        """
        await self._kernel.prepare(self._ground)
        await self._attend()
        for lease in self._records.leases:
            if not Path(lease.netns).exists():
                log.info("pod %s/%s is gone, and gives %s back", lease.namespace, lease.pod, lease.alias)
                await self._release(lease)
        known = {network.name: network for network in networks}
        undo = Undo("the tenants' networks")
        await self._each(undo, lambda network: self._set_up(known.get(network.name) or network.inside))
        undo.finish()
        await self._answer()

    async def _attend(self) -> None:
        """What attendants have in routers that stand is there again first: pods wait for it."""
        for network in self._records.networks:
            place = self._kernel.place(network)
            # Where this fails the router is not whole, and will be made so.
            with suppress(OrlopError):
                for attendant in self._attendants if place.exists() else ():
                    await attendant.stand(network, place)

    async def renew(self, ground: Ground, networks: Collection[LocalNetwork]) -> None:
        """The cluster's nodes and networks are these now: have the routers that stand here follow.

        A router whose network is gone goes with its last pod. Raises NotUndone naming what could not be done.
        """
        self._ground = ground
        wanted = {network.name: network for network in networks}
        undo = Undo("the tenants' networks")

        async def renew(network: LocalNetwork) -> None:
            if (new := wanted.get(network.name)) is not None:
                await self._follow(new)
            elif not self._records.of(network.name):
                await self._take_down(network)
            elif network.outside:
                await self._set_up(network.inside)

        await self._each(undo, renew)
        for new in networks:
            # What leads to Services stands on the node that answers for them, with pods here or without.
            if new.balanced and self._records.network(new.name) is None:
                async with self._turns.of(new.name):
                    await undo.step(new.name, self._follow(new))
        await undo.step("the node", self._answer())
        undo.finish()

    async def _each(self, undo: Undo, work: Callable[[LocalNetwork], Awaitable[None]]) -> None:
        """Do something for each router that may stand here, for several at once: most of it is waiting."""
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(network: LocalNetwork) -> None:
            async with gate, self._turns.of(network.name):
                await undo.step(network.name, work(network))

        async with asyncio.TaskGroup() as group:
            for network in self._records.networks:
                group.create_task(one(network))

    async def _answer(self) -> None:
        """Have the node answer for the addresses that lead to its routers, and for no others."""
        async with self._answering:
            outside = [address for network in self._records.networks for address in network.outside]
            await self._kernel.filter_node(self._ground, outside)
            if new := await self._kernel.answer_for(self._ground, outside):
                log.info("this node answers for %s", ", ".join(address for _, address in new))
                self._tasks.spawn(self._tell_again(new), "the second announcement of addresses")

    async def _tell_again(self, told: list[tuple[str, str]]) -> None:
        await asyncio.sleep(TELL_AGAIN)
        async with self._answering:
            outside = {address for network in self._records.networks for address in network.outside}
            await self._kernel.tell([one for one in told if one[1] in outside])

    async def close(self) -> None:
        """Do nothing more by itself. What stands stays."""
        await self._tasks.close()

    async def _follow(self, network: LocalNetwork) -> None:
        """Do what has to be done: nothing, change what the packet filter knows, or go through all of it."""
        made, ground = self._made.get(network.name), self._ground
        if made is None or (made[0].frame, made[1]) != (network.frame, ground):
            await self._set_up(network)
        elif made[0] != network:
            self._records.stand(network)
            del self._made[network.name]
            await self._kernel.filter(network, ground, self._records.of(network.name))
            self._made[network.name] = network, ground

    async def _set_up(self, network: LocalNetwork) -> None:
        ground = self._ground
        self._records.stand(network)
        self._made.pop(network.name, None)
        await self._kernel.set_up(network, ground, self._records.of(network.name))
        for attendant in self._attendants:
            await attendant.stand(network, self._kernel.place(network))
        self._made[network.name] = network, ground

    async def _take_down(self, network: LocalNetwork) -> None:
        self._made.pop(network.name, None)
        for attendant in self._attendants:
            await attendant.go(network.name)
        await self._kernel.take_down(network.namespace, network.uplink)
        self._records.gone(network.name)

    async def add(self, attempt: Attempt) -> Lease | None:
        """Give a pod its interface; None when it is no tenant's.

        Raises OrlopError, OSError; nothing is left then.
        """
        # A runtime that gave up waiting asks for DEL at once, and must not be told that there is nothing.
        async with self._pods.of(attempt.container):
            network = await self._cluster.network_of(attempt.namespace)
            if network is None:
                return None
            if not Path(attempt.netns).exists():
                raise NotFound(f"the network namespace {attempt.netns} does not exist")
            if (former := self._records.find(attempt.container, attempt.interface)) is not None:
                await uncancelled(self._release(former))
            async with self._turns.of(network.name):
                # Its Services, say, may be others by now: what is newer must not be set back.
                network = await self._cluster.network_of(attempt.namespace) or network
                lease = await uncancelled(self._add(attempt, network))
        self._cluster.told(lease)
        return lease

    async def _add(self, attempt: Attempt, network: LocalNetwork) -> Lease:
        before = self._records.network(network.name)
        await self._follow(network)
        if network.outside != (before.outside if before else ()):
            await self._answer()
        lease = self._records.take(attempt, network, self._ground.aliases)
        try:
            await self._kernel.plug(network, self._ground, lease)
            await self._kernel.filter(network, self._ground, self._records.of(network.name))
        except BaseException:
            await roll_back(f"the interface of pod {attempt.namespace}/{attempt.pod}", self._unplug(lease))
            raise
        return lease

    async def delete(self, container: str, interface: str) -> bool:
        """Take a pod's interface away; whether it had one from here. Idempotent. Raises NotUndone."""
        async with self._pods.of(container):
            lease = self._records.find(container, interface)
            if lease is None:
                return False
            await uncancelled(self._release(lease))
            return True

    async def _release(self, lease: Lease) -> None:
        async with self._turns.of(lease.tenant):
            # Whoever waited for its turn may find that another has done it.
            if self._records.find(lease.container, lease.interface) == lease:
                await self._unplug(lease)

    async def _unplug(self, lease: Lease) -> None:
        undo = Undo(f"the interface of pod {lease.namespace}/{lease.pod}")
        await undo.step("its link", self._kernel.unplug(lease))
        if not undo.complete:
            undo.finish()
        self._records.forget(lease)
        network = self._records.network(lease.tenant)
        if network is not None:
            leases = self._records.of(lease.tenant)
            await undo.step("the router's rules", self._kernel.filter(network, self._ground, leases))
        undo.finish()

    async def check(self, container: str, interface: str) -> bool:
        """Whether an interface is one from here. Raises FailedPrecondition when it is not as it was made."""
        lease = self._records.find(container, interface)
        if lease is None:
            return False
        await self._kernel.check(lease)
        return True

    async def collect(self, valid: Collection[tuple[str, str]]) -> None:
        """Remove the interfaces that are none of these pairs of container and interface. Raises NotUndone."""
        undo = Undo("interfaces that nobody has any more")
        for lease in self._records.leases:
            if (lease.container, lease.interface) not in valid:
                await undo.step(lease.pod or lease.container, self._release(lease))
        undo.finish()

    async def ready(self) -> None:
        """Raises Unavailable when no pod could be given an interface now."""
        try:
            await self._kernel.prepare(self._ground)
        except OrlopError as error:
            raise Unavailable(str(error)) from error
