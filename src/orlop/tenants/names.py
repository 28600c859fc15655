"""What everybody who deals with tenants has to call alike: groups, labels, namespaces of our own."""

from __future__ import annotations

from typing import Final

GROUP: Final = "orlop.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

TENANT: Final = f"{GROUP}/tenant"
"""The label that says whose a namespace, or an object in it, is: policies and quotas find them by it."""
RUNTIME: Final = f"{GROUP}/runtime-class"
"""The label of a namespace with the one RuntimeClass of its pods."""
OWNER_UID: Final = f"{GROUP}/tenant-uid"
"""The annotation of a namespace with the uid of the Tenant that it was made for."""
ADDRESS: Final = f"{GROUP}/tenant-address"
"""The annotation of a pod with its address in the tenant's network; PodIP is its alias."""
ALIASES: Final = f"{GROUP}/aliases"
"""The annotation of a node with the range that its pods of tenants have their aliases from."""
BALANCER: Final = f"{GROUP}/tenant"
"""The loadBalancerClass of Services that get their address from the cluster's pool for tenants."""
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
OPERATOR: Final = "orlop-tenants"
"""The value of that label, the operator's field manager, its service account, its lease."""
FINALIZER: Final = f"{GROUP}/tenant"

SYSTEM: Final = "orlop-system"
"""The namespace of the operator."""
ADDRESS_BOOK: Final = "orlop-tenants-addresses"
"""The ConfigMap there that says who has which address of the pools, and which node answers for it."""
MEMBERS: Final = "orlop-members"
"""The namespace of the members' service accounts. None of a tenant's own would do: who may edit there may
take the token of any account there, an administrator's too."""

ROLES: Final = ("admin", "edit", "view")
"""Kubernetes' own ClusterRoles for people, that members get in their tenant's namespaces."""


def labels(tenant: str) -> dict[str, str]:
    """Those of everything that is made for a tenant."""
    return {TENANT: tenant, MANAGED_BY: OPERATOR}


def selector(tenant: str) -> dict[str, str]:
    """What finds all of that again."""
    return labels(tenant)


def account(tenant: str, user: str) -> str:
    """A member's service account. Neither name has a dot, so that no two members have one account."""
    return f"{tenant}.{user}"
