"""After a start: make what is recorded and what runs agree again, and keep trying to remove remains.

A daemon may have been killed between any two steps. For each record it left:

* a pod that was being started is removed, and so is a container that was being created;
* a pod that ran is found again, or is NOTREADY from now on and its traces are removed;
* a stop, a start or a removal that was asked for is carried on.

What a driver knows of but no record names (the journal was lost) is removed as well.

Nobody is kept waiting by a pod that does not answer: the daemon serves meanwhile, pods are found again
side by side, and each has one deadline for all of it. Until a pod's state is known again, lists
show what was recorded, and a call on that pod waits (:meth:`Node.known`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable

from orlop.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    OrlopError,
    ResourceExhausted,
    Unavailable,
)
from orlop.host.tasks import failures_of
from orlop.pods.containers import Containers
from orlop.pods.node import Node, now, reason_of
from orlop.pods.records import (
    REASON_START_FAILED,
    ContainerPhase,
    ContainerRecord,
    EventKind,
    PodPhase,
    PodRecord,
)
from orlop.pods.sandboxes import Pods
from orlop.sandbox.base import Sandbox

log = logging.getLogger(__name__)

PARALLEL = 64
"""Pods that are looked for at the same time."""

DEADLINE = 30.0
"""Seconds in which a pod that ran must be found again as a whole; one that does not answer has failed."""

AGAIN = 1.0
"""Seconds between two looks for a pod that could not be looked for."""

_PASSING = (Unavailable, DeadlineExceeded, ResourceExhausted, OSError)

PATIENCE = 1.0
"""Seconds that the daemon's start waits, so that the first lists tell what is, not what was."""

RETRY_INTERVAL = 30.0
"""Seconds between tries to remove what could not be removed."""


class Recovery:
    """Works once at the start; its :meth:`janitor` for as long as the daemon lives."""

    def __init__(self, node: Node, pods: Pods, containers: Containers) -> None:
        self._node = node
        self._pods = pods
        self._containers = containers
        self._work: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Start to bring every record up to date; returns soon, whatever the pods do."""
        ledger = self._node.ledger
        known = {record.id for record in ledger.all_pods()}
        for member in ledger.all_containers():
            if member.pod_id not in known:
                await ledger.drop_container(member.id)
        await self._node.images.reconcile({member.id for member in ledger.all_containers()})
        for pod_id in known:
            self._node.recovering[pod_id] = asyncio.Event()
        self._work = self._node.tasks.spawn(self._run(), "recovery")
        await asyncio.wait((self._work,), timeout=PATIENCE)

    async def finished(self) -> None:
        """Wait until all that an earlier daemon left is found or removed."""
        if self._work is not None:
            await asyncio.wait((self._work,))

    async def _run(self) -> None:
        """A pod that fails to recover harms no other."""
        limit = asyncio.Semaphore(PARALLEL)

        async def recover(record: PodRecord) -> None:
            try:
                async with limit:
                    await self._pod(record)
            finally:
                self._decided(record.id)

        records = self._node.ledger.all_pods()
        for error in await failures_of(self._discard_unknown(), *(recover(record) for record in records)):
            log.error("a pod could not be recovered: %s", reason_of(error), exc_info=error)

    def _decided(self, pod_id: str) -> None:
        """The pod's state is known: let the calls on it go on. Idempotent."""
        if (decided := self._node.recovering.pop(pod_id, None)) is not None:
            decided.set()

    async def _discard_unknown(self) -> None:
        for driver in self._node.handlers.drivers:
            for pod_id in await driver.traces():
                # A pod is recorded before there is any trace of it, also one that is being started now.
                if self._node.ledger.find_pod(pod_id) is None:
                    log.warning("%s: pod %s is in no record; removing it", driver.name, pod_id[:12])
                    try:
                        await driver.discard(pod_id)
                    except Exception as error:
                        log.error("pod %s cannot be removed: %s", pod_id[:12], reason_of(error))

    async def _pod(self, record: PodRecord) -> None:
        if record.phase in (PodPhase.STARTING, PodPhase.REMOVING):
            log.info("pod %s was %s when the daemon ended; removing it", record.id[:12], record.phase)
            self._decided(record.id)
            async with self._node.ledger.locked(record.id):
                await self._node.drop_pod(record.id)
        elif record.phase is PodPhase.NOTREADY:
            await self._gone(record, record.reason)
        else:
            await self._ready(record)

    async def _ready(self, record: PodRecord) -> None:
        passing: list[Exception] = []
        try:
            async with asyncio.timeout(DEADLINE):
                await self._found(record, passing)
        except (OrlopError, TimeoutError) as error:
            why = reason_of(error)
            if isinstance(error, TimeoutError):
                why = f"it did not answer within {DEADLINE:g} s after a restart of the daemon"
                why += f": {reason_of(passing[-1])}" if passing else ""
            log.warning("pod %s/%s does not run any more: %s", record.spec.namespace, record.spec.name, why)
            reason = "" if record.stop_requested else why
            await self._node.ledger.note_pod(record.id, phase=PodPhase.NOTREADY, reason=reason)
            await self._gone(record, reason)
            self._node.events.publish(EventKind.STOPPED, record.id, record.id)
            return
        self._decided(record.id)
        if record.stop_requested:
            log.info("pod %s was being stopped when the daemon ended; going on", record.id[:12])
            await self._pods.stop(record.id)

    async def _found(self, record: PodRecord, passing: list[Exception]) -> None:
        """Find a pod that runs, and go on with what was begun in it; ``passing`` gets what may pass."""
        members = self._node.ledger.members(record.id)
        driver = self._node.handlers.driver(record.handler)
        while True:
            try:
                sandbox = await driver.recover(record.spec, tuple(member.spec for member in members))
                break
            except _PASSING as error:
                # Short of descriptors or memory for a moment, say: no reason to end a pod that runs.
                log.info("pod %s is looked for again: %s", record.id[:12], reason_of(error))
                passing.append(error)
                await asyncio.sleep(AGAIN)
        self._node.sandboxes[record.id] = sandbox
        for member in members:
            try:
                await self._member(member, sandbox)
            except OrlopError as error:
                log.error("container %s (%s): %s", member.name, member.id[:12], error)
        self._pods.watch(record.id, sandbox)

    async def _gone(self, record: PodRecord, reason: str) -> None:
        """Settle the containers of a pod that does not run, and release what it held."""
        self._node.sandboxes.pop(record.id, None)
        for member in self._node.ledger.members(record.id):
            if member.phase in (ContainerPhase.CREATING, ContainerPhase.REMOVING):
                await self._node.forget(member.id)
            else:
                await self._containers.conclude(member.id, 0, reason or "its pod ended")
        self._decided(record.id)
        try:
            await self._node.handlers.driver(record.handler).discard(record.id)
        except OrlopError as error:
            log.warning("pod %s: its remains cannot be removed yet: %s", record.id[:12], error)

    async def _member(self, member: ContainerRecord, sandbox: Sandbox) -> None:
        if member.phase in (ContainerPhase.CREATING, ContainerPhase.REMOVING):
            log.info("container %s was %s when the daemon ended", member.id[:12], member.phase)
            await sandbox.delete(member.id)
            await self._node.forget(member.id)
        elif member.phase is ContainerPhase.RUNNING:
            self._containers.watch(member.id, sandbox)
            await self._containers.pause_again(member, sandbox)
        elif member.phase is ContainerPhase.CREATED and member.start_requested:
            await self._start(member, sandbox)
        elif member.reason == REASON_START_FAILED:
            await self._containers.end_failed(member.id, sandbox)

    async def _start(self, member: ContainerRecord, sandbox: Sandbox) -> None:
        """Carry on a start that may or may not have reached the sandbox."""
        try:
            started_at = await self._containers.begin(member, sandbox)
        except FailedPrecondition:
            started_at = now()
        except OrlopError as error:
            await self._containers.end_failed(member.id, sandbox)
            await self._containers.start_failed(member.id, error)
            return
        await self._containers.started(member.id, started_at, sandbox)

    async def janitor(self, interval: float = RETRY_INTERVAL) -> None:
        """Try again, for ever, to write and to remove what could not be."""
        while True:
            await asyncio.sleep(interval)
            await self.sweep()

    async def sweep(self) -> None:
        """One round of :meth:`janitor`."""
        ledger = self._node.ledger
        await self._quietly(ledger.write_again(), "what could not be written")
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
            log.warning("%s has to wait: %s", what, reason_of(error))
