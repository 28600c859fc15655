"""The network of pods as CNI has it: a bridge of the node's, with addresses that the node gives."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

PLUGINS = ("/opt/cni/bin", "/usr/lib/cni")
"""Where distributions have the plug-ins."""


def plugins() -> str:
    """Where this machine has them."""
    return next(place for place in PLUGINS if Path(place).is_dir())


def any_subnet() -> str:
    """A network that others are unlikely to have."""
    return f"10.{100 + os.urandom(1)[0] % 100}.{os.urandom(1)[0]}.0/24"


def conflist(
    name: str,
    bridge: str,
    subnet: str,
    leases: Path,
    *,
    version: str = "1.0.0",
    masquerade: bool = True,
    ports: bool = True,
    last: str = "",
) -> dict[str, Any]:
    """The document; ``leases`` is the directory of given addresses, ``ports`` whether ports of the node lead
    to pods, ``last`` the last address to give."""
    ipam = {
        "type": "host-local",
        "dataDir": os.fspath(leases),
        "ranges": [[{"subnet": subnet, **({"rangeEnd": last} if last else {})}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    }
    bridging = {
        "type": "bridge",
        "bridge": bridge,
        "isGateway": True,
        "ipMasq": masquerade,
        "hairpinMode": True,
        "ipam": ipam,
    }
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    return {"cniVersion": version, "name": name, "plugins": [bridging, portmap] if ports else [bridging]}


def for_tenants(network: dict[str, Any]) -> dict[str, Any]:
    """The same with the networks of tenants: its first plug-in has the pods of no tenant."""
    first, *others = network["plugins"]
    tenants = {"type": "orlop-tenant", "orlop.socket": "/run/orlop-tenants/agent.sock", "delegate": first}
    return {**network, "plugins": [tenants, *others]}


def write(directory: Path, document: dict[str, Any]) -> Path:
    """Make it the only network of a directory that is to be made. Returns the directory."""
    directory.mkdir()
    (directory / "10-test.conflist").write_text(json.dumps(document))
    return directory
