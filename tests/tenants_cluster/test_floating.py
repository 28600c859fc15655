"""Addresses of the world's for a pod of a tenant, and for a Service."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cluster.room import eventually
from tests.tenants_cluster.room import PORT, TenantCluster, floating, pool, service


@pytest.fixture(scope="module")
def pooled(here: TenantCluster) -> Iterator[TenantCluster]:
    """Addresses on the nodes' own network, of which the nodes know nothing any more afterwards."""
    before = here.traces()
    here.cluster.apply(pool())
    yield here
    here.cluster.kubectl("delete", "addresspool", "uplink")
    here.leaves(before)


def test_the_world_reaches_a_pod_by_its_floating_address_and_no_other(pooled: TenantCluster) -> None:
    pooled.cluster.apply(floating("door", "blue", "blue2"))
    address = pooled.floating("blue", "door")
    url = f"http://{address}:{PORT}/hostname"
    # The world is where the control plane is.
    world = eventually(lambda: pooled.cluster.run("curl", "-sS", "-m", "10", url, check=False).out, bool)
    assert world == "blue2"
    pooled.cluster.kubectl("delete", "floatingaddress", "door", "--namespace=blue")
    eventually(lambda: pooled.cluster.run("curl", "-sS", "-m", "3", url, check=False).code, bool)


def test_the_world_reaches_a_tenants_pods_by_a_service_of_type_load_balancer(pooled: TenantCluster) -> None:
    pooled.cluster.apply(service("front", "blue", type="LoadBalancer"))
    url = f"http://{pooled.front('blue', 'front')}:{PORT}/hostname"
    missing = {"blue1", "blue2"}

    def left() -> set[str]:
        """Those that have not answered yet: a call goes to one of them by chance."""
        missing.discard(pooled.cluster.run("curl", "-sS", "-m", "10", url, check=False).out)
        return missing

    eventually(left, lambda found: not found)
    pooled.cluster.kubectl("delete", "service", "front", "--namespace=blue")
