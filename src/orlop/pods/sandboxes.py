"""The life of a pod: run, stop, remove.

    STARTING --run--> READY --stop, or the sandbox dies--> NOTREADY --remove--> REMOVING --> gone

Each arrow is in the journal before its step is taken. A run that fails or is cancelled goes
through REMOVING as well; what could not be removed then is tried again by :mod:`.recovery`.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
from pathlib import Path

import msgspec

from orlop import tracing
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from orlop.host import threads
from orlop.host.tasks import Undo, together, uncancelled
from orlop.pods import ledger as ledgers
from orlop.pods.containers import Containers, merged
from orlop.pods.names import Names
from orlop.pods.node import Node, in_words, now, reason_of
from orlop.pods.records import SHOWN_PODS, EventKind, PodPhase, PodRecord
from orlop.sandbox.base import Sandbox
from orlop.sandbox.spec import PodSpec, Resources

log = logging.getLogger(__name__)

EXIT_GRACE = 10.0
"""Seconds that the exits of a killed pod's containers may take to be known."""

DEAD_GRACE = 2.0
"""The same for a pod that died by itself, which can hardly tell any more."""


class Pods:
    """The verbs on pods."""

    def __init__(self, node: Node, containers: Containers, names: Names) -> None:
        self._node = node
        self._containers = containers
        self._names = names

    # Run

    async def run(self, spec: PodSpec) -> str:
        """Start a pod and return its id; a repeated call joins the first, or returns its result."""
        for what, value in (("name", spec.name), ("namespace", spec.namespace), ("uid", spec.uid)):
            if not value:
                raise InvalidArgument(f"pod {spec.namespace}/{spec.name}: its {what} is empty")
        key = ("run", *ledgers.pod_key(spec))
        clash = AlreadyExists(
            f"pod {spec.namespace}/{spec.name}, uid {spec.uid}, attempt {spec.attempt} exists and differs "
            "from the one asked for; remove it first, or ask for the next attempt"
        )
        return await self._node.made.run(key, spec, lambda: self._run(spec, clash), conflict=lambda: clash)

    async def _run(self, spec: PodSpec, clash: AlreadyExists) -> str:
        request = ledgers.digest(spec)
        if (known := self._same(spec)) is not None:
            await self._node.known(known.id)
        if (known := self._same(spec)) is not None:
            if known.phase is PodPhase.READY and known.request == request:
                return known.id
            if known.phase is PodPhase.READY:
                raise clash
            raise AlreadyExists(
                f"pod {spec.namespace}/{spec.name}, attempt {spec.attempt} exists but runs no more; "
                f"remove {known.id[:12]} first, or ask for the next attempt"
            )
        node = self._node
        choice = node.handlers.choose(spec)
        driver = node.handlers.driver(choice.handler)
        wanted = msgspec.structs.replace(spec, id=secrets.token_hex(32), handler=choice.handler)
        driver.check(wanted)
        what = f"pod {spec.namespace}/{spec.name}"
        log.info("%s is %s, handler %s: %s", what, wanted.id[:12], choice.handler, choice.reason)
        record = PodRecord(
            spec=wanted,
            phase=PodPhase.STARTING,
            created_at=now(),
            request=request,
            runtime_handler=spec.handler,
            handler_reason=choice.reason,
        )
        with tracing.span("pods.record", pod=wanted.id):
            self._names.check_pod(wanted)
            await node.ledger.put_pod(record)
        told, logs_are_ours = False, not Path(spec.log_directory or "/").is_dir()
        try:
            await _make_directory(spec.log_directory)
            failed = f"{what} cannot be made"
            with tracing.span("sandbox.run", pod=wanted.id, handler=choice.handler), in_words(failed):
                sandbox = await driver.run(wanted)
            # The state of an earlier record, so that it is shown only when all of it is known.
            node.sandboxes[wanted.id] = sandbox
            ready = msgspec.structs.replace(
                record, phase=PodPhase.READY, addresses=tuple(sandbox.addresses), netns=sandbox.netns
            )
            told = True
            await node.observer.run_pod(ready)
            await node.ledger.put_pod(ready)
        except BaseException:
            await uncancelled(self._undo(wanted, logs_are_ours))
            if told:
                await node.tell(node.observer.pod_removed(record), None)
            raise
        self.watch(wanted.id, sandbox)
        node.events.publish(EventKind.CREATED, wanted.id, wanted.id)
        node.events.publish(EventKind.STARTED, wanted.id, wanted.id)
        await node.tell(node.observer.pod_ready(ready), None)
        return wanted.id

    def _same(self, spec: PodSpec) -> PodRecord | None:
        shown = [item for item in self._node.ledger.pods_like(spec) if item.phase in SHOWN_PODS]
        return shown[0] if shown else None

    async def _undo(self, spec: PodSpec, logs_are_ours: bool) -> None:
        """Remove what a failed run left, even while being cancelled; the janitor does the rest."""
        try:
            await self._node.drop_pod(spec.id)
        except Exception as error:
            log.warning(
                "pod %s/%s (%s) failed and its traces cannot be removed yet: %s",
                spec.namespace,
                spec.name,
                spec.id[:12],
                reason_of(error),
            )
        if logs_are_ours:
            # The caller never learns of this pod, and would not remove its directory.
            with contextlib.suppress(OSError):
                Path(spec.log_directory).rmdir()

    def watch(self, pod_id: str, sandbox: Sandbox) -> None:
        """Notice when the sandbox dies by itself."""
        self._node.watchers[pod_id] = self._node.tasks.spawn(
            self._watch(pod_id, sandbox), f"watch pod {pod_id[:12]}"
        )

    async def _watch(self, pod_id: str, sandbox: Sandbox) -> None:
        reason = await sandbox.wait()
        ledger = self._node.ledger
        async with ledger.locked(pod_id):
            record = ledger.find_pod(pod_id)
            if record is None or record.phase is not PodPhase.READY or record.stop_requested:
                return
            log.warning(
                "pod %s/%s (%s) died: %s", record.spec.namespace, record.spec.name, pod_id[:12], reason
            )
            ended = reason or "the sandbox ended"
            record = await ledger.note_pod(pod_id, phase=PodPhase.NOTREADY, reason=ended)
        await self._conclude_members(pod_id, reason or "the sandbox ended", DEAD_GRACE)
        self._node.events.publish(EventKind.STOPPED, pod_id, pod_id)
        await self._node.tell(self._node.observer.pod_stopped(record), None)

    # Stop

    async def stop(self, ref: str) -> None:
        """Kill all that runs in a pod and release its network and its VM; idempotent."""
        record = self._node.ledger.find_pod(ref)
        if record is None or record.phase not in SHOWN_PODS:
            return
        await self._node.done.run(("stop", record.id), None, lambda: self._stop(record.id))

    async def _stop(self, pod_id: str) -> None:
        async with self._node.ledger.locked(pod_id):
            await self.stop_locked(pod_id)

    async def stop_locked(self, pod_id: str) -> None:
        """The same for a caller that holds the pod's lock."""
        node, ledger = self._node, self._node.ledger
        record = ledger.find_pod(pod_id)
        if record is None or record.phase not in SHOWN_PODS:
            return
        sandbox = node.sandboxes.get(pod_id)
        if not record.stop_requested:
            # Of one that has ended as well: it is not to come again.
            await ledger.note_pod(pod_id, stop_requested=True)
        if record.phase is PodPhase.NOTREADY and sandbox is None:
            return
        with tracing.span("sandbox.stop", pod=pod_id):
            if sandbox is not None:
                await sandbox.stop()
            else:
                await node.handlers.driver(record.handler).discard(pod_id)
        await self._conclude_members(pod_id, "", EXIT_GRACE)
        node.sandboxes.pop(pod_id, None)
        await node.end_watch(pod_id)
        if record.phase is PodPhase.READY:
            record = await ledger.note_pod(pod_id, phase=PodPhase.NOTREADY)
            node.events.publish(EventKind.STOPPED, pod_id, pod_id)
            await node.tell(node.observer.pod_stopped(record), None)

    async def _conclude_members(self, pod_id: str, reason: str, grace: float) -> None:
        """Record the exits of all containers of a pod that runs no more."""
        members = self._node.ledger.members(pod_id)
        undo = Undo(f"pod {pod_id[:12]}")
        await together(
            *(
                undo.step(
                    f"the exit of container {member.id[:12]}",
                    self._containers.conclude(member.id, grace, reason),
                )
                for member in members
            )
        )
        undo.finish()

    # Remove

    async def remove(self, ref: str) -> None:
        """Stop a pod if it runs, then remove it and its containers; idempotent."""
        record = self._node.ledger.find_pod(ref)
        if record is None or record.phase is PodPhase.STARTING:
            return
        await self._node.done.run(("remove", record.id), None, lambda: self._remove(record.id))

    async def _remove(self, pod_id: str) -> None:
        node, ledger = self._node, self._node.ledger
        async with ledger.locked(pod_id):
            await self.stop_locked(pod_id)
            record = ledger.find_pod(pod_id)
            if record is None:
                return
            members = ledger.members(pod_id)
            with tracing.span("sandbox.discard", pod=pod_id):
                await node.drop_pod(pod_id)
        for member in members:
            await node.end_watch(member.id)
            node.events.publish(EventKind.DELETED, member.id, record)
            await node.tell(node.observer.removed(record, member), None)
        node.events.publish(EventKind.DELETED, pod_id, record)
        await node.tell(node.observer.pod_removed(record), None)

    # Update

    async def update(self, ref: str, overhead: Resources, resources: Resources) -> None:
        """Change the limits of the pod as a whole; what is not set stays as it is."""
        record = self._node.pod(ref)
        async with self._node.ledger.locked(record.id):
            sandbox = self._node.sandbox(record.id)
            spec = self._node.pod(record.id).spec
            new = msgspec.structs.replace(
                spec, overhead=merged(spec.overhead, overhead), resources=merged(spec.resources, resources)
            )
            await self._node.observer.update_pod(self._node.pod(record.id), overhead, resources)
            with tracing.span("sandbox.resize", pod=record.id), in_words(f"pod {record.id[:12]}"):
                allowed = await sandbox.resize(new.overhead, new.resources)
            new = msgspec.structs.replace(new, resources=allowed)
            record = await self._node.ledger.change_pod(record.id, spec=new)
        await self._node.tell(self._node.observer.pod_updated(record), None)


async def _make_directory(path: str) -> None:
    """The pod's log directory, which a kubelet has made already."""
    if not path or Path(path).is_dir():
        return
    try:
        await threads.call(Path(path).mkdir, 0o755, True, True)
    except OSError as error:
        raise FailedPrecondition(f"log directory {path} cannot be made: {error.strerror}") from error
