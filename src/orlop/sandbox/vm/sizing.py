"""How big a pod's VM is.

Memory: what the guest itself needs (or the RuntimeClass's overhead, if that is more), plus the pod's limit,
plus what its kernel needs to keep count of that much. Without a limit: the configured default. A pod's limit
does not speak of its containers that have none, and nobody tells of them before they are made: each of them
adds what the default leaves to a pod's containers. Processors: the pod's CPU quota, rounded up.
"""

from __future__ import annotations

from collections.abc import Iterable

from orlop.config import VmConfig
from orlop.errors import InvalidArgument
from orlop.hypervisor.base import MachineShape
from orlop.sandbox.spec import PodSpec, Resources

MIB = 1 << 20
_ALIGNMENT_MIB = 2
_DESCRIPTORS = 64
_LEAST_SHARE_MIB = 64


def shape_of(spec: PodSpec, config: VmConfig) -> MachineShape:
    """The size for ``spec``; InvalidArgument when the configuration does not allow one so big."""
    return size(spec.overhead, spec.resources, config, who=f"pod {spec.namespace}/{spec.name}")


def size(overhead: Resources, resources: Resources, config: VmConfig, *, who: str) -> MachineShape:
    """As :func:`shape_of`, for changed resources. ``who`` starts the message of an error."""
    memory = config.default_memory_mib
    if resources.memory_limit > 0:
        memory = _with_base(-(-resources.memory_limit // MIB), overhead, config)
    if memory > config.max_memory_mib:
        raise InvalidArgument(
            f"{who} needs a VM of {memory} MiB, but vm.max_memory_mib is {config.max_memory_mib}"
        )
    vcpus = min(processors(resources) or config.default_vcpus, config.max_vcpus)
    return MachineShape(memory_mib=memory, vcpus=vcpus)


def processors(resources: Resources) -> int:
    """How many processors a quota keeps busy; 0 without a quota."""
    if resources.cpu_quota <= 0:
        return 0
    return -(-resources.cpu_quota // (resources.cpu_period or 100_000))


def shortage(resources: Resources, vcpus: int, accelerator: str, config: VmConfig) -> str:
    """Why a VM has fewer processors (``vcpus``) than its pod may use, in one sentence; "" if it has not."""
    wanted = processors(resources)
    if wanted <= vcpus:
        return ""
    why = f"vm.max_vcpus is {config.max_vcpus}"
    if accelerator == "tcg" and vcpus < config.max_vcpus:
        why = "a VM under emulation has vm.default_vcpus, and cannot get more"
    return f"the pod's limit is worth {wanted} processors, and its VM has {vcpus}: {why}"


def with_containers(
    overhead: Resources, pod: Resources, limits: Iterable[int], config: VmConfig, *, who: str
) -> int:
    """MiB for containers with these memory limits in bytes, 0 for one without; of a ``pod`` with such limits.

    Raises InvalidArgument when the limits alone are more than the configuration allows.
    """
    present = list(limits)
    limited = max(0, pod.memory_limit) or sum(limit for limit in present if limit > 0)
    memory = _with_base(-(-limited // MIB), overhead, config) if limited else config.base_memory_mib
    if memory > config.max_memory_mib:
        raise InvalidArgument(
            f"{who}: its containers' limits need a VM of {memory} MiB, "
            f"but vm.max_memory_mib is {config.max_memory_mib}"
        )
    share = max(_LEAST_SHARE_MIB, config.default_memory_mib - config.base_memory_mib)
    memory += share * sum(1 for limit in present if limit <= 0)
    return min(_aligned(memory), config.max_memory_mib)


def _with_base(limit_mib: int, overhead: Resources, config: VmConfig) -> int:
    base = max(config.base_memory_mib, -(-overhead.memory_limit // MIB))
    # Plugged memory keeps a part of itself for its page descriptors.
    above = max(0, base + limit_mib - config.default_memory_mib)
    plain = _aligned(base + limit_mib)
    return max(plain, min(_aligned(plain + -(-above // _DESCRIPTORS)), config.max_memory_mib))


def _aligned(memory_mib: int) -> int:
    return -(-memory_mib // _ALIGNMENT_MIB) * _ALIGNMENT_MIB
