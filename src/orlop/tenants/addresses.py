"""The operator's part in addresses: each round looks at all that is to have one, and at who has one.

Nothing is remembered that is not read again by the next operator: who has what stands in the
:mod:`orlop.tenants.addressbook`, which is read anew in each round, and changed before anybody is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from orlop.errors import Aborted, InvalidArgument, NotFound, OrlopError
from orlop.tenants import addressbook, addressed, names
from orlop.tenants.addressed import AddressHolder
from orlop.tenants.allocation import AddressWish, Book, GivenAddress, Refusal, chosen, give
from orlop.tenants.api import (
    FLOATING_ADDRESSES,
    NAMESPACES,
    NETWORKS,
    NODES,
    PODS,
    POOLS,
    SERVICES,
    TENANTS,
    Api,
    Document,
    Resource,
)
from orlop.tenants.pool import AddressRanges, merged
from orlop.tenants.watching import Watched

log = logging.getLogger(__name__)

TOGETHER: Final = 0.2
"""Seconds for which changes are collected."""
PAUSE: Final = 2.0
_KINDS: Final[Mapping[str, Resource]] = {"FloatingAddress": FLOATING_ADDRESSES, "Service": SERVICES}
_READERS: Final = {"FloatingAddress": addressed.floating, "Service": addressed.balanced}


class AddressKeeper:
    """Gives addresses of the pool, and says which node has them.

    ``counted`` is told of each tenant that has more or fewer addresses than before.
    """

    def __init__(self, api: Api, counted: Callable[[str], None]) -> None:
        self._api, self._counted = api, counted
        self._news, self._anybody = asyncio.Event(), asyncio.Event()
        self._homes = Watched(api, NAMESPACES, addressed.home, self._changed)
        self._tenants = Watched(api, TENANTS, addressed.tenant, self._changed)
        self._networks = Watched(api, NETWORKS, addressed.network, self._changed)
        self._nodes = Watched(api, NODES, addressed.node, self._changed)
        self._pools = Watched(api, POOLS, addressed.pool, self._changed)
        self._floating = Watched(api, FLOATING_ADDRESSES, addressed.floating, self._floating_changed)
        self._balanced = Watched(api, SERVICES, addressed.balanced, self._changed)
        # Of pods there are many, and few have an address of their own.
        self._places: set[str] = set()
        self._pods = Watched(api, PODS, addressed.pod, self._changed, lambda place: place in self._places)

    def _changed(self, namespace: str, name: str) -> None:
        self._news.set()

    def _floating_changed(self, namespace: str, name: str) -> None:
        if namespace not in self._places:
            self._places.add(namespace)
            self._pods.anew()
            self._anybody.set()
        self._news.set()

    @property
    def _kinds(self) -> tuple[Watched[Any], ...]:
        few = (self._homes, self._tenants, self._networks, self._nodes, self._pools, self._floating)
        return (*few, self._balanced)

    async def load(self) -> None:
        """Read everything once: what is not known yet is not gone. Raises OrlopError."""
        for kind in self._kinds:
            await kind.load()
        if self._places:
            await self._pods.load()

    async def run(self) -> None:
        """Keep addresses as they are to be, until cancelled."""
        while True:
            try:
                await self.load()
                break
            except OrlopError as error:
                log.warning("addresses of tenants: %s; again in %g s", error, PAUSE)
                await asyncio.sleep(PAUSE)
        async with asyncio.TaskGroup() as group:
            for kind in self._kinds:
                group.create_task(kind.watch())
            group.create_task(self._watch_pods())
            await self._follow()

    async def _watch_pods(self) -> None:
        await self._anybody.wait()
        await self._pods.watch()

    async def _follow(self) -> None:
        while True:
            try:
                if await self.round():
                    await asyncio.sleep(PAUSE)
                    continue
                await self._news.wait()
                await asyncio.sleep(TOGETHER)
                self._news.clear()
            except Aborted:
                await asyncio.sleep(TOGETHER)
            except OrlopError as error:
                log.warning("addresses of tenants: %s; again in %g s", error, PAUSE)
                await asyncio.sleep(PAUSE)

    async def round(self) -> bool:
        """Give, take back, place, and say so; whether to look again soon. Raises OrlopError."""
        before, document = await addressbook.read(self._api)
        holders = self._holders()
        gone, unsure = await self._gone(before, holders)
        pool = merged(self._ranges())
        nodes = {address for one in self._nodes.of().values() for address in one.addresses}
        quotas = {name: one.addresses for name, one in self._tenants.of().items()}
        wishes = [_wish(tenant, one) for tenant, one in holders.values()]
        book, refused = give(before.without(gone), wishes, pool, quotas, nodes)
        book = self._placed(book, holders)
        await addressbook.write(self._api, document, book)
        for tenant in {one.tenant for one in (*before.given.values(), *book.given.values())}:
            if before.count(tenant) != book.count(tenant):
                self._counted(tenant)
        await self._tell(holders, book, refused, pool)
        return unsure

    def _holders(self) -> dict[str, tuple[str, AddressHolder]]:
        """What is to have an address, with its tenant, by its uid."""
        found: dict[str, tuple[str, AddressHolder]] = {}
        for namespace, home in self._homes.of().items():
            owner = self._tenants.find(home.tenant)
            if owner is None or owner.uid != home.uid:
                continue
            for known in (self._floating, self._balanced):
                for one in known.of(namespace).values():
                    found[one.uid] = (home.tenant, one)
        return found

    async def _gone(self, book: Book, holders: Mapping[str, object]) -> tuple[set[str], bool]:
        """The uids of those that have an address and are not any more, by the API server's own word.

        And whether some are there still that we have not heard of, or not for long.
        """
        gone, unsure = set(), False
        for one in book.given.values():
            if one.uid in holders:
                continue
            found = await self._api.find(_KINDS[one.kind], one.name, one.namespace)
            if found is not None and found["metadata"]["uid"] == one.uid:
                if _READERS[one.kind](found) is not None:
                    unsure = True
                    continue
                if (found.get("status", {}).get("loadBalancer") or {}).get("ingress"):
                    await self._withdraw(one)
            gone.add(one.uid)
        return gone, unsure

    async def _withdraw(self, one: GivenAddress) -> None:
        """A Service that is not balanced any more has no address in its status."""
        holder = AddressHolder(kind="Service", namespace=one.namespace, name=one.name, uid=one.uid)
        await self._say(addressed.document(holder, {"loadBalancer": {}}))

    def _ranges(self) -> list[str]:
        found: list[str] = []
        for name, pool in self._pools.of().items():
            try:
                merged(pool.ranges)
                found += pool.ranges
            except InvalidArgument as error:
                log.warning("AddressPool %s is left out: %s", name, error)
        return found

    def _placed(self, book: Book, holders: Mapping[str, tuple[str, AddressHolder]]) -> Book:
        """The book with the node that has each address now."""
        serving = {name for name, one in self._nodes.of().items() if one.serves}
        given = {}
        for address, one in book.given.items():
            known = holders.get(one.uid)
            if known is None:
                given[address] = one
            elif one.kind == "Service":
                there = self._networks.find(one.tenant) or frozenset()
                given[address] = _at(one, chosen(address, sorted(serving & there), one.node))
            else:
                pod = self._pods.find(known[1].pod, one.namespace)
                given[address] = _at(one, pod.node, pod.uid) if pod else _at(one, "")
        return msgspec.structs.replace(book, given=given)

    async def _tell(
        self,
        holders: Mapping[str, tuple[str, AddressHolder]],
        book: Book,
        refused: Mapping[str, Refusal],
        pool: AddressRanges,
    ) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        by_uid = {one.uid: (address, one) for address, one in book.given.items()}
        for uid, (_, holder) in holders.items():
            address, given = by_uid.get(uid, ("", None))
            if given is None and uid not in refused:
                continue
            made = addressed.status(
                holder, address, given, refused.get(uid), now, in_pool=not address or address in pool
            )
            if made != holder.told:
                await self._say(addressed.document(holder, made))
        for name, one in self._pools.of().items():
            try:
                own = merged(one.ranges)
            except InvalidArgument as error:
                made = {"message": str(error)}
            else:
                made = {"size": own.size, "given": sum(address in own for address in book.given)}
            if made != one.told:
                about = {"apiVersion": names.API_VERSION, "kind": POOLS.kind, "metadata": {"name": name}}
                await self._say({**about, "status": made})

    async def _say(self, document: Document) -> None:
        # What is gone, or another, is told soon, and looked at then.
        with contextlib.suppress(NotFound, Aborted):
            await self._api.apply(document, status=True)


def _wish(tenant: str, holder: AddressHolder) -> AddressWish:
    return AddressWish(
        tenant=tenant,
        kind=holder.kind,
        namespace=holder.namespace,
        name=holder.name,
        uid=holder.uid,
        address=holder.address,
        had=holder.had,
        created=holder.created,
    )


def _at(one: GivenAddress, node: str, pod: str = "") -> GivenAddress:
    return msgspec.structs.replace(one, node=node, pod=pod)
