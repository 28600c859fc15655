"""What pods and containers use, asked of their sandboxes.

A kubelet asks for all pods every few seconds. One that is late must not make it wait, and one that fails
must not cost it the others: after :data:`ANSWER_TIME` a list has what was known of the late ones, and each
keeps being asked once at a time. The rate of processor use is counted here, between two questions.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import NamedTuple

import msgspec

from orlop.errors import DeadlineExceeded, OrlopError, Unavailable
from orlop.host.tasks import together
from orlop.linux.usage import Usage
from orlop.pods.node import Node
from orlop.pods.records import ContainerFilter, ContainerRecord, ContainerUse, PodFilter, PodRecord, PodUse
from orlop.sandbox.figures import ContainerStats, Detail, PodStats

log = logging.getLogger(__name__)

ANSWER_TIME = 1.0
"""Seconds that a sandbox may take to answer."""

SECOND = 1_000_000_000
SHORTEST = SECOND
"""Two questions closer together than this give no new rate. A kubelet asks twice for one answer of its own:
what wakes once a second would have used nothing in between."""


class _Rate(NamedTuple):
    timestamp: int
    cpu_ns: int
    nano_cores: int | None


class Meter:
    """Statistics of pods and containers."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._rates: dict[str, _Rate] = {}
        self._latest: dict[str, dict[Detail, PodStats]] = {}
        self._asking: dict[tuple[str, Detail], asyncio.Task[PodStats]] = {}

    async def container(self, ref: str) -> ContainerUse:
        """Use of one container; all zero for one that does not run.

        Raises DeadlineExceeded or Unavailable when its sandbox does not tell and never did.
        """
        record = self._node.container(ref)
        # Twice: somebody may have asked the pod just before the container began.
        for _ in range(2):
            if record.running:
                stats = await self._stats(record.pod_id, Detail.CONTAINERS)
                for item in stats.containers:
                    if item.container_id == record.id:
                        return ContainerUse(record=record, stats=self._rated(item))
                record = self._node.container(record.id)
        if record.running:
            raise Unavailable(f"container {record.id[:12]} runs, but its pod cannot tell now what it uses")
        return ContainerUse(record=record, stats=ContainerStats(container_id=record.id))

    async def containers(self, wanted: ContainerFilter) -> list[ContainerUse]:
        """Use of the running containers that match; one question per pod."""
        records = [record for record in self._node.ledger.containers(wanted) if record.running]
        pods = await self._all({item.pod_id for item in records}, Detail.CONTAINERS)
        stats = {item.container_id: item for pod in pods.values() for item in pod.containers}
        self._forget()
        return [
            ContainerUse(record=record, stats=self._rated(stats[record.id]))
            for record in records
            if record.id in stats
        ]

    async def pod(self, ref: str) -> PodUse:
        """Use of one pod. Raises FailedPrecondition when it does not run, DeadlineExceeded as above."""
        record = self._node.pod(ref)
        return self._pod_use(record, await self._stats(record.id, Detail.POD))

    async def pods(self, wanted: PodFilter, detail: Detail) -> list[PodUse]:
        """Use of the ready pods that match."""
        records = [record for record in self._node.ledger.pods(wanted) if record.ready]
        found = await self._all([record.id for record in records], detail)
        self._forget()
        return [self._pod_use(record, found[record.id]) for record in records if record.id in found]

    async def _all(self, pod_ids: Iterable[str], detail: Detail) -> dict[str, PodStats]:
        """Figures of all that have any."""
        found: dict[str, PodStats] = {}

        async def one(pod_id: str) -> None:
            try:
                found[pod_id] = await self._stats(pod_id, detail)
            except OrlopError as error:
                log.info("pod %s gives no statistics: %s", pod_id[:12], error)
            except Exception:
                log.exception("pod %s gives no statistics", pod_id[:12])

        await together(*(one(pod_id) for pod_id in pod_ids))
        return found

    async def _stats(self, pod_id: str, detail: Detail) -> PodStats:
        """One pod's figures; if it is late, the last that were known of it, with their time."""
        key = pod_id, detail
        task = self._asking.get(key)
        if task is None:
            sandbox = self._node.sandbox(pod_id)
            asked = sandbox.stats(detail)
            task = self._node.tasks.spawn(asked, f"figures of pod {pod_id[:12]}", awaited=True)
            self._asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done))
        await asyncio.wait((task,), timeout=ANSWER_TIME)
        if task.done() and not task.cancelled():
            return task.result()
        known = self._latest.get(pod_id, {})
        latest = next((known[one] for one in Detail if one >= detail and one in known), None)
        if latest is None:
            raise DeadlineExceeded(f"pod {pod_id[:12]} did not tell what it uses within {ANSWER_TIME:g} s")
        return latest

    def _answered(self, key: tuple[str, Detail], task: asyncio.Task[PodStats]) -> None:
        self._asking.pop(key, None)
        if not task.cancelled() and task.exception() is None:
            self._latest.setdefault(key[0], {})[key[1]] = task.result()

    def _pod_use(self, record: PodRecord, stats: PodStats) -> PodUse:
        members: list[ContainerRecord] = []
        shown: list[ContainerStats] = []
        for item in stats.containers:
            member = self._node.ledger.find_container(item.container_id)
            if member is not None and member.running:
                members.append(member)
                shown.append(self._rated(item))
        rate = self._rate(record.id, stats.usage)
        rated = msgspec.structs.replace(stats, nano_cores=rate, containers=tuple(shown))
        return PodUse(record=record, stats=rated, containers=tuple(members))

    def _rated(self, stats: ContainerStats) -> ContainerStats:
        return msgspec.structs.replace(stats, nano_cores=self._rate(stats.container_id, stats.usage))

    def _rate(self, key: str, usage: Usage) -> int | None:
        earlier = self._rates.get(key)
        if earlier is None or usage.cpu_ns < earlier.cpu_ns:
            self._rates[key] = _Rate(usage.timestamp, usage.cpu_ns, None)
            return None
        elapsed = usage.timestamp - earlier.timestamp
        if elapsed < SHORTEST:
            return earlier.nano_cores
        rate = (usage.cpu_ns - earlier.cpu_ns) * SECOND // elapsed
        self._rates[key] = _Rate(usage.timestamp, usage.cpu_ns, rate)
        return rate

    def _forget(self) -> None:
        """Drop what is known of what is gone."""
        ledger = self._node.ledger
        if len(self._rates) + len(self._latest) > 64 + 3 * ledger.count:
            known = set(ledger.ids())
            self._rates = {key: self._rates[key] for key in known & self._rates.keys()}
            self._latest = {key: self._latest[key] for key in known & self._latest.keys()}
