"""What a pod of this handler uses, from its control groups and the writable layers of its containers."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from orlop.errors import NotFound
from orlop.host import cgroupstats, threads
from orlop.host.cgroups import Cgroup
from orlop.host.tasks import Tasks, together
from orlop.linux.usage import Usage
from orlop.net import tap
from orlop.net.model import InterfaceCounters
from orlop.sandbox.cpuledger import CpuLedger
from orlop.sandbox.figures import ContainerStats, Detail, HostMemory, LayerUse, PodStats
from orlop.storage import rootfs

_INTERVAL = 10.0
_SHARE = 10
"""A layer is counted again when ten times as long has passed as counting took, so that it costs little."""

_PATIENCE = 0.2
_UNBOUNDED = 1 << 63

_SUMMED = ("memory", "working_set", "rss", "page_faults", "major_page_faults", "processes")


class LayerMeter:
    """Counts a container's writable layer, in the background and not too often.

    ``place`` is the directory that all such layers are below.
    """

    def __init__(self, directory: Path, place: Path, tasks: Tasks) -> None:
        self._directory = directory
        self._taken = LayerUse(mountpoint=os.fspath(place))
        self._tasks = tasks
        self._counting: asyncio.Task[None] | None = None
        self._next = 0.0

    async def get(self) -> LayerUse:
        """The latest count; waits a moment for the first."""
        if self._counting is None and time.monotonic() >= self._next:
            self._counting = self._tasks.spawn(self._count(), f"count {self._directory}")
        if self._counting is not None and not self._taken.timestamp:
            await asyncio.wait((self._counting,), timeout=_PATIENCE)
        return self._taken

    async def _count(self) -> None:
        begun = time.monotonic()
        try:
            # Not `threads.call`: nobody undoes a count, and the end of a pod need not wait for one.
            used, inodes = await asyncio.to_thread(rootfs.usage, self._directory)
            space = await asyncio.to_thread(os.statvfs, self._taken.mountpoint)
        finally:
            took = time.monotonic() - begun
            self._next = time.monotonic() + max(_INTERVAL, _SHARE * took)
            self._counting = None
        self._taken = LayerUse(
            timestamp=time.time_ns(),
            mountpoint=self._taken.mountpoint,
            used=used,
            inodes=inodes,
            size=space.f_blocks * space.f_frsize,
            inodes_total=space.f_files,
            inodes_free=space.f_ffree,
        )


class PodMeter:
    """Measures a pod. ``group`` is a control group that it has to itself, or ""."""

    def __init__(self, group: str, place: Path, ledger: Path) -> None:
        self._group = Cgroup(group) if group else None
        self._place = place
        self._layers: dict[str, LayerMeter] = {}
        self._ledger = CpuLedger(ledger)
        self._tasks = Tasks()

    def add(self, container_id: str, directory: Path) -> None:
        """Count this container's layer as well."""
        self._layers[container_id] = LayerMeter(directory, self._place, self._tasks)

    def drop(self, container_id: str) -> None:
        """The container is gone."""
        self._layers.pop(container_id, None)

    async def close(self) -> None:
        """Count nothing any more."""
        self._layers.clear()
        await self._tasks.close()

    async def layers(self) -> tuple[LayerUse, ...]:
        """The writable layers of all containers, of those that have ended too."""
        return tuple(await together(*(layer.get() for layer in self._layers.values())))

    async def measure(self, groups: Mapping[str, Cgroup], netns: Path | None, detail: Detail) -> PodStats:
        """The figures of a pod whose running containers have these ``groups``; ``netns`` is None on the
        host's network.
        """

        full, with_pod = detail >= Detail.METRICS, detail >= Detail.POD

        def read() -> tuple[dict[str, Usage], Usage | None]:
            members = {
                key: cgroupstats.usage(group, full=full, members=with_pod) for key, group in groups.items()
            }
            # The pod's group after its members': it has never used less than they.
            own = self._group if with_pod else None
            return members, cgroupstats.usage(own) if own is not None else None

        members, whole = await threads.call(read)
        found = tuple(
            [
                ContainerStats(container_id=key, usage=usage, layer=await self._layers[key].get())
                for key, usage in members.items()
                if key in self._layers
            ]
        )
        if not with_pod:
            return PodStats(containers=found)
        interfaces = await _interfaces(netns) if netns is not None else ()
        usage = self._whole(members, whole)
        limit = _limit(members.values(), whole)
        return PodStats(
            usage=usage,
            available=max(0, limit - usage.working_set) if limit else None,
            interfaces=interfaces,
            containers=found,
            memory=HostMemory(private=usage.memory, used=usage.working_set),
        )

    def _whole(self, members: Mapping[str, Usage], whole: Usage | None) -> Usage:
        sums = {name: sum(getattr(one, name) for one in members.values()) for name in _SUMMED}
        if whole is not None:
            return replace(whole, processes=sums["processes"])
        # Containers come and go; what they have used stays used.
        self._ledger.divide({key: one.cpu_ns for key, one in members.items()}, _UNBOUNDED, self._layers)
        return Usage(timestamp=time.time_ns(), cpu_ns=self._ledger.total, **sums)


def _limit(members: Iterable[Usage], whole: Usage | None) -> int:
    """The pod's memory limit: its group's, or that of its containers if each has one; else 0."""
    if whole is not None and whole.memory_limit:
        return whole.memory_limit
    limits = [one.memory_limit for one in members]
    return sum(limits) if all(limits) else 0


async def _interfaces(netns: Path) -> tuple[InterfaceCounters, ...]:
    """Counters of the pod's interfaces; none when the namespace is gone."""
    try:
        return await tap.interface_stats(netns)
    except (NotFound, OSError):
        return ()
