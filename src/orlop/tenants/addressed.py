"""What the operator remembers of objects that have to do with addresses, and what it says of them: pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orlop.tenants import names
from orlop.tenants.allocation import GivenAddress, Kind, Refusal
from orlop.tenants.api import Document
from orlop.value import Value

GIVEN: Final = "AddressGiven"
FOUND: Final = "NodeFound"
"""The conditions of a FloatingAddress; those of a Service have names with a domain before them."""


class HomeSeen(Value, frozen=True):
    """A tenant's namespace, and the uid of the Tenant that it was made for."""

    tenant: str
    uid: str


class Allowance(Value, frozen=True):
    """A Tenant: how many addresses it may have."""

    uid: str
    addresses: int = 0


class NodeReadiness(Value, frozen=True):
    """A node: its addresses of IPv4, and whether it is ready and serves tenants' networks."""

    addresses: tuple[str, ...] = ()
    serves: bool = False


class PodPlace(Value, frozen=True):
    """A pod: who it is, and on which node, as long as it may run."""

    uid: str
    node: str = ""


class PoolSeen(Value, frozen=True):
    """An AddressPool and what it says of itself."""

    ranges: tuple[str, ...] = ()
    told: dict[str, Any] = msgspec.field(default_factory=dict)


class AddressHolder(Value, frozen=True):
    """An object that is to have an address; ``told`` is its status, as far as we write it."""

    kind: Kind
    namespace: str
    name: str
    uid: str
    generation: int = 0
    created: str = ""
    address: str = ""
    pod: str = ""
    had: str = ""
    told: dict[str, Any] = msgspec.field(default_factory=dict)


def home(document: Mapping[str, Any]) -> HomeSeen | None:
    """Read a Namespace; None for one that is no tenant's."""
    about = document["metadata"]
    tenant = (about.get("labels") or {}).get(names.TENANT)
    uid = (about.get("annotations") or {}).get(names.OWNER_UID)
    return HomeSeen(tenant=tenant, uid=uid) if tenant and uid else None


def tenant(document: Mapping[str, Any]) -> Allowance:
    """Read a Tenant."""
    quota = document.get("spec", {}).get("quota", {}).get("floatingIPs")
    return Allowance(uid=document["metadata"]["uid"], addresses=quota or 0)


def network(document: Mapping[str, Any]) -> frozenset[str]:
    """Read a Network: the nodes that have a block in it."""
    return frozenset((document.get("status") or {}).get("blocks") or ())


def node(document: Mapping[str, Any]) -> NodeReadiness:
    """Read a Node."""
    about, status = document["metadata"], document.get("status") or {}
    told = status.get("addresses") or ()
    conditions = status.get("conditions") or ()
    ready = any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)
    return NodeReadiness(
        addresses=tuple(one["address"] for one in told if ":" not in one["address"]),
        serves=ready and bool((about.get("annotations") or {}).get(names.ALIASES)),
    )


def pod(document: Mapping[str, Any]) -> PodPlace:
    """Read a Pod."""
    over = (document.get("status") or {}).get("phase") in ("Succeeded", "Failed")
    node_name = "" if over else document["spec"].get("nodeName", "")
    return PodPlace(uid=document["metadata"]["uid"], node=node_name)


def pool(document: Mapping[str, Any]) -> PoolSeen:
    """Read an AddressPool."""
    return PoolSeen(ranges=tuple(document["spec"].get("ranges") or ()), told=document.get("status") or {})


def floating(document: Mapping[str, Any]) -> AddressHolder:
    """Read a FloatingAddress."""
    about, spec, status = document["metadata"], document["spec"], document.get("status") or {}
    return AddressHolder(
        kind="FloatingAddress",
        namespace=about["namespace"],
        name=about["name"],
        uid=about["uid"],
        generation=about.get("generation", 0),
        created=about.get("creationTimestamp", ""),
        address=spec.get("address", ""),
        pod=spec["pod"],
        had=status.get("address", ""),
        told=status,
    )


def balanced(document: Mapping[str, Any]) -> AddressHolder | None:
    """Read a Service; None for one that is to have no address from us."""
    about, spec, status = document["metadata"], document["spec"], document.get("status") or {}
    ours = spec.get("type") == "LoadBalancer" and spec.get("loadBalancerClass") == names.BALANCER
    if not ours:
        return None
    ingress = (status.get("loadBalancer") or {}).get("ingress") or []
    own = {FOUND, GIVEN}
    conditions = [
        one for one in status.get("conditions") or () if one["type"].removeprefix(f"{names.GROUP}/") in own
    ]
    told = {"loadBalancer": {"ingress": ingress} if ingress else {}, "conditions": conditions}
    return AddressHolder(
        kind="Service",
        namespace=about["namespace"],
        name=about["name"],
        uid=about["uid"],
        # The API server does not count changes of Services.
        created=about.get("creationTimestamp", ""),
        address=spec.get("loadBalancerIP", ""),
        had=ingress[0].get("ip", "") if ingress else "",
        told=told,
    )


def _condition(
    kind: str, holds: bool, reason: str, message: str, holder: AddressHolder, now: str
) -> dict[str, Any]:
    value = "True" if holds else "False"
    before: Mapping[str, Any] = next(
        (one for one in holder.told.get("conditions", ()) if one["type"] == kind), {}
    )
    since = before.get("lastTransitionTime", now) if before.get("status") == value else now
    made = {
        "type": kind,
        "status": value,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
    }
    if holder.generation:
        made["observedGeneration"] = holder.generation
    return made


def status(
    holder: AddressHolder,
    address: str,
    given: GivenAddress | None,
    refusal: Refusal | None,
    now: str,
    *,
    in_pool: bool = True,
) -> dict[str, Any]:
    """What the status of an object says of its address; ``given`` is None when it has none."""
    prefix = f"{names.GROUP}/" if holder.kind == "Service" else ""
    if given is None:
        said = refusal or Refusal(reason="Waiting", message="it has no address yet")
        conditions = [_condition(prefix + GIVEN, False, said.reason, said.message, holder, now)]
        message = said.message
    else:
        outside = (
            "" if in_pool else f"{address} is in no AddressPool any more, and stays until this is deleted"
        )
        message = "" if given.node else _nowhere(holder, given)
        found = ("Found", f"node {given.node} answers for {address}") if given.node else ("NoNode", message)
        conditions = [
            _condition(prefix + GIVEN, True, "Given" if in_pool else "NotInPool", outside, holder, now),
            _condition(prefix + FOUND, bool(given.node), *found, holder, now),
        ]
        message = message or outside
    if holder.kind == "Service":
        # kube-proxy leaves an address of this mode alone: on no node it is the cluster's own.
        ingress = {"ingress": [{"ip": address, "ipMode": "Proxy"}]} if given else {}
        return {"loadBalancer": ingress, "conditions": conditions}
    made = {"address": address, "node": given.node if given else "", "message": message}
    return {**{key: value for key, value in made.items() if value}, "conditions": conditions}


def _nowhere(holder: AddressHolder, given: GivenAddress) -> str:
    if holder.kind == "Service":
        return f"no ready node has pods of tenant {given.tenant}"
    return f"pod {holder.pod} is on no node" if given.pod else f"there is no pod {holder.pod}"


def document(holder: AddressHolder, made: Mapping[str, Any]) -> Document:
    """A status as the API takes it, for that very object."""
    version = "v1" if holder.kind == "Service" else names.API_VERSION
    about = {"name": holder.name, "namespace": holder.namespace, "uid": holder.uid}
    return {"apiVersion": version, "kind": holder.kind, "metadata": about, "status": dict(made)}
