"""What a Tenant means in Kubernetes' own objects: pure, so that it can be read and tested alone."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from typing import Any, Final

from orlop.tenants import names
from orlop.tenants.model import LABEL, Tenant

Document = dict[str, Any]

RBAC: Final = "rbac.authorization.k8s.io"
QUOTA: Final = "orlop-tenant"
"""The name of the ResourceQuota, the LimitRange and the NetworkPolicy in each namespace."""
LIMITS: Final = {"cpu": "500m", "memory": "256Mi"}
REQUESTS: Final = {"cpu": "100m", "memory": "256Mi"}
"""Of a container that names none: a quota that counts limits refuses what has none."""

QUOTA_NAMES: Final = {
    "pods": "pods",
    "cpu": "limits.cpu",
    "memory": "limits.memory",
    "storage": "requests.storage",
}
"""What a tenant's quota counts, by the names that a ResourceQuota has for it. CPU and memory are what pods
may take, not what they ask for: neighbours who do not trust one another feel the former."""


def _object(version: str, kind: str, name: str, tenant: str, namespace: str = "") -> Document:
    about: Document = {"name": name, "labels": names.labels(tenant)}
    if namespace:
        about["namespace"] = namespace
    return {"apiVersion": version, "kind": kind, "metadata": about}


def namespace(tenant: Tenant, name: str, *, runtime: bool) -> Document:
    """One of its namespaces. Without ``runtime`` it lets no pod in, see the policies."""
    made = _object("v1", "Namespace", name, tenant.name)
    about = made["metadata"]
    about["annotations"] = {names.OWNER_UID: tenant.uid}
    if runtime:
        about["labels"][names.RUNTIME] = tenant.spec.runtime_class
    return made


def owns(tenant: Tenant, document: Mapping[str, Any]) -> bool:
    """Whether a namespace was made for this tenant, and for none that had its name before."""
    about = document["metadata"]
    label = about.get("labels", {}).get(names.TENANT)
    uid = about.get("annotations", {}).get(names.OWNER_UID)
    return bool(label == tenant.name and uid == tenant.uid)


def accounts(tenant: Tenant) -> list[Document]:
    """Service accounts for those of its users whose names can be one: a kubeconfig is made of such."""
    users = {member.user for member in tenant.spec.members if LABEL.fullmatch(member.user)}
    return [
        _object("v1", "ServiceAccount", names.account(tenant.name, user), tenant.name, names.MEMBERS)
        for user in sorted(users)
    ]


def _subjects(tenant: Tenant, role: str | None = None) -> list[Document]:
    found: list[Document] = []
    for member in tenant.spec.members:
        if role not in (None, member.role):
            continue
        kind, name = ("User", member.user) if member.user else ("Group", member.group)
        found.append({"apiGroup": RBAC, "kind": kind, "name": name})
        if LABEL.fullmatch(member.user):
            account = names.account(tenant.name, member.user)
            found.append({"kind": "ServiceAccount", "name": account, "namespace": names.MEMBERS})
    return [one for number, one in enumerate(found) if one not in found[:number]]


def reading(tenant: Tenant) -> list[Document]:
    """That its members may read the Tenant itself, with what is taken of its quota."""
    if not tenant.spec.members:
        return []
    name = f"orlop:tenant:{tenant.name}"
    role = _object(f"{RBAC}/v1", "ClusterRole", name, tenant.name)
    role["rules"] = [
        {
            "apiGroups": [names.GROUP],
            "resources": ["tenants"],
            "resourceNames": [tenant.name],
            "verbs": ["get"],
        }
    ]
    binding = _object(f"{RBAC}/v1", "ClusterRoleBinding", name, tenant.name)
    binding["roleRef"] = {"apiGroup": RBAC, "kind": "ClusterRole", "name": name}
    binding["subjects"] = _subjects(tenant)
    return [role, binding]


def bindings(tenant: Tenant, namespace: str) -> list[Document]:
    """What its members may do in one of its namespaces."""
    made = []
    for role in names.ROLES:
        if subjects := _subjects(tenant, role):
            one = _object(f"{RBAC}/v1", "RoleBinding", f"orlop:{role}", tenant.name, namespace)
            one["roleRef"] = {"apiGroup": RBAC, "kind": "ClusterRole", "name": role}
            one["subjects"] = subjects
            made.append(one)
    return made


def limits(tenant: Tenant, namespace: str) -> list[Document]:
    """What a container has that names no limits, if a quota counts them."""
    quota = tenant.spec.quota
    counted = [name for name, amount in (("cpu", quota.cpu), ("memory", quota.memory)) if amount is not None]
    if not counted:
        return []
    made = _object("v1", "LimitRange", QUOTA, tenant.name, namespace)
    made["spec"] = {
        "limits": [
            {
                "type": "Container",
                "default": {name: LIMITS[name] for name in counted},
                "defaultRequest": {name: REQUESTS[name] for name in counted},
            }
        ]
    }
    return [made]


def resource_quota(tenant: Tenant, namespace: str, hard: Mapping[str, str]) -> Document:
    """The part of the tenant's quota that a namespace may use."""
    made = _object("v1", "ResourceQuota", QUOTA, tenant.name, namespace)
    made["spec"] = {"hard": dict(hard)}
    return made


def outside(allow: Sequence[str], deny: Sequence[str]) -> list[Document]:
    """Blocks of a NetworkPolicy for what is allowed without what is denied."""
    blocks: list[Document] = []
    refused = [ipaddress.IPv4Network(one, strict=False) for one in deny]
    for one in allow:
        network = ipaddress.IPv4Network(one, strict=False)
        # What is denied as a whole is not there; the API wants exceptions to be less than their block.
        if any(network.subnet_of(each) for each in refused):
            continue
        inner = [each for each in refused if each.subnet_of(network)]
        block: Document = {"cidr": str(network)}
        if inner:
            block["except"] = [str(each) for each in inner]
        blocks.append({"ipBlock": block})
    return blocks


def network_policy(tenant: Tenant, namespace: str) -> Document:
    """Traffic from the tenant's own pods only; to these, the DNS, and outside as its egress says."""
    made = _object("networking.k8s.io/v1", "NetworkPolicy", QUOTA, tenant.name, namespace)
    own = {"namespaceSelector": {"matchLabels": {names.TENANT: tenant.name}}}
    dns = {
        "to": [
            {
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
                "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
            }
        ],
        "ports": [{"protocol": protocol, "port": 53} for protocol in ("UDP", "TCP")],
    }
    egress = [{"to": [own]}, dns]
    # An empty list of peers would be everywhere.
    if blocks := outside(tenant.spec.network.egress.allow, tenant.spec.network.egress.deny):
        egress.append({"to": blocks})
    made["spec"] = {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
        "ingress": [{"from": [own]}],
        "egress": egress,
    }
    return made


def network(tenant: Tenant, vni: int, namespaces: Sequence[str]) -> Document:
    """Its Network: what the nodes are told."""
    made = _object(names.API_VERSION, "Network", tenant.name, tenant.name)
    made["metadata"]["ownerReferences"] = [
        {
            "apiVersion": names.API_VERSION,
            "kind": "Tenant",
            "name": tenant.name,
            "uid": tenant.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    wanted = tenant.spec.network
    made["spec"] = {
        "vni": vni,
        "cidr": wanted.cidr,
        "egress": {"allow": list(wanted.egress.allow), "deny": list(wanted.egress.deny)},
        "namespaces": list(namespaces),
    }
    if wanted.dns:
        made["spec"]["dns"] = wanted.dns
    if wanted.forwarders:
        made["spec"]["forwarders"] = list(wanted.forwarders)
    return made
