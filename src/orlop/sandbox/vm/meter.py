"""What a pod in a VM uses: the host's word for the VM, the guest's for what is in it.

The guest is not believed where the host can see for itself. The pod's memory and processor time are
those of the VM's process and control group, and a writable layer takes what its file takes. What only
the guest can know is kept within what the VM has and stamped with the host's clock: a lie changes how
the pod's own use is divided, and nothing else. A guest that does not answer costs a moment; its last
words count until it does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

from orlop.errors import Unavailable
from orlop.host import cgroupstats, threads
from orlop.host.cgroups import Cgroup
from orlop.host.tasks import Tasks, together
from orlop.hypervisor.base import MemoryUse
from orlop.linux.usage import DeviceUse, LayerFill, Pressure, Usage
from orlop.net import tap
from orlop.net.model import InterfaceCounters
from orlop.sandbox.cpuledger import CpuLedger
from orlop.sandbox.figures import ContainerStats, Detail, HostMemory, LayerUse, PodStats
from orlop.sandbox.vm.clone import Clone
from orlop.wire.messages import Stats, StatsReply
from orlop.wire.statistics import ContainerUsage

PATIENCE = 0.6
"""Seconds that a list of all pods waits for one guest."""

_TIMEOUT = 30.0
_BLOCK = 512
_SMALLEST_FILE = 1 << 10
"""No ext4 has more inodes than one for so many bytes."""

_MOST_TASKS = 1 << 22
_MOST_FILES = 1 << 31
_MOST_MICROSECONDS = 1 << 53

_MEMORY = ("memory", "working_set", "rss", "swap", "cache", "mapped_file", "kernel_memory", "memory_peak")
_COUNTERS = (
    "cpu_periods", "cpu_throttled_periods", "cpu_throttled_ns", "memory_failures", "page_faults",
    "major_page_faults", "oom_kills", "memory_peak",
)  # fmt: skip


class Host(NamedTuple):
    """What the host sees: the VM's processor time, its group's counters, and each layer's file
    (bytes taken, size)."""

    cpu_ns: int
    group: Usage
    layers: dict[str, tuple[int, int]]


class _Answer(NamedTuple):
    at: int
    reply: StatsReply


class VmMeter:
    """Measures one pod. ``cgroup`` is the VM's control group or "", ``place`` where all layers are."""

    def __init__(self, clone: Clone, *, cgroup: str, place: str, ledger: Path) -> None:
        self._clone = clone
        self._cgroup = Cgroup(cgroup) if cgroup else None
        self._place = place
        self._ledger = CpuLedger(ledger)
        self._earlier: dict[str, Usage] = {}
        self._whole = Usage(timestamp=0)
        self._asking: dict[bool, asyncio.Task[None]] = {}
        self._answers: dict[bool, _Answer] = {}
        self._tasks = Tasks()

    async def close(self) -> None:
        """Ask nothing any more."""
        await self._tasks.close()

    async def measure(self, layers: Mapping[str, str], detail: Detail) -> PodStats:
        """The figures of the pod whose containers write to the files ``layers``.

        Raises Unavailable when the VM has ended, or is about to.
        """
        # A kubelet asks for all pods at any time, also for one whose machine is just being removed.
        if self._tasks.closed:
            raise Unavailable("its VM is being removed")
        answer, interfaces, (memory, host) = await together(
            self._ask(full=detail >= Detail.METRICS), self._interfaces(detail), self._look(layers)
        )
        limit = self._clone.machine.shape.memory_mib << 20
        usage = pod_usage(host, memory, limit, answer.reply.pod if answer is not None else None)
        usage = self._whole = never_less(usage, self._whole)
        containers = self._containers(answer, host, memory, layers) if answer is not None else ()
        return PodStats(
            usage=usage,
            available=max(0, limit - usage.working_set),
            interfaces=interfaces,
            containers=containers,
            memory=HostMemory(
                private=memory.private,
                shared=memory.shared,
                used=_guest_used(answer.reply, limit) if answer is not None else 0,
            ),
        )

    async def _look(self, layers: Mapping[str, str]) -> tuple[MemoryUse, Host]:
        pid = self._clone.machine.pid

        def look() -> Host:
            group = Usage(timestamp=0)
            if self._cgroup is not None:
                group = cgroupstats.usage(self._cgroup)
            found = {}
            for key, path in layers.items():
                if not path:  # what it writes is the host's own directory
                    continue
                try:
                    status = Path(path).stat()
                except OSError:
                    continue
                found[key] = status.st_blocks * _BLOCK, status.st_size
            return Host(cgroupstats.process_cpu(pid), group, found)

        return await self._clone.machine.memory(), await threads.call(look)

    async def _interfaces(self, detail: Detail) -> tuple[InterfaceCounters, ...]:
        return await tap.interface_stats(self._clone.netns) if detail >= Detail.POD else ()

    async def _ask(self, *, full: bool) -> _Answer | None:
        """The guest's word, or its last one if it is late, or None. It is asked one thing at a time."""
        task = self._asking.get(full)
        if task is None:
            task = self._tasks.spawn(self._question(full=full), "figures", awaited=True)
            self._asking[full] = task
            task.add_done_callback(lambda _: self._asking.pop(full, None))
        await asyncio.wait((task,), timeout=PATIENCE)
        if full and True in self._answers:
            return self._answers[True]
        return max(self._answers.values(), default=None, key=lambda answer: answer.at)

    async def _question(self, *, full: bool) -> None:
        reply = await self._clone.agent.call(Stats(full=full), _TIMEOUT)
        self._answers[full] = _Answer(time.time_ns(), reply)

    def _containers(
        self, answer: _Answer, host: Host, memory: MemoryUse, layers: Mapping[str, str]
    ) -> tuple[ContainerStats, ...]:
        members = {one.id: one for one in answer.reply.containers if one.id in layers}
        given = self._ledger.divide(
            {key: one.usage.cpu_ns for key, one in members.items()}, host.cpu_ns, layers
        )
        resident = memory.private + memory.shared
        found = []
        for key, one in members.items():
            usage = within(one.usage, resident, given[key], answer.at)
            usage = self._earlier[key] = never_less(usage, self._earlier.get(key, usage))
            found.append(
                ContainerStats(
                    container_id=key, usage=usage, layer=self._layer(one, host.layers.get(key), answer.at)
                )
            )
        self._earlier = {key: value for key, value in self._earlier.items() if key in layers}
        return tuple(found)

    def _layer(self, one: ContainerUsage, file: tuple[int, int] | None, at: int) -> LayerUse:
        taken, size = file or (0, 0)
        return layer_use(one.layer, taken=taken, size=size, at=at, place=self._place)


def pod_usage(host: Host, memory: MemoryUse, limit: int, guest: Usage | None) -> Usage:
    """The pod's figures: the VM's on the host, and from the guest only what the host cannot see.

    The group alone does not do: a VM that waited in the pool was charged elsewhere for what it had by
    then. So memory is counted by process, and the group adds what belongs to no process: the cache of
    the VM's disks, which can be reclaimed, and the kernel's own.
    """
    cache = max(0, host.group.cache - host.group.mapped_file)
    firm = memory.pss + host.group.kernel_memory
    seen = within(guest, limit, 0, 0) if guest is not None else Usage(timestamp=0)
    return replace(
        seen,
        timestamp=time.time_ns(),
        cpu_ns=host.cpu_ns,
        memory=firm + cache,
        working_set=firm,
        rss=memory.private,
        memory_limit=limit,
        memory_peak=firm + cache,
        cache=cache,
        kernel_memory=host.group.kernel_memory,
        processes=seen.processes or seen.pids,
    )


def within(usage: Usage, memory: int, cpu_ns: int, at: int) -> Usage:
    """A guest's figures, as far as they can be true in a VM with ``memory`` bytes that got ``cpu_ns``."""
    pids = min(usage.pids, _MOST_TASKS)
    spent = usage.cpu_user_ns + usage.cpu_system_ns
    user = cpu_ns * usage.cpu_user_ns // spent if spent else 0
    held = {name: min(getattr(usage, name), memory) for name in _MEMORY}
    descriptors = min(usage.descriptors, _MOST_FILES)
    return replace(
        usage,
        **held,
        timestamp=at,
        cpu_ns=cpu_ns,
        cpu_user_ns=user,
        cpu_system_ns=cpu_ns - user if spent else 0,
        pids=pids,
        processes=min(usage.processes, pids),
        descriptors=descriptors,
        sockets=min(usage.sockets, descriptors),
        cpu_pressure=_plausible(usage.cpu_pressure),
        memory_pressure=_plausible(usage.memory_pressure),
        io_pressure=_plausible(usage.io_pressure),
    )


def never_less(usage: Usage, earlier: Usage) -> Usage:
    """``usage`` with no counter below what was told before."""
    grown = {name: max(getattr(usage, name), getattr(earlier, name)) for name in _COUNTERS}
    known = {(one.major, one.minor): one for one in earlier.devices}
    devices = {
        (one.major, one.minor): _device(one, known.get((one.major, one.minor), one)) for one in usage.devices
    }
    return replace(usage, **grown, devices=tuple({**known, **devices}.values()))


def _device(one: DeviceUse, earlier: DeviceUse) -> DeviceUse:
    names = [field.name for field in fields(DeviceUse)]
    return DeviceUse(**{name: max(getattr(one, name), getattr(earlier, name)) for name in names})


def layer_use(layer: LayerFill, *, taken: int, size: int, at: int, place: str) -> LayerUse:
    """A writable layer whose file takes ``taken`` bytes of the host: that is the least, ``size`` the most.

    The guest may know of more, which it has not written out yet.
    """
    most = size // _SMALLEST_FILE
    total = min(layer.inodes_total, most)
    return LayerUse(
        timestamp=at,
        mountpoint=place,
        used=max(taken, min(layer.used, size)),
        inodes=min(layer.inodes, total),
        size=size,
        inodes_total=total,
        inodes_free=min(layer.inodes_free, total),
    )


def _plausible(pressure: Pressure | None) -> Pressure | None:
    if pressure is None:
        return None
    values = {
        field.name: min(
            max(getattr(pressure, field.name), 0), 100 if "avg" in field.name else _MOST_MICROSECONDS
        )
        for field in fields(Pressure)
    }
    return Pressure(**values)


def _guest_used(reply: StatsReply, limit: int) -> int:
    return min(max(0, reply.system_memory_total - reply.system_memory_available), limit)
