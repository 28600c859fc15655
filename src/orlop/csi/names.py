"""What the driver is called, and what it calls things in a cluster."""

from __future__ import annotations

import socket

from orlop.config import CsiConfig

DRIVER = "csi.orlop.io"
TOPOLOGY = f"topology.{DRIVER}/node"
"""The label of a node, by which a cluster knows where a volume is."""

MOUNTED_BY = "mountedBy"
"""The parameter of a StorageClass that says whose kernel has a file system: ``host`` or ``guest``."""

CLUSTERS_OWN = "csi.storage.k8s.io/"
"""What parameters begin with that a cluster adds."""

CLAIM = f"{CLUSTERS_OWN}pvc/name"
"""A claim's name. An external-provisioner that gives it has seen what is to be copied."""


def node_of(config: CsiConfig) -> str:
    """What this machine is called."""
    return config.node or socket.gethostname()
