"""What NetworkPolicies say of a connection, for pods that have the cluster's own network.

That the cluster's network plug-in heeds them is assumed; NetworkPolicies have no effect in tenants' networks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal

from orlop.tenants.api import Document
from orlop.value import Value

Direction = Literal["Ingress", "Egress"]


class Side(Value, frozen=True):
    """One end of a connection: a pod with its labels and its namespace's, or an address that is no pod's."""

    address: str
    namespace: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    namespace_labels: tuple[tuple[str, str], ...] = ()
    ports: tuple[tuple[str, int], ...] = ()
    """Its containers' ports that have a name."""


def stopped_by(
    policies: Sequence[Document], direction: Direction, own: Side, other: Side, protocol: str, port: int
) -> list[str]:
    """The names of the policies about ``own`` of which none lets this through; [] if it goes through.

    ``port`` is that of the destination, 0 for none.
    """
    about = [one for one in policies if _selects(one, direction, own)]
    key, peers = ("ingress", "from") if direction == "Ingress" else ("egress", "to")
    target = own if direction == "Ingress" else other
    for policy in about:
        for rule in policy["spec"].get(key) or ():
            who, ports = rule.get(peers), rule.get("ports")
            if who and not any(_is(one, other, own.namespace) for one in who):
                continue
            if ports and not any(_is_port(one, target, protocol, port) for one in ports):
                continue
            return []
    return sorted(one["metadata"]["name"] for one in about)


def _selects(policy: Document, direction: Direction, own: Side) -> bool:
    spec = policy["spec"]
    kinds = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return (
        policy["metadata"]["namespace"] == own.namespace
        and direction in kinds
        and _has(dict(own.labels), spec.get("podSelector") or {})
    )


def _is(peer: Mapping[str, Any], other: Side, namespace: str) -> bool:
    if block := peer.get("ipBlock"):
        address = IPv4Address(other.address)
        if ":" in block["cidr"] or address not in IPv4Network(block["cidr"], strict=False):
            return False
        return not any(address in IPv4Network(one, strict=False) for one in block.get("except") or ())
    if not other.namespace:
        return False
    spaces, pods = peer.get("namespaceSelector"), peer.get("podSelector")
    if spaces is None and other.namespace != namespace:
        return False
    return _has(dict(other.namespace_labels), spaces or {}) and _has(dict(other.labels), pods or {})


def _is_port(rule: Mapping[str, Any], target: Side, protocol: str, port: int) -> bool:
    if rule.get("protocol", "TCP").lower() != protocol:
        return False
    wanted = rule.get("port")
    if wanted is None:
        return True
    if isinstance(wanted, str):
        return (wanted, port) in target.ports
    return bool(wanted <= port <= rule.get("endPort", wanted))


def _has(labels: Mapping[str, str], selector: Mapping[str, Any]) -> bool:
    """Whether labels meet a selector; an empty one is met by all."""
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    return all(_meets(labels, one) for one in selector.get("matchExpressions") or ())


def _meets(labels: Mapping[str, str], wanted: Mapping[str, Any]) -> bool:
    value, values = labels.get(wanted["key"]), wanted.get("values") or ()
    match wanted["operator"]:
        case "In":
            return value in values
        case "NotIn":
            return value not in values
        case "Exists":
            return value is not None
        case _:
            return value is None
