"""Another sandbox for a pod that has lost its own: its VM has died, or the machine was restarted.

The pod stays the same one, with its id, name, published ports and containers. Its addresses may be others,
and what ran in it does not run. Until all of it is there the journal has the pod as one that has ended: a
daemon that is killed meanwhile is followed by one that removes the half-made sandbox, and begins anew.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from msgspec import structs

from orlop import tracing
from orlop.errors import FailedPrecondition, OrlopError
from orlop.host.tasks import roll_back
from orlop.pods.containers import Containers
from orlop.pods.names import of_pod
from orlop.pods.node import Node, in_words, reason_of
from orlop.pods.ports import NamedVolumes
from orlop.pods.records import ContainerPhase, EventKind, PodPhase, PodRecord
from orlop.pods.sandboxes import EXIT_GRACE, Pods
from orlop.sandbox.base import Sandbox, SandboxDriver

log = logging.getLogger(__name__)


def lost(pod: PodRecord) -> bool:
    """Whether a pod has ended though nobody has asked for that."""
    return pod.phase is PodPhase.NOTREADY and not pod.stop_requested


class Renewal:
    """Makes the sandboxes."""

    def __init__(self, node: Node, pods: Pods, containers: Containers, volumes: NamedVolumes) -> None:
        self._node = node
        self._pods = pods
        self._containers = containers
        self._volumes = volumes

    async def renew(self, pod_id: str, wanted: Callable[[], bool]) -> None:
        """See that a pod has a sandbox; one that is not ``wanted`` any more when it is made goes at once.

        Raises NotFound, FailedPrecondition for a pod that was stopped, and what drivers and observers raise.
        """
        node = self._node
        if node.pod(pod_id).ready:
            return
        if (watcher := node.watchers.get(pod_id)) is not None:
            # All are to hear of the end first. It has the pod's lock for a moment of that.
            await asyncio.wait((watcher,), timeout=EXIT_GRACE)
        async with node.ledger.locked(pod_id):
            record = node.pod(pod_id)
            if record.ready or not wanted():
                return
            if not lost(record):
                raise FailedPrecondition(f"pod {of_pod(record)} ({pod_id[:12]}) was stopped")
            await self._renew(record, wanted)

    async def _renew(self, record: PodRecord, wanted: Callable[[], bool]) -> None:
        node, pod_id = self._node, record.id
        what = f"pod {of_pod(record)} ({pod_id[:12]})"
        driver = node.handlers.driver(record.handler)
        await node.end_watch(pod_id)
        for member in node.ledger.members(pod_id):
            await self._containers.conclude(member.id, 0, record.reason)
        node.sandboxes.pop(pod_id, None)
        await driver.discard(pod_id)
        told = False
        try:
            with tracing.span("sandbox.renew", pod=pod_id), in_words(f"{what} cannot be made again"):
                sandbox = await driver.run(record.spec)
            node.sandboxes[pod_id] = sandbox
            for member in node.ledger.members(pod_id):
                await self._make(member.id, sandbox)
            if not wanted():
                await self._undo(pod_id, driver)
                return
            # Field by field: it may have been given another name meanwhile.
            changes = {"addresses": tuple(sandbox.addresses), "netns": sandbox.netns, "reason": ""}
            told = True
            await node.observer.run_pod(structs.replace(node.pod(pod_id), phase=PodPhase.READY, **changes))
            ready = await node.ledger.change_pod(pod_id, phase=PodPhase.READY, **changes)
        except BaseException:
            await roll_back(f"the new sandbox of {what}", self._undo(pod_id, driver))
            if told:
                await node.tell(node.observer.pod_stopped(record), None)
            raise
        self._pods.watch(pod_id, sandbox)
        node.events.publish(EventKind.STARTED, pod_id, pod_id)
        await node.tell(node.observer.pod_ready(ready), None)
        log.info("%s has another sandbox, for it had ended: %s", what, record.reason)

    async def _make(self, container_id: str, sandbox: Sandbox) -> None:
        """Make a container that was made in the sandbox before and not started; why not, its start tells."""
        ledger = self._node.ledger
        async with ledger.locked(container_id):
            record = ledger.find_container(container_id)
            if record is None or record.phase is not ContainerPhase.CREATED:
                return
            try:
                async with self._volumes.again([mount.host_path for mount in record.spec.mounts]):
                    made = await self._containers.make(record, sandbox)
            except OrlopError as error:
                made = structs.replace(record, cannot_start=reason_of(error))
            await ledger.change_container(container_id, cannot_start=made.cannot_start, user=made.user)

    async def _undo(self, pod_id: str, driver: SandboxDriver) -> None:
        self._node.sandboxes.pop(pod_id, None)
        await driver.discard(pod_id)
