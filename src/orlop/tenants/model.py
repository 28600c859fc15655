"""A Tenant as its administrator wrote it, checked once where it comes in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final, Literal

import msgspec

from orlop.errors import InvalidArgument
from orlop.value import Value

LABEL: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
"""A DNS label, as Kubernetes names namespaces."""

_QUANTITY: Final = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(?:([EPTGMk]i?|Ki|m|u|n)|[eE]([+-]?\d{1,2}))?")
_SUFFIXES: Final = {
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)},
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)},
    **{letter: Decimal(1000) ** -power for power, letter in enumerate("mun", 1)},
}


def quantity(text: str | int) -> Decimal:
    """A quantity of Kubernetes as a number: ``64Gi``, ``500m``, ``20``. Raises InvalidArgument."""
    found = _QUANTITY.fullmatch(str(text).strip())
    if found is None or found[2] == "ki":
        raise InvalidArgument(f"{text!r} is no quantity: write for example 20, 500m or 64Gi")
    number, suffix, exponent = found.groups()
    if suffix:
        return Decimal(number) * _SUFFIXES[suffix]
    return Decimal(number).scaleb(int(exponent or 0))


class Member(Value, frozen=True):
    """Who may do what in the tenant's namespaces: a user or a group, one of both."""

    role: Literal["admin", "edit", "view"]
    user: str = ""
    group: str = ""


class Quota(Value, frozen=True):
    """What all pods and claims of a tenant may take together; None is no limit.

    Of ``floating_ips`` None is none at all: the cluster has few, and what one tenant takes others lack.
    """

    pods: int | None = None
    cpu: str | int | None = None
    memory: str | int | None = None
    storage: str | int | None = None
    floating_ips: int | None = msgspec.field(default=None, name="floatingIPs")


class Egress(Value, frozen=True):
    """Where pods may connect to outside of their tenant; what is denied is taken out of what is allowed."""

    allow: tuple[str, ...] = ("0.0.0.0/0",)
    deny: tuple[str, ...] = ("169.254.0.0/16",)


class TenantNetwork(Value, frozen=True):
    """The network of a tenant's own."""

    cidr: str = "10.0.0.0/16"
    dns: str = ""
    forwarders: tuple[str, ...] = ()
    egress: Egress = Egress()


class TenantSpec(Value, frozen=True):
    """What a tenant is to have."""

    namespaces: tuple[str, ...]
    members: tuple[Member, ...] = ()
    quota: Quota = Quota()
    runtime_class: str = msgspec.field(default="vm", name="runtimeClass")
    network: TenantNetwork = TenantNetwork()


class Tenant(Value, frozen=True):
    """A Tenant of the API: its name, who it is, what it is to have, and whether it is to go."""

    name: str
    uid: str
    generation: int
    spec: TenantSpec
    ending: bool = False
    finalizers: tuple[str, ...] = ()


def parse(document: Mapping[str, Any]) -> Tenant:
    """A Tenant from the API's object. Raises InvalidArgument when its spec is none, and says where."""
    about = document["metadata"]
    try:
        spec = msgspec.convert(document.get("spec", {}), TenantSpec)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"the spec of tenant {about['name']} cannot be read: {error}") from error
    return Tenant(
        name=about["name"],
        uid=about["uid"],
        generation=about.get("generation", 0),
        spec=spec,
        ending="deletionTimestamp" in about,
        finalizers=tuple(about.get("finalizers", ())),
    )
