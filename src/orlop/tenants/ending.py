"""The end of a tenant: everything that was made for it goes, and nothing else."""

from __future__ import annotations

from datetime import UTC, datetime

from orlop.tenants import desired, ledger, names
from orlop.tenants.api import (
    ACCOUNTS,
    BINDINGS,
    CLUSTER_BINDINGS,
    CLUSTER_ROLES,
    NAMESPACES,
    NETWORKS,
    TENANTS,
    Api,
    Document,
)
from orlop.tenants.model import Tenant
from orlop.tenants.status import document, status

LOOK_AGAIN = 1.0
"""Seconds: what a tenant waits for is mostly heard of before."""


async def hold(api: Api, tenant: Tenant, found: Document) -> None:
    """Keep a Tenant from going before what was made for it has gone. Raises Aborted when it has changed."""
    await _finalizers(api, found, [*tenant.finalizers, names.FINALIZER])


async def _finalizers(api: Api, found: Document, wanted: list[str]) -> None:
    about = found["metadata"]
    # The list is written whole: only over the one that was read.
    change = {
        "metadata": {"finalizers": wanted, "resourceVersion": about["resourceVersion"], "uid": about["uid"]}
    }
    await api.merge(TENANTS, about["name"], change)


async def end(api: Api, tenant: Tenant, found: Document) -> float | None:
    """A step towards its end. Returns the seconds after which to look again, None once nothing is left."""
    if names.FINALIZER not in tenant.finalizers:
        return None
    own = names.selector(tenant.name)
    # Nobody works in there any more while it is taken down.
    for kind in (CLUSTER_BINDINGS, CLUSTER_ROLES, ACCOUNTS, BINDINGS):
        place = names.MEMBERS if kind is ACCOUNTS else "*"
        for one in await api.list(kind, labels=own, namespace=place):
            await api.delete(one)
    waits = [_rest(one) for one in await _namespaces(api, tenant)]
    if not waits and (network := await api.find(NETWORKS, tenant.name)):
        # After the pods: nodes need to know of the network as long as one is in it.
        await api.delete({"kind": "Network", **network})
        if await api.find(NETWORKS, tenant.name):
            holders = ", ".join(network["metadata"].get("finalizers", [])) or "nobody"
            waits.append(f"network {tenant.name}, held by {holders}")
    if waits:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        before = found.get("status", {})
        made = status(tenant, before, [], now, vni=before.get("vni"), waits_for=waits)
        if made != before:
            await api.apply(document(tenant.name, made), status=True)
        return LOOK_AGAIN
    await ledger.release(api, tenant.name)
    await _finalizers(api, found, [one for one in tenant.finalizers if one != names.FINALIZER])
    return None


async def _namespaces(api: Api, tenant: Tenant) -> list[Document]:
    """Its namespaces that are still there, after their deletion has been asked for."""
    found = []
    for one in await api.list(NAMESPACES, labels=names.selector(tenant.name)):
        if not desired.owns(tenant, one):
            continue
        if "deletionTimestamp" not in one["metadata"]:
            await api.delete(one)
        found.append(one)
    return found


def _rest(namespace: Document) -> str:
    """What a namespace on its way out waits for, in the words of Kubernetes."""
    conditions = namespace.get("status", {}).get("conditions", [])
    said = [one["message"] for one in conditions if one.get("status") == "True" and one.get("message")]
    name = f"namespace {namespace['metadata']['name']}"
    return f"{name}: {' '.join(said)}" if said else name
