"""After a start: make what is recorded and what runs agree again, and keep trying to remove remains.

A daemon may have been killed between any two steps. For each record it left:

* a pod that was being started is removed, and so is a container that was being created;
* a pod that ran is found again, or is NOTREADY from now on and its traces are removed;
* a stop, a start or a removal that was asked for is carried on.

What a driver knows of but no record names (the journal was lost) is removed as well.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from orlop.errors import FailedPrecondition, NotFound, OrlopError
from orlop.host.tasks import failures_of
from orlop.pods.containers import Containers
from orlop.pods.node import Node, now, reason_of
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord
from orlop.pods.sandboxes import Pods
from orlop.sandbox.base import Sandbox

log = logging.getLogger(__name__)

PARALLEL = 8
"""Pods that are looked for at the same time."""

RETRY_INTERVAL = 30.0
"""Seconds between tries to remove what could not be removed."""


class Recovery:
    """Works once at the start; its :meth:`janitor` for as long as the daemon lives."""

    def __init__(self, node: Node, pods: Pods, containers: Containers) -> None:
        self._node = node
        self._pods = pods
        self._containers = containers

    async def run(self) -> None:
        """Bring every record up to date. A pod that fails to recover harms no other."""
        ledger = self._node.ledger
        await self._discard_unknown()
        known = {record.id for record in ledger.all_pods()}
        for member in ledger.all_containers():
            if member.pod_id not in known:
                await ledger.drop_container(member.id)
        limit = asyncio.Semaphore(PARALLEL)

        async def recover(record: PodRecord) -> None:
            async with limit:
                await self._pod(record)

        for error in await failures_of(*(recover(record) for record in ledger.all_pods())):
            log.error("a pod could not be recovered: %s", reason_of(error), exc_info=error)
        await self._node.images.reconcile({member.id for member in ledger.all_containers()})

    async def _discard_unknown(self) -> None:
        known = {record.id for record in self._node.ledger.all_pods()}
        for driver in self._node.handlers.drivers:
            for pod_id in await driver.traces():
                if pod_id not in known:
                    log.warning("%s: pod %s is in no record; removing it", driver.name, pod_id[:12])
                    try:
                        await driver.discard(pod_id)
                    except Exception as error:
                        log.error("pod %s cannot be removed: %s", pod_id[:12], reason_of(error))

    async def _pod(self, record: PodRecord) -> None:
        if record.phase in (PodPhase.STARTING, PodPhase.REMOVING):
            log.info("pod %s was %s when the daemon ended; removing it", record.id[:12], record.phase)
            await self._node.drop_pod(record.id)
        elif record.phase is PodPhase.NOTREADY:
            await self._gone(record, record.reason)
        else:
            await self._ready(record)

    async def _ready(self, record: PodRecord) -> None:
        members = self._node.ledger.members(record.id)
        try:
            driver = self._node.handlers.driver(record.handler)
            sandbox = await driver.recover(record.spec, tuple(member.spec for member in members))
        except OrlopError as error:
            reason = "" if record.stop_requested else reason_of(error)
            log.warning("pod %s/%s does not run any more: %s", record.spec.namespace, record.spec.name, error)
            await self._node.ledger.change_pod(record.id, phase=PodPhase.NOTREADY, reason=reason)
            await self._gone(record, reason)
            return
        self._node.sandboxes[record.id] = sandbox
        for member in members:
            try:
                await self._member(member, sandbox)
            except OrlopError as error:
                log.error("container %s (%s): %s", member.name, member.id[:12], error)
        self._pods.watch(record.id, sandbox)
        if record.stop_requested:
            log.info("pod %s was being stopped when the daemon ended; going on", record.id[:12])
            await self._pods.stop(record.id)

    async def _gone(self, record: PodRecord, reason: str) -> None:
        """Settle the containers of a pod that does not run, and release what it held."""
        for member in self._node.ledger.members(record.id):
            if member.phase in (ContainerPhase.CREATING, ContainerPhase.REMOVING):
                await self._node.ledger.drop_container(member.id)
            else:
                await self._containers.settle(member.id, 0, reason or "its pod ended")
        try:
            await self._node.handlers.driver(record.handler).discard(record.id)
        except OrlopError as error:
            log.warning("pod %s: its remains cannot be removed yet: %s", record.id[:12], error)

    async def _member(self, member: ContainerRecord, sandbox: Sandbox) -> None:
        if member.phase in (ContainerPhase.CREATING, ContainerPhase.REMOVING):
            log.info("container %s was %s when the daemon ended", member.id[:12], member.phase)
            await sandbox.delete(member.id)
            await self._node.ledger.drop_container(member.id)
        elif member.phase is ContainerPhase.RUNNING:
            self._containers.watch(member.id, sandbox)
        elif member.phase is ContainerPhase.CREATED and member.start_requested:
            await self._start(member, sandbox)

    async def _start(self, member: ContainerRecord, sandbox: Sandbox) -> None:
        """Carry on a start that may or may not have reached the sandbox."""
        try:
            started_at = await self._containers.begin(member, sandbox)
        except FailedPrecondition:
            started_at = now()
        except OrlopError as error:
            await self._containers.start_failed(member.id, error)
            return
        await self._containers.started(member.id, started_at, sandbox)

    async def janitor(self, interval: float = RETRY_INTERVAL) -> None:
        """Try again, for ever, to remove pods and containers whose removal failed."""
        while True:
            await asyncio.sleep(interval)
            await self.sweep()

    async def sweep(self) -> None:
        """One round of :meth:`janitor`."""
        ledger = self._node.ledger
        for record in ledger.all_pods():
            if record.phase is PodPhase.REMOVING:
                await self._quietly(self._pods.remove(record.id), f"pod {record.id[:12]}")
        for member in ledger.all_containers():
            if member.phase is ContainerPhase.REMOVING:
                await self._quietly(self._containers.remove(member.id), f"container {member.id[:12]}")

    async def _quietly(self, work: Awaitable[None], what: str) -> None:
        try:
            await work
        except NotFound:
            return
        except Exception as error:
            log.warning("%s still cannot be removed: %s", what, reason_of(error))
