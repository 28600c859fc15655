"""What pods and containers use, as the handlers measure it and the rooms above show it.

The figures of a control group are the same value wherever they were read:
:class:`orlop.linux.usage.Usage`, on the host or in a guest. Bytes, nanoseconds, counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from orlop.linux.usage import LayerFill, Usage
from orlop.net.model import InterfaceCounters
from orlop.value import Value

NOTHING = Usage(timestamp=0)
"""Of what does not run."""


class Detail(IntEnum):
    """How much is asked of a sandbox, for a kubelet asks often: each has what the one before it has."""

    CONTAINERS = 1
    """What each container uses; nothing of the pod as a whole."""
    POD = 2
    """The pod as well, with its network and its processes."""
    METRICS = 3
    """What only metrics show as well: limits that were hit, disks, open files."""


@dataclass(frozen=True, kw_only=True)
class LayerUse(LayerFill):
    """A writable layer, and when that was so.

    ``mountpoint`` is the host's directory of all such layers of the handler: it lasts, which a
    container's own does not.
    """

    timestamp: int = 0
    mountpoint: str = ""


class ContainerStats(Value, frozen=True):
    """Use of one container. ``nano_cores`` is the rate of processor use just now, None when unknown."""

    container_id: str
    usage: Usage = NOTHING
    layer: LayerUse = LayerUse()
    nano_cores: int | None = None


class HostMemory(Value, frozen=True):
    """What a pod takes of the host's memory: ``private`` is its alone, ``shared`` its VM has in common with
    others (the template, the hypervisor's program). ``used`` is what the pod's kernel cannot give up.
    """

    private: int = 0
    shared: int = 0
    used: int = 0


class PodStats(Value, frozen=True):
    """Use of a whole pod; under ``vm`` with the VM's overhead, once.

    ``available`` is what is left of the pod's memory, None where nothing limits it. ``interfaces`` is empty
    for a pod on the host's network, whose counters are not the pod's.
    """

    usage: Usage = NOTHING
    available: int | None = None
    nano_cores: int | None = None
    interfaces: tuple[InterfaceCounters, ...] = ()
    containers: tuple[ContainerStats, ...] = ()
    memory: HostMemory = HostMemory()
