"""The cluster of these tests, and the tenants on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import needs_root
from tests.tenants_cluster.room import TenantCluster, server, tenant, tenant_cluster

__all__ = ["needs_root"]

BOTH = ("blue", "green")


@pytest.fixture(scope="session")
def installed() -> Iterator[TenantCluster]:
    """No tenants yet."""
    with tenant_cluster(Path("build/tenants-cluster")) as here:
        yield here


@pytest.fixture(scope="session")
def here(installed: TenantCluster) -> TenantCluster:
    """Two tenants with a pod on each node, of the same names and addresses."""
    installed.add(*(tenant(name, quota={"floatingIPs": 2}) for name in BOTH))
    # One node after the other: who comes first takes the first block.
    for number, node in enumerate(installed.nodes, 1):
        pods = [server(f"{name}{number}", name, node) for name in BOTH]
        installed.run_pods(*pods)
    return installed
