"""Containers of our own clients that run again when they have ended, and when their pod's VM has.

Who makes a container wishes for it in an annotation, ``restart.orlop.io/policy``, in JSON:
``{"after_success": true, "after_failure": true, "most": 3}``. It is heeded in pods of our own clients alone:
a kubelet restarts its containers itself. The container stays the same one, with its id, name, log and
volumes; what it wrote outside of volumes is gone. A pod that has lost its sandbox gets another one for it
(:mod:`.renewal`); that is a failure of the container. One that somebody has stopped stays as it is.

Each time there is a longer pause first, unless the container has run for a while. Wish, count and the will to
end it are in the journal: a daemon that was killed at any step is followed by one that goes on.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Mapping

import msgspec

from orlop.errors import InvalidArgument
from orlop.pods import disposal
from orlop.pods.containers import Containers
from orlop.pods.names import check_own
from orlop.pods.node import Node
from orlop.pods.ports import NamedVolumes
from orlop.pods.records import ContainerPhase, ContainerRecord, HealthState, PodRecord
from orlop.pods.renewal import Renewal, lost
from orlop.value import Value

log = logging.getLogger(__name__)

ANNOTATION = "restart.orlop.io/policy"

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 60.0
"""Seconds before a container runs again: the first time, and at most."""

SETTLED = 10.0
"""Seconds after which a container that runs is well: its pauses begin from the first one."""

NANOSECONDS = 1_000_000_000


class RestartWish(Value, frozen=True, forbid_unknown_fields=True):
    """When a container that has ended runs again; ``most`` times, if that is not None."""

    after_success: bool = False
    after_failure: bool = False
    most: int | None = None


def check(annotations: Mapping[str, str], pod: PodRecord) -> None:
    """Raises InvalidArgument for a wish that cannot be understood, or is not for that pod."""
    if ANNOTATION not in annotations:
        return
    _wish(annotations)
    if disposal.ANNOTATION in annotations:
        raise InvalidArgument(f"the annotations {ANNOTATION} and {disposal.ANNOTATION} exclude each other")
    check_own(ANNOTATION, pod, "restarts")


def _wish(annotations: Mapping[str, str]) -> RestartWish:
    try:
        wish = msgspec.json.decode(annotations[ANNOTATION], type=RestartWish)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidArgument(f"the annotation {ANNOTATION} cannot be understood: {error}") from error
    if wish.most is not None and wish.most < 0:
        raise InvalidArgument(f"the annotation {ANNOTATION}: a container cannot run again {wish.most} times")
    return wish


class Restarts:
    """The rule that runs again what was to run again when it has ended."""

    work = "the restart"
    undone = "does not run again yet"

    def __init__(self, node: Node, containers: Containers, renewal: Renewal, volumes: NamedVolumes) -> None:
        self._node = node
        self._containers = containers
        self._renewal = renewal
        self._volumes = volumes
        self._pauses: dict[str, float] = {}

    def concerns(self, record: ContainerRecord) -> bool:
        """Whether it is to run again now."""
        # What never ran is whoever's that started it, and knows why it did not.
        if ANNOTATION not in record.annotations or not record.started_at or record.stay_ended:
            return False
        pod = self._node.ledger.find_pod(record.pod_id)
        if pod is None or pod.stop_requested or not (pod.ready or lost(pod)):
            return False
        wish = _wish(record.annotations)
        wanted = wish.after_failure if record.exit_code else wish.after_success
        return wanted and (wish.most is None or record.restarts < wish.most)

    async def carry_out(self, record: ContainerRecord) -> None:
        """Run it again after a pause, if nobody ends it for good meanwhile; in another sandbox if need be."""
        await asyncio.sleep(self._pause(record))
        await self._node.known_of(record.id)
        await self._renewal.renew(record.pod_id, lambda: self._wanted(record.id))
        async with (
            self._volumes.again([mount.host_path for mount in record.spec.mounts]),
            self._node.ledger.locked(record.id),
        ):
            record = self._node.ledger.container(record.id)
            if record.phase is ContainerPhase.EXITED and self.concerns(record):
                await self._replace(record)

    def _wanted(self, container_id: str) -> bool:
        """Whether it is to run again still."""
        record = self._node.ledger.find_container(container_id)
        return record is not None and record.phase is ContainerPhase.EXITED and self.concerns(record)

    async def leave(self, ref: str) -> None:
        """Let a container end for good: somebody is about to end it. There need not be one."""
        record = self._node.ledger.find_container(ref)
        if record is None or ANNOTATION not in record.annotations:
            return
        # One that is being run again at this moment is, and can be ended then.
        async with self._node.ledger.locked(record.id):
            if self._node.ledger.find_container(record.id) is not None:
                await self._node.ledger.note_container(record.id, stay_ended=True)

    async def leave_killed(self, ref: str, number: int) -> None:
        """The same for a signal that is meant to end it; another is the container's own affair."""
        record = self._node.ledger.find_container(ref)
        if record is not None and number in (signal.SIGKILL, record.spec.stop_signal):
            await self.leave(record.id)

    def _pause(self, record: ContainerRecord) -> float:
        ran = (record.finished_at - record.started_at) / NANOSECONDS
        pause = FIRST_PAUSE if ran >= SETTLED else self._pauses.get(record.id, FIRST_PAUSE)
        self._pauses = {
            one: kept for one, kept in self._pauses.items() if self._node.ledger.find_container(one)
        }
        self._pauses[record.id] = min(2 * pause, LONGEST_PAUSE)
        return pause

    async def _replace(self, record: ContainerRecord) -> None:
        """Make and start the container anew, for a caller that has its lock."""
        ledger = self._node.ledger
        sandbox, pod = self._node.sandbox(record.pod_id), self._node.pod(record.pod_id)
        await sandbox.delete(record.id)
        # Counted before it is made: one that fails halfway has had its turn.
        again = await ledger.change_container(record.id, restarts=record.restarts + 1, cannot_start="")
        made = await self._containers.make(again, sandbox)
        await self._node.observer.start(pod, made)
        # Field by field: it may have been given another name meanwhile.
        await ledger.change_container(
            record.id,
            phase=ContainerPhase.CREATED,
            start_requested=True,
            cannot_start=made.cannot_start,
            user=made.user,
            finished_at=0,
            exit_code=0,
            reason="",
            message="",
            health=None if record.health_check is None else HealthState(),
        )
        await self._containers.start_made(record.id, sandbox)
        log.info("container %s has ended with %d and runs again", record.id[:12], record.exit_code)
