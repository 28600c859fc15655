"""A kubeconfig for a member: its service account's token, which ends by itself, or with the member."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import yaml

from orlop.errors import FailedPrecondition, NotFound
from orlop.tenants import names
from orlop.tenants.api import ACCOUNTS, TENANTS, Api
from orlop.tenants.model import LABEL, parse


async def kubeconfig(api: Api, tenant_name: str, user: str, seconds: int) -> str:
    """Make a kubeconfig, in YAML. Raises NotFound, and FailedPrecondition for whom no account is made."""
    found = await api.find(TENANTS, tenant_name)
    if found is None:
        raise NotFound(f"there is no tenant {tenant_name}: `orlop tenants ls` shows those there are")
    tenant = parse(found)
    if user not in {member.user for member in tenant.spec.members if member.user}:
        raise NotFound(f"{user} is no user of tenant {tenant_name}: add it to spec.members")
    if not LABEL.fullmatch(user):
        raise FailedPrecondition(
            f"{user} gets no account in the cluster, only names such as dev-1 do: it is let in by whoever"
            " knows its users, an OpenID provider or a certificate"
        )
    account = names.account(tenant_name, user)
    if await api.find(ACCOUNTS, account, names.MEMBERS) is None:
        phase = found.get("status", {}).get("phase", "Pending")
        raise FailedPrecondition(
            f"{user} is not let in yet, tenant {tenant_name} is {phase}: `orlop tenants show` says why"
        )
    token = await api.token(account, names.MEMBERS, seconds)
    return _written(api.config, tenant_name, user, tenant.spec.namespaces[0], token)


def _written(config: Any, tenant: str, user: str, namespace: str, token: str) -> str:
    name = f"{user}@{tenant}"
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": tenant, "cluster": _cluster(config)}],
        "users": [{"name": name, "user": {"token": token}}],
        "contexts": [{"name": name, "context": {"cluster": tenant, "user": name, "namespace": namespace}}],
        "current-context": name,
    }
    written: str = yaml.safe_dump(document, sort_keys=False)
    return written


def _cluster(config: Any) -> dict[str, Any]:
    """Where the API server is, as we reach it ourselves, and how it is known."""
    cluster = config.cluster
    made: dict[str, Any] = {"server": cluster.server}
    if cluster.certificate_auth_data:
        made["certificate-authority-data"] = cluster.certificate_auth_data
    elif cluster.certificate_auth:
        authority = Path(config.abs_file(cluster.certificate_auth)).read_bytes()
        made["certificate-authority-data"] = base64.b64encode(authority).decode()
    elif cluster.insecure:
        made["insecure-skip-tls-verify"] = True
    return made
