"""What pods and containers use, asked of their sandboxes.

The rate of processor use is counted here, between two questions, where a sandbox does not know it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

import msgspec

from orlop.errors import OrlopError
from orlop.pods.node import Node
from orlop.pods.records import ContainerFilter, ContainerRecord, ContainerUse, PodFilter, PodRecord, PodUse
from orlop.sandbox.spec import ContainerStats, CpuStats, PodStats

log = logging.getLogger(__name__)

SECOND = 1_000_000_000
SHORTEST = SECOND // 10
"""Two questions closer together than this give no new rate."""


class Usage:
    """Statistics of pods and containers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._earlier: dict[str, CpuStats] = {}

    async def container(self, ref: str) -> ContainerUse:
        """Use of one container; all zero for one that does not run."""
        record = self._node.container(ref)
        if not record.running:
            return ContainerUse(record=record, stats=ContainerStats(container_id=record.id))
        stats = await self._node.sandbox(record.pod_id).container_stats(record.id)
        return ContainerUse(record=record, stats=self._rated(stats))

    async def containers(self, wanted: ContainerFilter) -> list[ContainerUse]:
        """Use of the running containers that match; one question per pod."""
        records = [record for record in self._node.ledger.containers(wanted) if record.running]
        pods = await asyncio.gather(*(self._stats(pod_id) for pod_id in {item.pod_id for item in records}))
        stats = {item.container_id: item for pod in pods if pod is not None for item in pod.containers}
        self._forget()
        return [
            ContainerUse(record=record, stats=self._rated(stats[record.id]))
            for record in records
            if record.id in stats
        ]

    async def pod(self, ref: str) -> PodUse:
        """Use of one pod. Raises FailedPrecondition when it does not run."""
        record = self._node.pod(ref)
        return self._pod_use(record, await self._node.sandbox(record.id).stats())

    async def pods(self, wanted: PodFilter) -> list[PodUse]:
        """Use of the ready pods that match."""
        records = [record for record in self._node.ledger.pods(wanted) if record.ready]
        found = await asyncio.gather(*(self._stats(record.id) for record in records))
        self._forget()
        return [
            self._pod_use(record, stats)
            for record, stats in zip(records, found, strict=True)
            if stats is not None
        ]

    async def _stats(self, pod_id: str) -> PodStats | None:
        """One pod's figures, or None for a pod that cannot give any: it must not spoil the list."""
        try:
            return await self._node.sandbox(pod_id).stats()
        except OrlopError as error:
            log.info("pod %s gives no statistics: %s", pod_id[:12], error)
            return None

    def _pod_use(self, record: PodRecord, stats: PodStats) -> PodUse:
        members: list[ContainerRecord] = []
        shown: list[ContainerStats] = []
        for item in stats.containers:
            member = self._node.ledger.find_container(item.container_id)
            if member is not None and member.running:
                members.append(member)
                shown.append(self._rated(item))
        rated = msgspec.structs.replace(stats, cpu=self._rate(record.id, stats.cpu), containers=tuple(shown))
        return PodUse(record=record, stats=rated, containers=tuple(members))

    def _rated(self, stats: ContainerStats) -> ContainerStats:
        return msgspec.structs.replace(stats, cpu=self._rate(stats.container_id, stats.cpu))

    def _rate(self, key: str, cpu: CpuStats) -> CpuStats:
        if cpu.usage_nano_cores or not cpu.timestamp:
            return cpu
        earlier = self._earlier.get(key)
        if earlier is None or cpu.usage_ns < earlier.usage_ns:
            self._earlier[key] = cpu
            return cpu
        elapsed = cpu.timestamp - earlier.timestamp
        if elapsed < SHORTEST:
            return msgspec.structs.replace(cpu, usage_nano_cores=earlier.usage_nano_cores)
        rate = (cpu.usage_ns - earlier.usage_ns) * SECOND // elapsed
        rated = msgspec.structs.replace(cpu, usage_nano_cores=rate)
        self._earlier[key] = rated
        return rated

    def _forget(self) -> None:
        """Drop the samples of what is gone."""
        ledger = self._node.ledger
        if len(self._earlier) > 64 + 2 * ledger.count:
            known: Iterable[str] = ledger.ids()
            self._earlier = {key: self._earlier[key] for key in set(known) & self._earlier.keys()}
