"""The size of a pod's VM while the pod lives: it grows for what is made in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import msgspec

from orlop.config import VmConfig
from orlop.hypervisor.base import MachineShape
from orlop.sandbox.spec import PodSpec, Resources
from orlop.sandbox.vm import hostgroup, sizing
from orlop.sandbox.vm.clone import Clone
from orlop.sandbox.vm.files import PodFile

log = logging.getLogger(__name__)

_UNTIL_WRITTEN = (0.05, 0.2, 1.0, 5.0, 20.0)
"""Seconds between looks at what the kubelet has written: at once as a rule, later on a busy node."""


class Room:
    """What one pod has, and may have. ``pod`` says what runs its VM, and in which control group."""

    def __init__(self, spec: PodSpec, config: VmConfig, clone: Clone, pod: PodFile) -> None:
        self._spec = spec
        self._config = config
        self._clone = clone
        self._pod = pod
        self._changing = asyncio.Lock()
        self._told = ""

    @property
    def shortage(self) -> str:
        """Why the VM has fewer processors than the pod may use, or ""."""
        vcpus = self._clone.machine.shape.vcpus
        return sizing.shortage(self._spec.resources, vcpus, self._pod.accelerator, self._config)

    @property
    def info(self) -> dict[str, object]:
        """For people."""
        shape = self._clone.machine.shape
        return {
            "memoryMiB": shape.memory_mib,
            "vcpus": shape.vcpus,
            "vcpusAsked": sizing.processors(self._spec.resources),
            "vcpusShort": self.shortage,
        }

    async def fit(self, limits: Iterable[int]) -> None:
        """Grow for containers with these memory limits (0: none). Raises InvalidArgument."""
        await self._grow(limits)

    async def change(self, overhead: Resources, resources: Resources, limits: Iterable[int]) -> Resources:
        """Grow for other resources of the pod, whose containers have ``limits``; what the pod may use now.

        Raises InvalidArgument.
        """
        if resources.memory_limit == hostgroup.needed(self._clone.machine.shape.memory_mib):
            # A kubelet that changes something else says what it has read of the pod's control group, which
            # was raised for the VM. Taken for a wish it would make the VM grow with each change.
            now = self._spec.resources
            resources = msgspec.structs.replace(resources, memory_limit=now.memory_limit)
        wanted = sizing.size(overhead, resources, self._config, who=self._who)
        self._spec = msgspec.structs.replace(self._spec, overhead=overhead, resources=resources)
        await self._grow(limits, wanted)
        self.tell()
        return resources

    async def hold(self) -> None:
        """Let the pod's control group hold the VM whatever the kubelet writes there after a change.

        It tells of a change first, and writes when that was accepted. Then nothing is heard of it any more.
        """
        for pause in _UNTIL_WRITTEN:
            await asyncio.sleep(pause)
            await hostgroup.hold(self._pod.cgroup, self._clone.machine.shape.memory_mib)

    def tell(self) -> None:
        """Say in the log that the VM has fewer processors than the pod may use, once for each reason."""
        shortage = self.shortage
        if shortage and shortage != self._told:
            log.warning("pod %s/%s: %s", self._spec.namespace, self._spec.name, shortage)
        self._told = shortage

    @property
    def _who(self) -> str:
        return f"pod {self._spec.id}"

    async def _grow(self, limits: Iterable[int], wanted: MachineShape | None = None) -> None:
        """A VM gives back what it does not use; only growth needs a change."""
        async with self._changing:
            pod = self._spec
            memory = sizing.with_containers(pod.overhead, pod.resources, limits, self._config, who=self._who)
            now = self._clone.machine.shape
            shape = MachineShape(
                memory_mib=max(memory, now.memory_mib, wanted.memory_mib if wanted else 0),
                vcpus=max(now.vcpus, wanted.vcpus if wanted else 0),
            )
            if shape == now and wanted is None:
                return
            # With ``wanted`` the kubelet may have written the pod's limits anew before it called.
            await hostgroup.hold(self._pod.cgroup, shape.memory_mib)
            got = await self._clone.resize(shape)
            if got.memory_mib < shape.memory_mib:
                log.warning("%s: its VM has %d MiB, not %d", self._who, got.memory_mib, shape.memory_mib)
