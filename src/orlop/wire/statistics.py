"""What the agent measures of a container."""

from __future__ import annotations

from dataclasses import dataclass

from orlop.linux.usage import Usage
from orlop.wire.values import Id


@dataclass(frozen=True, kw_only=True)
class LayerFill:
    """A container's writable layer: what is in it, and what its file system holds in all."""

    used: int = 0
    inodes: int = 0
    size: int = 0
    inodes_total: int = 0
    inodes_free: int = 0


@dataclass(frozen=True, kw_only=True)
class ContainerUsage:
    """Use of a container."""

    id: Id
    usage: Usage
    layer: LayerFill = LayerFill()
