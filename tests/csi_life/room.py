"""A cluster of two nodes with Orlop's CSI driver, from the manifests that users apply. Needs root."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.cluster.room import Cluster, cluster, prepare
from tests.csi_life import sidecars

KUBELET = {"syncFrequency": "5s"}
"""A kubelet sees that a volume is to grow when it looks at the pod again: once a minute by itself."""

PACKAGED = ("volumes.yaml", "snapshot-controller.yaml", "snapshots.yaml")
RUNNING = ("daemonset/orlop-csi", "daemonset/orlop-csi-snapshots", "deployment/snapshot-controller")


def prepared() -> Path:
    """Build what a cluster and its sidecars need; where the latter are."""
    prepare()
    return sidecars.build()


@contextlib.contextmanager
def storing(
    built: Path, images: Path, reports: Path, handler: str = "vm", extra: Mapping[str, Any] | None = None
) -> Iterator[Cluster]:
    """The cluster, until the block ends. ``extra`` is for the daemons' configuration, ``images`` a registry's
    storage with what the manifests name."""
    enabled = {"csi": {"enabled": True}, **(extra or {})}
    with cluster(2, handler=handler, extra=enabled, kubelet=KUBELET, storage=images, reports=reports) as one:
        for definition in sorted((built / sidecars.DEFINITIONS).iterdir()):
            one.apply(definition)
        one.wait("crd", "condition=Established", "--all")
        one.apply(*(sidecars.MANIFESTS / name for name in PACKAGED))
        for name in RUNNING:
            one.rolled_out(name, "--namespace=kube-system")
        yield one
