"""One round for one tenant: look at what is there, and make of it what its Tenant asks for.

A round needs nothing that an earlier one knew. It may be cut off at any step, and two may run at once: each
step is atomic in the API server, and the next round does what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from orlop.errors import AlreadyExists, InvalidArgument
from orlop.tenants import addressbook, desired, ending, ledger, manifests, names, quota
from orlop.tenants.api import (
    ACCOUNTS,
    BINDINGS,
    CLUSTER_BINDINGS,
    CLUSTER_ROLES,
    GUARD_BINDINGS,
    GUARDS,
    LIMITS,
    NAMESPACES,
    QUOTAS,
    RUNTIMES,
    TENANTS,
    Api,
    Document,
    Resource,
    identity,
)
from orlop.tenants.model import Tenant, parse
from orlop.tenants.status import Observation, document, status

_LOOK_AGAIN = {"starting": 1.0, "waits": 5.0, "failed": 30.0}
"""Seconds, for what nobody tells us of when it changes: a stranger's namespace, say."""


async def settle(api: Api, name: str, handlers: frozenset[str], *, whole: bool = True) -> float | None:
    """Bring a tenant a step nearer to what it asks for.

    ``handlers`` are those of RuntimeClasses that give a pod a virtual machine. A round that is not ``whole``
    is enough when only what is used has changed. Returns the seconds after
    which to look again, or None when nothing is to be expected but a change.
    """
    found = await api.find(TENANTS, name)
    if found is None:
        return None
    try:
        tenant = parse(found)
    except InvalidArgument as error:
        await _tell_unreadable(api, found, str(error))
        return None
    if tenant.ending:
        return await ending.end(api, tenant, found)
    if names.FINALIZER not in tenant.finalizers:
        # Before anything is made: from here on its end goes through us.
        await ending.hold(api, tenant, found)
    one = _Round(api, tenant, found, handlers)
    return await (one.run() if whole or not one.settled else one.count())


async def _tell_unreadable(api: Api, found: Document, message: str) -> None:
    name = found["metadata"]["name"]
    made = {"phase": "Failed", "message": message}
    if {key: found.get("status", {}).get(key) for key in made} != made:
        await api.apply(document(name, made), status=True)


class _Round:
    """What one round finds out, as it goes."""

    def __init__(self, api: Api, tenant: Tenant, found: Document, handlers: frozenset[str]) -> None:
        self._api, self._tenant, self._before = api, tenant, found.get("status", {})
        self._handlers = handlers
        self._findings: list[Observation] = []
        self._use: dict[str, str] = {}

    @property
    def settled(self) -> bool:
        """Whether an earlier round found that all is as this Tenant says."""
        said = (self._before.get("observedGeneration"), self._before.get("phase"))
        return said == (self._tenant.generation, "Active")

    async def count(self) -> None:
        """Look at what is used, deal the quota out again, and say so."""
        owned = self._before.get("namespaces", [])
        await self._quotas(owned)
        if self._use != self._before.get("use", {}):
            await self._api.apply(
                document(self._tenant.name, {**self._before, "use": self._use}), status=True
            )

    async def run(self) -> float | None:
        """All steps, in the one order in which nothing is open before it is guarded."""
        runtime, guarded = await self._runtime(), await self._guarded()
        owned = await self._namespaces(runtime)
        in_force = await self._quotas(owned)
        for one in owned:
            await self._apply(desired.network_policy(self._tenant, one))
            for limit in desired.limits(self._tenant, one):
                await self._apply(limit)
        vni = await self._network(owned)
        # Members come last: into namespaces where policies and quota are in force.
        if guarded and runtime and in_force:
            await self._let_in(owned)
        await self._prune(owned)
        await self._tell(owned, vni)
        return max(
            (_LOOK_AGAIN[one.state] for one in self._findings if one.state in _LOOK_AGAIN), default=None
        )

    def _note(self, kind: str, **about: Any) -> None:
        self._findings.append(Observation(kind=kind, **about))

    async def _apply(self, wanted: Document) -> None:
        await self._api.apply(wanted)

    async def _runtime(self) -> bool:
        """Whether its RuntimeClass is there, and one that gives pods virtual machines."""
        name = self._tenant.spec.runtime_class
        found = await self._api.find(RUNTIMES, name)
        if found is None:
            self._note(
                "RuntimeClassReady",
                state="waits",
                reason="NotFound",
                message=f"there is no RuntimeClass {name}: make it, or name another one in the Tenant",
            )
        elif found["handler"] not in self._handlers:
            known = ", ".join(sorted(self._handlers))
            self._note(
                "RuntimeClassReady",
                state="failed",
                reason="NoVirtualMachine",
                message=f"RuntimeClass {name} has the handler {found['handler']}, which is none of those that"
                f" give a pod a virtual machine ({known}): name another one in the Tenant",
            )
        else:
            self._note("RuntimeClassReady")
            return True
        return False

    async def _guarded(self) -> bool:
        """Whether all policies are there, without which a member could reach the nodes."""
        there = {
            identity(one)[::2] for kind in (GUARDS, GUARD_BINDINGS) for one in await self._api.list(kind)
        }
        missing = [f"{kind} {name}" for kind, name in manifests.guards() if (kind, name) not in there]
        if missing:
            message = f"{', '.join(missing)}: not there, apply what `orlop tenants install` prints"
            self._note("Guarded", state="waits", reason="PoliciesMissing", message=message)
        else:
            self._note("Guarded")
        return not missing

    async def _namespaces(self, runtime: bool) -> list[str]:
        """Those of its namespaces that are there and its own."""
        owned, refused, leaving = [], [], []
        for name in self._tenant.spec.namespaces:
            wanted = desired.namespace(self._tenant, name, runtime=runtime)
            found = await self._api.find(NAMESPACES, name)
            if found is None:
                try:
                    # Not apply: that would take over what somebody else makes at this moment.
                    found = await self._api.create(wanted)
                except AlreadyExists:
                    found = await self._api.find(NAMESPACES, name)
            if found is None:
                leaving.append(name)
            elif not desired.owns(self._tenant, found):
                refused.append(_whose(found))
            elif "deletionTimestamp" in found["metadata"]:
                leaving.append(name)
            else:
                wanted["metadata"]["uid"] = found["metadata"]["uid"]
                await self._apply(wanted)
                owned.append(name)
        if refused:
            said = f"{', '.join(refused)}: choose other names, or delete these"
            self._note("NamespacesReady", state="failed", reason="NamespaceTaken", message=said)
        elif leaving:
            said = f"namespace {', '.join(leaving)} is being deleted, and is made again after that"
            self._note("NamespacesReady", state="waits", reason="NamespaceEnding", message=said)
        else:
            self._note("NamespacesReady")
        return owned

    async def _quotas(self, owned: Sequence[str]) -> bool:
        """Deal the quota out to the namespaces; whether the API server counts in all of them."""
        totals = quota.totals(self._tenant.spec.quota)
        there = {
            one["metadata"]["namespace"]: one
            for one in await self._api.list(QUOTAS, labels=names.selector(self._tenant.name))
        }
        leaving = [one for place, one in there.items() if place not in owned]
        hard: dict[str, dict[str, str]] = {place: {} for place in owned}
        in_force = True
        for resource, total in totals.items():
            shares = [quota.share(resource, there.get(place, {})) for place in owned]
            gone = [quota.share(resource, one) for one in leaving]
            dealt = quota.deal(total, shares, apart=sum(one.committed for one in gone))
            for place, amount in zip(owned, dealt, strict=True):
                hard[place][desired.QUOTA_NAMES[resource]] = quota.written(resource, amount)
            in_force &= all(one.in_force is not None for one in shares)
            used = sum(one.used for one in (*shares, *gone))
            self._use[resource] = f"{quota.shown(resource, used)}/{quota.shown(resource, total)}"
        if (floating := self._tenant.spec.quota.floating_ips) is not None:
            self._use["floatingIPs"] = f"{await addressbook.count(self._api, self._tenant.name)}/{floating}"
        for place in owned:
            asked = there.get(place, {}).get("spec", {}).get("hard", {})
            if totals and not quota.same(asked, hard[place]):
                await self._apply(desired.resource_quota(self._tenant, place, hard[place]))
        if in_force:
            self._note("QuotaInForce")
        else:
            self._note(
                "QuotaInForce", state="starting", reason="NotCounted", message="the quota is not counted yet"
            )
        return in_force

    async def _network(self, owned: Sequence[str]) -> int | None:
        """Its Network, with a number of its own."""
        vni = await ledger.claim(self._api, self._tenant.name)
        await self._apply(desired.network(self._tenant, vni, owned))
        self._note("NetworkMade")
        return vni

    async def _let_in(self, owned: Sequence[str]) -> None:
        for account in desired.accounts(self._tenant):
            await self._apply(account)
        for one in desired.reading(self._tenant):
            await self._apply(one)
        for place in owned:
            for binding in desired.bindings(self._tenant, place):
                await self._apply(binding)

    async def _prune(self, owned: Sequence[str]) -> None:
        """What was made for it once and is not asked for any more."""
        tenant = self._tenant
        wanted = {identity(one) for one in (*desired.accounts(tenant), *desired.reading(tenant))}
        for place in owned:
            wanted |= {identity(one) for one in desired.bindings(tenant, place)}
            wanted |= {identity(one) for one in desired.limits(tenant, place)}
            if quota.totals(tenant.spec.quota):
                wanted.add(identity(desired.resource_quota(tenant, place, {})))
        for kind in (CLUSTER_BINDINGS, CLUSTER_ROLES, ACCOUNTS, BINDINGS, LIMITS, QUOTAS):
            for one in await _made(self._api, kind, tenant.name):
                _, place, _ = identity(one)
                # What is in a namespace that goes goes with it, and its quota counts until then.
                if identity(one) not in wanted and (place in ("", names.MEMBERS) or place in owned):
                    await self._api.delete(one)
        for one in await _made(self._api, NAMESPACES, tenant.name):
            if one["metadata"]["name"] not in tenant.spec.namespaces and desired.owns(tenant, one):
                await self._api.delete(one)

    async def _tell(self, owned: Sequence[str], vni: int | None) -> None:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        made = status(
            self._tenant, self._before, self._findings, now, use=self._use, vni=vni, namespaces=owned
        )
        if made != self._before:
            await self._api.apply(document(self._tenant.name, made), status=True)


async def _made(api: Api, kind: Resource, tenant: str) -> list[Document]:
    place = names.MEMBERS if kind is ACCOUNTS else "*"
    return await api.list(kind, labels=names.selector(tenant), namespace=place)


def _whose(found: Document) -> str:
    about = found["metadata"]
    owner = about.get("labels", {}).get(names.TENANT)
    return f"namespace {about['name']} is {f'of tenant {owner}' if owner else 'not made by a tenant'}"
