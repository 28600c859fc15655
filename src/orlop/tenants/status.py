"""What a Tenant's status says, from what a round has found: pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

from orlop.tenants import names
from orlop.tenants.model import Tenant
from orlop.value import Value

Phase = Literal["Pending", "Initializing", "Active", "Failed", "Terminating"]

KINDS: Final = ("RuntimeClassReady", "Guarded", "NamespacesReady", "QuotaInForce", "NetworkMade")
"""The conditions of a tenant that lives, in the order in which they stand."""


class Observation(Value, frozen=True):
    """One condition: whether it holds, and why not.

    ``waits`` is for what comes by itself or once the cluster has what it needs; ``failed`` is for what
    somebody has to change in the Tenant, or outside.
    """

    kind: str
    state: Literal["holds", "starting", "waits", "failed"] = "holds"
    reason: str = "Ready"
    message: str = ""


_PHASES: Final[Mapping[str, Phase]] = {
    "failed": "Failed",
    "waits": "Pending",
    "starting": "Initializing",
    "holds": "Active",
}


def phase(findings: Sequence[Observation]) -> Phase:
    """The phase of a tenant that lives: that of its worst condition."""
    found = {one.state for one in findings}
    return next(word for state, word in _PHASES.items() if state in found or state == "holds")


def _condition(one: Observation, before: Mapping[str, Any], generation: int, now: str) -> dict[str, Any]:
    value = "True" if one.state == "holds" else "False"
    since = before.get("lastTransitionTime", now) if before.get("status") == value else now
    return {
        "type": one.kind,
        "status": value,
        "reason": one.reason,
        "message": one.message,
        "observedGeneration": generation,
        "lastTransitionTime": since,
    }


def status(
    tenant: Tenant,
    before: Mapping[str, Any],
    findings: Sequence[Observation],
    now: str,
    *,
    use: Mapping[str, str] | None = None,
    vni: int | None = None,
    namespaces: Sequence[str] = (),
    waits_for: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The whole status. ``before`` is what it was, ``now`` the time, ``waits_for`` is given while it ends."""
    known = {one["type"]: one for one in before.get("conditions", [])}
    said = "; ".join(one.message for one in findings if one.state != "holds" and one.message)
    made: dict[str, Any] = {
        "phase": "Terminating" if waits_for is not None else phase(findings),
        "message": said,
        "observedGeneration": tenant.generation,
        "members": len(tenant.spec.members),
        "namespaces": list(namespaces),
        "use": dict(use or {}),
        "conditions": [_condition(one, known.get(one.kind, {}), tenant.generation, now) for one in findings],
    }
    if vni is not None:
        made["vni"] = vni
    if waits_for is not None:
        made["waitsFor"] = list(waits_for)
        made["message"] = "; ".join(waits_for)
    # An empty map that once had keys comes out of the API server's apply as null, and is refused.
    return {key: value for key, value in made.items() if value not in ("", [], {})}


def document(name: str, made: Mapping[str, Any]) -> dict[str, Any]:
    """A status as the API takes it."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "Tenant",
        "metadata": {"name": name},
        "status": dict(made),
    }
