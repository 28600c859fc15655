"""Where things are in a cluster: addresses, names, files. What the parts of it have to agree on.

The control plane and each node have a network namespace of their own, joined by one bridge. The addresses
of the nodes are from a range kept for documentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BRIDGE = "lan0"
CONTROL = "198.51.100.1"
API_PORT = 6443
SERVICES = "10.96.0.0/16"
API_SERVICE = "10.96.0.1"
DNS_SERVICE = "10.96.0.10"
DOMAIN = "cluster.local"
PODS = "10.64.0.0/16"

ORDER = "order.json"
"""What the cluster shall be like, as :func:`tests.cluster.room.cluster` was asked."""
STOP = "stop"
"""Once this file is there, the cluster ends by itself."""


@dataclass(frozen=True)
class Place:
    """A node by its number, from 1."""

    number: int

    @property
    def name(self) -> str:
        """What the cluster calls it."""
        return f"node{self.number}"

    @property
    def address(self) -> str:
        """Its address on the bridge."""
        return f"198.51.100.{10 + self.number}"

    @property
    def pods(self) -> str:
        """The addresses of its pods."""
        return f"10.64.{self.number}.0/24"

    @property
    def plugged(self) -> str:
        """The last of them that pods are given where there are tenants: the half above are aliases."""
        return f"10.64.{self.number}.127"

    @property
    def aliases(self) -> str:
        """The addresses that pods of tenants are known by, where there are any."""
        return f"10.64.{self.number}.128/25"


def certificates(directory: Path) -> Path:
    """Keys, certificates and kubeconfigs."""
    return directory / "pki"


def kubeconfig(directory: Path, user: str = "admin") -> Path:
    """How a user reaches the API server."""
    return certificates(directory) / f"{user}.kubeconfig"


def logs(directory: Path) -> Path:
    """What the programs say, each in a file of its name."""
    return directory / "logs"


def orders(home: Path) -> Path:
    """Where tests ask for programs: in a node's directory, or the cluster's for its control plane."""
    return home / "orders"
