"""What ``orlop tenants install`` prints runs from its image, and serves tenants. Needs root."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.room import cluster, eventually
from tests.conftest import needs_root
from tests.tenants_cluster.room import PORT, SYSTEM, TenantCluster, server, tenant
from tests.tenants_image import image

pytestmark = needs_root

OPERATORS, AGENTS = "deployment/orlop-tenants", "daemonset/orlop-tenants-agent"
IN_SYSTEM = f"--namespace={SYSTEM}"


@pytest.fixture(scope="module")
def deployed() -> Iterator[TenantCluster]:
    """Two nodes where pods that name no RuntimeClass are processes, and all that is printed is applied."""
    reports = Path("build/tenants-image")
    with cluster(2, tenants=True, handler="process", storage=image.storage(), reports=reports) as one:
        here = TenantCluster(one)
        here.apply(f"--image={image.NAME}:{image.TAG}")
        for name in (AGENTS, OPERATORS):
            one.rolled_out(name, IN_SYSTEM)
        yield here
        # The pods' networks end with the agents' help: they go last.
        for name in (OPERATORS, AGENTS):
            one.kubectl("delete", name, "--cascade=foreground", IN_SYSTEM)


def _agents(here: TenantCluster) -> set[str]:
    found = here.cluster.json("get", "pods", "--selector=app=orlop-tenants-agent", IN_SYSTEM)["items"]
    return {one["metadata"]["uid"] for one in found}


def test_operator_and_agents_run_as_pods_of_their_image(deployed: TenantCluster) -> None:
    before, objects = deployed.traces(), deployed.objects()
    both = ("blue", "green")
    deployed.add(*(tenant(name) for name in both))
    for number, node in enumerate(deployed.nodes, 1):
        deployed.run_pods(*(server(f"{name}{number}", name, node) for name in both))

    def served() -> None:
        for name in both:
            done = deployed.fetch(
                name, f"{name}1", f"http://{deployed.address(name, f'{name}2')}:{PORT}/hostname"
            )
            assert done.out == f"{name}2", done

    served()
    assert deployed.address("blue", "blue1") == deployed.address("green", "green1")
    url = f"http://{deployed.alias('green', 'green2')}:{PORT}/hostname"
    assert deployed.answered("blue", "blue1", url) == []

    # Routers outlive the agents that made them, and new agents go on with them.
    old = _agents(deployed)
    deployed.cluster.kubectl("delete", "pod", "--selector=app=orlop-tenants-agent", IN_SYSTEM, "--wait=false")
    eventually(lambda: _agents(deployed), lambda found: len(found) == 2 and not found & old)
    served()
    deployed.cluster.rolled_out(AGENTS, IN_SYSTEM)
    deployed.run_pods(server("blue3", "blue", deployed.nodes[0]))
    served()

    deployed.end(*both)
    eventually(deployed.traces, lambda found: found == before)
    ours = {one for one in objects if "orlop-tenants-agent-" not in one}
    assert {one for one in deployed.objects() if "orlop-tenants-agent-" not in one} == ours
