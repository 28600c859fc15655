"""A cluster of one node with the drivers on it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.room import Cluster, cluster, prepare
from tests.csi_life import sidecars
from tests.csi_others import drivers
from tests.e2e.conftest import needs_root

__all__ = ["needs_root"]

RUNNING = {
    "calico-system": ("daemonset/csi-node-driver", "daemonset/nodeagent"),
    "mock": ("daemonset/mock",),
    "local-path-storage": ("deployment/local-path-provisioner",),
}
DATA = "/opt/local-path-provisioner"
"""Where local-path-provisioner has its volumes by its own manifest."""
SETTINGS = "/etc/calico"
"""Where Calico's driver looks for settings."""


@pytest.fixture(scope="session")
def driven() -> Iterator[Cluster]:
    """A node, set up as users do it, with the drivers by their authors' manifests."""
    prepare()
    built, sides = drivers.Built(), sidecars.build()
    stored, reports = drivers.storage(built, sides), Path("build/csi-others")
    with cluster(1, handler="auto", storage=stored, reports=reports) as one:
        # Not in directories of the machine.
        home = one.nodes[0].home
        calico = built.manifest("calico").replace(SETTINGS, f"{home}/calico")
        one.apply(calico, built.manifest("localpath").replace(DATA, f"{home}/local-path"), drivers.OWN)
        for namespace, names in RUNNING.items():
            for name in names:
                one.rolled_out(name, f"--namespace={namespace}")
        yield one
