"""What the agent measures of a container."""

from __future__ import annotations

from dataclasses import dataclass

from orlop.linux.usage import NO_LAYER, LayerFill, Usage
from orlop.wire.values import Id


@dataclass(frozen=True, kw_only=True)
class ContainerUsage:
    """Use of a container."""

    id: Id
    usage: Usage
    layer: LayerFill = NO_LAYER


@dataclass(frozen=True, kw_only=True)
class VolumeFill:
    """How full the volume ``id`` is that the pod holds: bytes and inodes, and what is free for its users."""

    id: Id
    total: int
    free: int
    inodes: int
    inodes_free: int
