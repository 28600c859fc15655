"""A cluster whose nodes have named volumes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.room import Cluster, cluster, prepare
from tests.csi_life import sidecars
from tests.e2e.conftest import needs_root

__all__ = ["needs_root"]

KUBELET = {"syncFrequency": "5s"}
"""A kubelet sees that a volume is to grow when it looks at the pod again: once a minute by itself."""

PACKAGED = ("volumes.yaml", "snapshot-controller.yaml", "snapshots.yaml")


@pytest.fixture(scope="session")
def storing() -> Iterator[Cluster]:
    """Two nodes with the manifests that users apply, and what these say runs."""
    prepare()
    built = sidecars.build()
    images, reports = sidecars.storage(built), Path("build/csi-life")
    enabled = {"csi": {"enabled": True}}
    with cluster(2, extra=enabled, kubelet=KUBELET, storage=images, reports=reports) as one:
        for definition in sorted((built / sidecars.DEFINITIONS).iterdir()):
            one.apply(definition)
        one.wait("crd", "condition=Established", "--all")
        one.apply(*(sidecars.MANIFESTS / name for name in PACKAGED))
        running = ("daemonset/orlop-csi", "daemonset/orlop-csi-snapshots", "deployment/snapshot-controller")
        for name in running:
            one.rolled_out(name, "--namespace=kube-system")
        yield one
