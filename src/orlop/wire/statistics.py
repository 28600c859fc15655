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
