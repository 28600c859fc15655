"""The end of a tenant takes all that it had, and nothing else."""

from __future__ import annotations

from tests.tenants_cluster.room import PORT, TenantCluster, server, tenant


def test_a_tenant_that_goes_leaves_nothing_and_takes_nothing_of_others(here: TenantCluster) -> None:
    before, objects = here.traces(), here.objects()
    here.add(tenant("red", ["red", "red-test"]))
    here.run_pods(
        server("one", "red", here.nodes[0]),
        server("two", "red-test", here.nodes[0]),
        server("three", "red", here.nodes[1]),
    )
    address = here.address("red", "three")
    assert here.fetch("red-test", "two", f"http://{address}:{PORT}/hostname").out == "three"
    assert here.traces() != before
    here.end("red")
    # Routers go with the agents' next look.
    here.leaves(before)
    assert here.objects() == objects
    for name in ("blue", "green"):
        done = here.fetch(name, f"{name}1", f"http://{here.address(name, f'{name}2')}:{PORT}/hostname")
        assert done.out == f"{name}2"
