"""The control group of a VM's process, below the pod's own group that the kubelet made.

What the pod is allowed is set there, by the kubelet; here the VM only has to be in it. Two limits are
exceptions, since the kubelet counts containers, and the overhead of a RuntimeClass where one is declared. A
guest fills the memory it has with its page cache, and would be killed as a whole; and a VM with a few
hundredths of a processor takes a minute for what its agent is asked. So the pod's group holds at least the
VM; the guest keeps each container to its own limits. Processor sets, which CRI gives per container, hold
for the VM as a whole: the union of its containers' sets. How fast it may use disks Kubernetes does not say;
the configuration can.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePosixPath

from orlop.config import IoConfig
from orlop.errors import FailedPrecondition
from orlop.host import cgroups, threads

_PREFIX = "orlop-vm-"
_MIB = 1 << 20
_PERIOD = 100_000
_LEAST_CPU = 0.2
"""Processors that a VM may use for itself and its agent, however little its containers may."""

_MONITOR_MIB = 96
"""What the hypervisor's process takes beside the memory of its guest, and what the kernel counts with it."""


def path_of(parent: str, pod_id: str) -> str:
    """The group's path below the cgroup root, or "" for a pod that names no parent."""
    if not parent:
        return ""
    return f"{cgroups.expand(parent).rstrip('/')}/{_PREFIX}{pod_id[:32]}"


async def enter(path: str, pid: int, memory_mib: int, io: IoConfig) -> None:
    """Make the group, if there is to be one, and move a VM of that size into it.

    ``io`` bounds how fast it may use disks. Raises FailedPrecondition: outside of it the pod had no limits.
    """
    if not path:
        return
    limits = cgroups.Limits(disks=_disks(io))

    def move() -> None:
        _hold(path, memory_mib)
        group = cgroups.Cgroup(path)
        group.create()
        if limits.disks:
            group.set(limits)
        group.add(pid)

    try:
        await threads.call(move)
    except OSError as error:
        raise FailedPrecondition(
            f"the VM cannot be moved to the control group {path}: {error.strerror}"
        ) from error


def _disks(io: IoConfig) -> tuple[cgroups.DiskLimit, ...]:
    if io == IoConfig():
        return ()
    return tuple(
        cgroups.DiskLimit(
            device=device,
            read_bytes=io.read_mib_per_second << 20,
            write_bytes=io.write_mib_per_second << 20,
            read_operations=io.reads_per_second,
            write_operations=io.writes_per_second,
        )
        for device in cgroups.disks()
    )


async def hold(path: str, memory_mib: int) -> None:
    """Let the pod's group hold a VM of that size. Raises FailedPrecondition when it cannot."""
    if not path:
        return
    try:
        await threads.call(_hold, path, memory_mib)
    except OSError as error:
        raise FailedPrecondition(
            f"the control group above {path} cannot hold a VM of {memory_mib} MiB: {error.strerror}"
        ) from error


def needed(memory_mib: int) -> int:
    """What the pod's group must allow in bytes for a VM of that size: :func:`hold` raises it to that."""
    return (memory_mib + _MONITOR_MIB) * _MIB


def _hold(path: str, memory_mib: int) -> None:
    pod = cgroups.Cgroup(os.fspath(PurePosixPath(path).parent))
    least = needed(memory_mib)
    if 0 <= pod.memory_limit() < least:
        pod.set(cgroups.Limits(memory_limit=least))
    if 0 <= pod.cpu_limit() < _LEAST_CPU:
        pod.set(cgroups.Limits(cpu_quota=int(_LEAST_CPU * _PERIOD), cpu_period=_PERIOD))


async def pin(path: str, sets: Iterable[str]) -> None:
    """Let the VM run on the union of these processor sets ("0-3,7"); none at all changes nothing."""
    union = ",".join(dict.fromkeys(one for one in sets if one))
    if not union:
        return
    try:
        await threads.call(cgroups.Cgroup(path).set, cgroups.Limits(cpuset_cpus=union))
    except OSError as error:
        raise FailedPrecondition(
            f"the VM cannot be pinned to processors {union}: {error.strerror}"
        ) from error
