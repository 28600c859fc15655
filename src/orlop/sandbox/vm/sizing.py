"""How big a pod's VM is.

Memory: what the guest itself needs, plus the pod's limit, plus the RuntimeClass's overhead where
one is declared (the overhead then replaces the guest's own need if it is larger). Without a limit:
the configured default. Processors: the pod's CPU quota, rounded up.
"""

from __future__ import annotations

from orlop.config import VmConfig
from orlop.errors import InvalidArgument
from orlop.hypervisor.base import MachineShape
from orlop.sandbox.spec import PodSpec, Resources

MIB = 1 << 20
_ALIGNMENT_MIB = 2


def shape_of(spec: PodSpec, config: VmConfig) -> MachineShape:
    """The size for ``spec``; InvalidArgument when the configuration does not allow one so big."""
    return size(spec.overhead, spec.resources, config, who=f"pod {spec.namespace}/{spec.name}")


def size(overhead: Resources, resources: Resources, config: VmConfig, *, who: str) -> MachineShape:
    """As :func:`shape_of`, for changed resources. ``who`` starts the message of an error."""
    memory = config.default_memory_mib
    if resources.memory_limit > 0:
        base = max(config.base_memory_mib, -(-overhead.memory_limit // MIB))
        memory = base + -(-resources.memory_limit // MIB)
    memory = -(-memory // _ALIGNMENT_MIB) * _ALIGNMENT_MIB
    if memory > config.max_memory_mib:
        raise InvalidArgument(
            f"{who} needs a VM of {memory} MiB, but vm.max_memory_mib is {config.max_memory_mib}"
        )
    vcpus = config.default_vcpus
    if resources.cpu_quota > 0:
        vcpus = -(-resources.cpu_quota // (resources.cpu_period or 100_000))
    return MachineShape(memory_mib=memory, vcpus=max(1, min(vcpus, config.max_vcpus)))
