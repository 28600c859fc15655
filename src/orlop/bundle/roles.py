"""What a bundle's caller says that a container is in a pod: the sandbox, one in it, or none of a pod.

CRI-O and podman say it with one pair of annotations, containerd with another.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum

from orlop.bundle.document import OciConfig

_KINDS = ("io.kubernetes.cri.container-type", "io.kubernetes.cri-o.ContainerType")
_SANDBOXES = ("io.kubernetes.cri.sandbox-id", "io.kubernetes.cri-o.SandboxID")


class Role(Enum):
    """What a container is."""

    ALONE = "alone"
    SANDBOX = "sandbox"
    MEMBER = "member"


def role(config: OciConfig) -> tuple[Role, str]:
    """What it is, and of which sandbox; the latter is "" where nobody has said."""
    annotations = config.annotations or {}
    try:
        found = {"sandbox": Role.SANDBOX, "container": Role.MEMBER}[_first(annotations, _KINDS)]
    except KeyError:
        return Role.ALONE, ""
    return found, _first(annotations, _SANDBOXES)


def _first(annotations: Mapping[str, str], names: tuple[str, ...]) -> str:
    return next((annotations[name] for name in names if name in annotations), "")
