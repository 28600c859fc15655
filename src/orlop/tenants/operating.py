"""The operator: hears of changes, and has the tenants settled that they are about."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Final

from orlop.errors import OrlopError
from orlop.tenants import ledger, names
from orlop.tenants.addresses import AddressKeeper
from orlop.tenants.api import (
    ACCOUNTS,
    ALL,
    GUARD_BINDINGS,
    GUARDS,
    QUOTAS,
    RUNTIMES,
    TENANTS,
    Api,
    Document,
    Resource,
)
from orlop.tenants.lease import Leadership
from orlop.tenants.operatormetrics import OperatorMetrics
from orlop.tenants.returns import BlockReturns
from orlop.tenants.rounds import Rounds
from orlop.tenants.settle import settle

log = logging.getLogger(__name__)

HANDLERS: Final = frozenset({"vm"})
"""Handlers of RuntimeClasses under which a pod is a virtual machine, as Orlop names its own."""
ANEW: Final = 300.0
"""Seconds after which all tenants are looked at, whatever the watches said."""
LONGEST: Final = 1800.0
"""Seconds after which a watch of what is made for them begins anew: its other end may be long gone."""
TOGETHER: Final = 0.3
"""Seconds for which changes of one tenant are collected: a Deployment makes many pods at once."""
PAUSE: Final = 2.0


class Operator:
    """Settles tenants, as long as it has the lease."""

    def __init__(
        self, api: Api, handlers: frozenset[str] = HANDLERS, metrics: OperatorMetrics | None = None
    ) -> None:
        self._api = api
        self._handlers = handlers
        self._metrics = metrics or OperatorMetrics(api)
        self._rounds = Rounds(self._settle)
        self._addresses = AddressKeeper(api, lambda tenant: self._rounds.ask(tenant, TOGETHER, whole=False))
        self._known: set[str] = set()

    async def _settle(self, name: str, whole: bool) -> float | None:
        with self._metrics.rounds.call("whole" if whole else "count"):
            return await settle(self._api, name, self._handlers, whole=whole)

    async def run(self, identity: str) -> None:
        """Wait for the lease, then work until cancelled. Raises LeaseLost, in a group."""
        leadership = Leadership(self._api, identity)
        await leadership.acquire()
        self._metrics.leads = True
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(leadership.keep())
                group.create_task(self._work())
        finally:
            self._metrics.leads = False
            await leadership.release()

    async def _work(self) -> None:
        await self._patiently(lambda: ledger.sweep(self._api))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch(TENANTS, self._tenant_changed))
            for kind in ALL[1:]:
                group.create_task(self._watch(kind, self._made_changed, {names.MANAGED_BY: names.OPERATOR}))
            for kind in (RUNTIMES, GUARDS, GUARD_BINDINGS):
                group.create_task(self._watch(kind, lambda found: self._all_changed()))
            group.create_task(self._rounds.serve())
            group.create_task(self._addresses.run())
            group.create_task(BlockReturns(self._api).keep())

    async def _patiently(self, call: Callable[[], Any]) -> None:
        while True:
            try:
                await call()
                return
            except OrlopError as error:
                log.warning("%s; again in %g s", error, PAUSE)
                await asyncio.sleep(PAUSE)

    async def _watch(
        self, kind: Resource, tell: Callable[[Document], None], labels: Mapping[str, str] | None = None
    ) -> None:
        place = names.MEMBERS if kind is ACCOUNTS else "*"
        while True:
            if kind is TENANTS:
                self._known.clear()
            try:
                async with asyncio.timeout(ANEW if kind is TENANTS else LONGEST):
                    changes = self._api.changes(kind, labels=labels, namespace=place)
                    async with contextlib.aclosing(changes):  # type: ignore[type-var]
                        async for one in changes:
                            tell(one)
            except TimeoutError:
                continue
            except OrlopError as error:
                log.warning("%s of tenants: %s", kind.plural, error)
                await asyncio.sleep(PAUSE)
                # What went while nobody watched is not told.
                self._all_changed()

    def _tenant_changed(self, found: Document) -> None:
        name = found["metadata"]["name"]
        self._known.add(name)
        self._rounds.ask(name, TOGETHER)

    def _made_changed(self, found: Document) -> None:
        if name := found["metadata"].get("labels", {}).get(names.TENANT):
            # Each pod changes the count of its namespace.
            self._rounds.ask(name, TOGETHER, whole=found.get("kind") != QUOTAS.kind)

    def _all_changed(self) -> None:
        for name in self._known:
            self._rounds.ask(name, TOGETHER)
