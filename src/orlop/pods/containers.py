"""The life of a container: create, start, stop, remove.

    CREATING --create--> CREATED --start--> RUNNING --exit--> EXITED --remove--> REMOVING --> gone

Each arrow that somebody asked for is in the journal before its step is taken; the exit is there
before anybody is told of it.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import time
from contextlib import suppress
from pathlib import Path

import msgspec

from orlop import tracing
from orlop.errors import (
    AlreadyExists,
    CannotRun,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    Unavailable,
)
from orlop.host import threads
from orlop.host.tasks import beside, uncancelled
from orlop.pods import cdi, resolve
from orlop.pods import health as healths
from orlop.pods import ledger as ledgers
from orlop.pods.health import Health
from orlop.pods.names import Names
from orlop.pods.node import Node, in_words, now, reason_of
from orlop.pods.observer import NO_UPDATES, WantedLimits
from orlop.pods.records import (
    CODE_KILLED,
    CODE_START_FAILED,
    REASON_COMPLETED,
    REASON_ERROR,
    REASON_OOM,
    REASON_SANDBOX_LOST,
    REASON_START_FAILED,
    REASON_UNKNOWN,
    ContainerPhase,
    ContainerRecord,
    EventKind,
    HealthState,
    PodRecord,
)
from orlop.pods.requests import ContainerRequest
from orlop.sandbox.base import Sandbox
from orlop.sandbox.spec import ExitStatus, Resources

log = logging.getLogger(__name__)

KILL_AGAIN = 1.0
KILL_GRACE = 30.0
"""Seconds within which a killed container must be dead."""

WATCH_INTERVAL = 1.0
"""Seconds between questions for an exit that a sandbox cannot tell at the moment."""

UNWATCHED = 0.05
"""Seconds between looks at a container that nobody watches at the moment."""

SIGKILL = int(signal.SIGKILL)


class Containers:
    """The verbs on containers."""

    def __init__(self, node: Node, health: Health, names: Names) -> None:
        self._node = node
        self._health = health
        self._names = names

    # Create

    async def create(self, request: ContainerRequest) -> str:
        """Make a container ready to start and return its id; a repeated call joins the first."""
        if not request.name:
            raise InvalidArgument(f"container of pod {request.pod_id[:12]}: its name is empty")
        pod = self._node.pod(request.pod_id)
        clash = AlreadyExists(
            f"container {request.name}, attempt {request.attempt} exists in pod {pod.spec.namespace}/"
            f"{pod.spec.name} and differs from the one asked for; "
            "remove it first, or ask for the next attempt"
        )
        key = ("create", pod.id, request.name, request.attempt)
        return await self._node.made.run(
            key, request, lambda: self._create(pod, request, clash), conflict=lambda: clash
        )

    async def _create(self, pod: PodRecord, request: ContainerRequest, clash: AlreadyExists) -> str:
        node = self._node
        sandbox = node.sandbox(pod.id)
        digest = ledgers.digest(request)
        for member in node.ledger.shown_members(pod.id):
            if (member.name, member.spec.attempt) == (request.name, request.attempt):
                if member.request == digest and member.phase is ContainerPhase.CREATED:
                    return member.id
                raise clash
        container_id = secrets.token_hex(32)
        told: ContainerRecord | None = None
        try:
            failed = f"container {request.name} cannot be made"
            with tracing.span("pods.resolve", pod=pod.id, container=container_id), in_words(failed):
                record = await self._resolve(pod, request, container_id, digest)
            told = record
            record = await self._adjust(pod, record, sandbox)
            with tracing.span("pods.record", container=container_id):
                self._names.check_container(pod, request)
                await node.ledger.put_container(record)
            with tracing.span("sandbox.create", container=container_id):
                record = await self.make(record, sandbox)
            if (current := node.ledger.find_pod(pod.id)) is None or not current.ready:
                raise FailedPrecondition(
                    f"pod {pod.spec.namespace}/{pod.spec.name} was stopped while container {request.name} "
                    "was being made"
                )
            record = msgspec.structs.replace(record, phase=ContainerPhase.CREATED)
            await node.ledger.put_container(record)
        except BaseException:
            await uncancelled(self._undo(container_id, sandbox))
            if told is not None:
                await node.tell(node.observer.stopped(pod, told), NO_UPDATES)
                await node.tell(node.observer.removed(pod, told), None)
            raise
        node.events.publish(EventKind.CREATED, container_id, pod.id)
        await node.tell(node.observer.created(pod, record), None)
        return container_id

    async def _adjust(self, pod: PodRecord, record: ContainerRecord, sandbox: Sandbox) -> ContainerRecord:
        """The container as the node's observer wants it; others that it wants changed are changed first."""
        adjusted = await self._node.observer.create(pod, record, sandbox.check)
        spec = adjusted.spec
        if adjusted.cdi_devices:
            spec = await threads.call(cdi.apply, spec, adjusted.cdi_devices)
        await self.change_others(adjusted.updates)
        return record if spec is record.spec else msgspec.structs.replace(record, spec=spec)

    async def _resolve(
        self, pod: PodRecord, request: ContainerRequest, container_id: str, digest: str
    ) -> ContainerRecord:
        """All that was asked for made definite, its images held for the container."""
        images = self._node.images
        image = None
        if not request.directory:
            image = resolve.find_image(images.status, request.image, f"container {request.name}")
            await images.use(image.id, container_id)
        elif request.image:
            raise InvalidArgument(f"container {request.name}: its root is an image or a directory, not both")
        health_check = healths.wished(request.annotations, image.config) if image is not None else None
        spec = await threads.call(resolve.container, request, container_id, pod.spec, image, images.status)
        names = cdi.requested(request)
        if names:
            spec = await threads.call(cdi.apply, spec, names)
        for mount in spec.mounts:
            if mount.image is not None:
                await images.use(mount.image.image_id, container_id)
        return ContainerRecord(
            spec=spec,
            phase=ContainerPhase.CREATING,
            created_at=now(),
            request=digest,
            labels=request.labels,
            annotations=request.annotations,
            image=request.image,
            user_image=request.user_image,
            image_ref=resolve.image_reference(image, request.user_image, request.image) if image else "",
            stop_signal=resolve.signal_name(spec.stop_signal),
            user=resolve.known_user(spec.security),
            health_check=health_check,
            health=None if health_check is None else HealthState(),
        )

    async def make(self, record: ContainerRecord, sandbox: Sandbox) -> ContainerRecord:
        """Have the sandbox make the container; the record with what came of it.

        A program that cannot be run is told by the start: a caller whose create fails tries again for ever,
        one whose start fails has a container with an exit code.
        """
        try:
            with in_words(f"container {record.name} cannot be made"):
                user = await sandbox.create(record.spec)
        except CannotRun as error:
            await sandbox.delete(record.id)
            return msgspec.structs.replace(record, cannot_start=str(error))
        return msgspec.structs.replace(record, user=user or record.user)

    async def _undo(self, container_id: str, sandbox: Sandbox) -> None:
        """Remove what a failed create left, even while being cancelled."""
        node = self._node
        record = node.ledger.find_container(container_id)
        try:
            if record is not None:
                await sandbox.delete(container_id)
                await threads.call(_drop_empty_log, record.log_path)
                await node.ledger.drop_container(container_id)
            await node.images.release(container_id)
        except Exception as error:
            log.warning(
                "container %s cannot be removed, it goes with its pod: %s",
                container_id[:12],
                reason_of(error),
            )

    # Start

    async def start(self, ref: str) -> None:
        """Run a created container's process."""
        record = self._node.container(ref)
        await self._node.done.run(("start", record.id), None, lambda: self._start(record.id))

    async def _start(self, container_id: str) -> None:
        async with self._node.ledger.locked(container_id):
            record = self._node.container(container_id)
            if record.phase is not ContainerPhase.CREATED:
                raise FailedPrecondition(
                    f"container {record.name} ({container_id[:12]}) cannot be started, it is {record.phase}"
                )
            sandbox = self._node.sandbox(record.pod_id)
            pod = self._node.pod(record.pod_id)
            await self._node.observer.start(pod, record)
            await self._node.ledger.change_container(container_id, start_requested=True)
            await self.start_made(container_id, sandbox)

    async def start_made(self, container_id: str, sandbox: Sandbox) -> None:
        """Start what was made, for a caller that has its lock and has noted that; a failure is its end."""
        try:
            started_at = await self.begin(self._node.ledger.container(container_id), sandbox)
        except Exception as error:
            if not isinstance(error, CannotRun):
                await self.end_failed(container_id, sandbox)
            await self.start_failed(container_id, error)
            raise
        await self.started(container_id, started_at, sandbox)

    async def begin(self, record: ContainerRecord, sandbox: Sandbox) -> int:
        """Run the process of a created container; when (ns). Raises CannotRun and what sandboxes raise."""
        if record.cannot_start:
            raise CannotRun(record.cannot_start)
        failed = f"container {record.name} ({record.id[:12]}) cannot be started"
        with tracing.span("sandbox.start", pod=record.pod_id, container=record.id), in_words(failed):
            return await sandbox.start(record.id)

    async def end_failed(self, container_id: str, sandbox: Sandbox) -> None:
        """See that a container whose start failed does not run: it may have, and its answer was lost."""
        if not await _heard_kill(sandbox, container_id):
            work = self._kill_at_last(container_id, sandbox)
            self._node.tasks.spawn(work, f"the end of container {container_id[:12]}")

    async def _kill_at_last(self, container_id: str, sandbox: Sandbox) -> None:
        """Kill a container that may run though nobody watches it, for as long as it is there."""
        while (record := self._node.ledger.find_container(container_id)) is not None and not record.running:
            if self._node.sandboxes.get(record.pod_id) is not sandbox:
                return
            await asyncio.sleep(WATCH_INTERVAL)
            if await _heard_kill(sandbox, container_id):
                return

    async def start_failed(self, container_id: str, error: Exception) -> None:
        """Record that a container's process could not be run."""
        await self._node.ledger.note_container(
            container_id,
            phase=ContainerPhase.EXITED,
            finished_at=now(),
            exit_code=CODE_START_FAILED,
            reason=REASON_START_FAILED,
            message=reason_of(error),
        )
        self._node.ends.note(container_id, CODE_START_FAILED)

    async def started(self, container_id: str, started_at: int, sandbox: Sandbox) -> None:
        """Record that a container runs, tell of it, and watch it."""
        record = await self._node.ledger.note_container(
            container_id, phase=ContainerPhase.RUNNING, started_at=started_at
        )
        self._node.events.publish(EventKind.STARTED, container_id, record.pod_id)
        if (pod := self._node.ledger.find_pod(record.pod_id)) is not None:
            # Before it is watched: nobody is to hear of its end first.
            await self._node.tell(self._node.observer.started(pod, record), None)
        self.watch(container_id, sandbox)

    def watch(self, container_id: str, sandbox: Sandbox) -> None:
        """Record the exit of a running container when it comes, and check its health until then."""
        record = self._node.ledger.find_container(container_id)
        checked = record is not None and record.health_check is not None
        work = self._watch_health if checked else self._watch
        self._node.watchers[container_id] = self._node.tasks.spawn(
            work(container_id, sandbox), f"watch container {container_id[:12]}"
        )

    async def _watch_health(self, container_id: str, sandbox: Sandbox) -> None:
        async with beside(self._health.keep(container_id), f"health of container {container_id[:12]}"):
            await self._watch(container_id, sandbox)

    async def _watch(self, container_id: str, sandbox: Sandbox) -> None:
        """Wait for the exit. A sandbox that cannot tell is asked again for as long as its pod runs."""
        while True:
            try:
                status = await sandbox.wait_container(container_id)
            except NotFound as error:
                status = ExitStatus(code=CODE_KILLED, finished_at=now(), message=reason_of(error))
                await self._exited(container_id, status, REASON_UNKNOWN)
                return
            except Exception as error:
                expected = isinstance(error, OrlopError)
                log.log(
                    logging.INFO if expected else logging.ERROR,
                    "container %s: its exit is not known yet: %s",
                    container_id[:12],
                    reason_of(error),
                    exc_info=None if expected else error,
                )
                await asyncio.sleep(WATCH_INTERVAL)
            else:
                await self._exited(container_id, status)
                return

    async def _exited(self, container_id: str, status: ExitStatus, reason: str = "") -> None:
        record = self._node.ledger.find_container(container_id)
        if record is None or record.phase is not ContainerPhase.RUNNING:
            return
        if not reason:
            reason = REASON_COMPLETED if status.code == 0 else REASON_ERROR
        record = await self._node.ledger.note_container(
            container_id,
            phase=ContainerPhase.EXITED,
            # A clock that was set back in between must not end what had not begun.
            finished_at=max(status.finished_at or now(), record.started_at),
            exit_code=status.code,
            reason=REASON_OOM if status.oom_killed else reason,
            message=status.message,
            paused=False,
        )
        self._node.ends.note(container_id, status.code)
        self._node.events.publish(EventKind.STOPPED, container_id, record.pod_id)
        if (pod := self._node.ledger.find_pod(record.pod_id)) is not None:
            updates = await self._node.tell(self._node.observer.stopped(pod, record), NO_UPDATES)
            if updates:
                # Not here: whoever waits for this exit may hold what another container's update waits for.
                self._node.tasks.spawn(self.change_others(updates), "what plug-ins change after an exit")

    async def conclude(self, container_id: str, grace: float, reason: str) -> None:
        """Record the exit of a container whose pod runs no more: its own if known within ``grace``."""
        record = self._node.ledger.find_container(container_id)
        if record is None or record.phase is not ContainerPhase.RUNNING:
            return
        watcher = self._node.watchers.pop(container_id, None)
        if watcher is not None:
            await asyncio.wait([watcher], timeout=grace)
            watcher.cancel()
        killed = ExitStatus(code=CODE_KILLED, finished_at=now(), message=reason)
        await self._exited(container_id, killed, REASON_SANDBOX_LOST if reason else REASON_ERROR)

    # Stop

    async def stop(self, ref: str, timeout: float) -> None:
        """Send the stop signal, and KILL after ``timeout`` seconds (at once when 0); idempotent.

        Raises DeadlineExceeded when even a killed container does not end.
        """
        record = self._node.ledger.find_container(ref)
        if record is None or record.phase is not ContainerPhase.RUNNING:
            return
        if record.id not in self._node.watchers:
            # It was started this moment, and is watched as soon as that is written down.
            async with self._node.ledger.locked(record.id):
                pass
        await self._stop(record.id, timeout)

    async def signal(self, ref: str, number: int) -> None:
        """Send a signal to a running container. Raises FailedPrecondition for one that does not run."""
        # Not to be lost between the start that somebody asked for and its end.
        await self._node.done.settled(("start", self._node.container(ref).id))
        record, sandbox = self._node.running(ref)
        with in_words(f"container {record.name} ({record.id[:12]}) cannot be sent a signal"):
            await sandbox.signal(record.id, number)

    # Pause

    async def pause(self, ref: str) -> None:
        """Stop a running container's processes where they are. Raises FailedPrecondition."""
        async with self._node.ledger.locked(self._node.container(ref).id):
            record, sandbox = self._node.running(ref)
            what = f"container {record.name} ({record.id[:12]})"
            if record.paused:
                raise FailedPrecondition(f"{what} is paused already")
            await self._node.ledger.change_container(record.id, paused=True)
            try:
                with in_words(f"{what} cannot be paused"):
                    await sandbox.freeze(record.id, frozen=True)
            except BaseException:
                await uncancelled(self._thaw(record, sandbox))
                raise

    async def resume(self, ref: str) -> None:
        """Let a paused container's processes go on. Raises FailedPrecondition."""
        async with self._node.ledger.locked(self._node.container(ref).id):
            record, sandbox = self._node.running(ref)
            what = f"container {record.name} ({record.id[:12]})"
            if not record.paused:
                raise FailedPrecondition(f"{what} is not paused")
            with in_words(f"{what} cannot be resumed"):
                await sandbox.freeze(record.id, frozen=False)
            await self._node.ledger.note_container(record.id, paused=False)

    async def pause_again(self, record: ContainerRecord, sandbox: Sandbox) -> None:
        """See that a container is as it is recorded: a pause may have been cut short."""
        if record.paused:
            await sandbox.freeze(record.id, frozen=True)

    async def _thaw(self, record: ContainerRecord, sandbox: Sandbox) -> None:
        """Let its processes go on, if that can be; else it stays recorded as one that can be resumed."""
        try:
            await sandbox.freeze(record.id, frozen=False)
        except (OrlopError, OSError) as error:
            log.info("container %s (%s) is still paused: %s", record.name, record.id[:12], reason_of(error))
        else:
            if self._node.ledger.find_container(record.id) is not None:
                await self._node.ledger.note_container(record.id, paused=False)

    async def ended(self, ref: str) -> ContainerRecord | None:
        """Wait until a container does not run; what it is then, None when it was removed."""
        while (record := self._node.ledger.find_container(ref)) is not None:
            if ("start", record.id) in self._node.done:
                await self._node.done.settled(("start", record.id))
                continue
            if record.phase is not ContainerPhase.RUNNING:
                return record
            watcher = self._node.watchers.get(record.id)
            if watcher is None or watcher.done():
                # It is found again or concluded this moment.
                await asyncio.sleep(UNWATCHED)
            else:
                await asyncio.wait([watcher])
        return None

    async def _stop(self, container_id: str, timeout: float) -> None:
        """The same for a container that nobody is starting."""
        record = self._node.ledger.find_container(container_id)
        if record is None or record.phase is not ContainerPhase.RUNNING:
            return
        sandbox = self._node.sandboxes.get(record.pod_id)
        watcher = self._node.watchers.get(record.id)
        if sandbox is None or watcher is None:
            await self.conclude(record.id, 0, "its pod runs no more")
            return
        if record.paused:
            # It would hear nothing but KILL.
            await self._thaw(record, sandbox)
        with tracing.span("sandbox.stop_container", pod=record.pod_id, container=record.id):
            await self._stop_ladder(record, sandbox, watcher, timeout)

    async def _stop_ladder(
        self, record: ContainerRecord, sandbox: Sandbox, watcher: asyncio.Task[None], timeout: float
    ) -> None:
        if timeout > 0:
            end = time.monotonic() + timeout
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await _signal(sandbox, record.id, record.spec.stop_signal)
            done, _ = await asyncio.wait([watcher], timeout=max(0.0, end - time.monotonic()))
            if done:
                return
            log.info(
                "container %s (%s) still runs %g s after %s: killing it",
                record.name,
                record.id[:12],
                timeout,
                record.stop_signal,
            )
        end = time.monotonic() + KILL_GRACE
        while (left := end - time.monotonic()) > 0:
            # One that did not get through is sent again: nobody waits long for what was not heard.
            heard = await _signal(sandbox, record.id, SIGKILL)
            done, _ = await asyncio.wait([watcher], timeout=left if heard else min(left, KILL_AGAIN))
            if done:
                return
        raise DeadlineExceeded(
            f"container {record.name} ({record.id[:12]}) still runs {KILL_GRACE:g} s after KILL"
        )

    # Remove

    async def remove(self, ref: str) -> None:
        """Kill a container if it runs, then remove it; idempotent."""
        record = self._node.ledger.find_container(ref)
        if record is None or record.phase is ContainerPhase.CREATING:
            return
        await self._node.done.run(("remove", record.id), None, lambda: self._remove(record.id))

    async def _remove(self, container_id: str) -> None:
        node = self._node
        async with node.ledger.locked(container_id):
            await self._stop(container_id, 0)
            record = node.ledger.find_container(container_id)
            if record is None:
                return
            if record.phase is not ContainerPhase.REMOVING:
                record = await node.ledger.note_container(container_id, phase=ContainerPhase.REMOVING)
            if (sandbox := node.sandboxes.get(record.pod_id)) is not None:
                with tracing.span("sandbox.delete", pod=record.pod_id, container=container_id):
                    await sandbox.delete(container_id)
            await node.end_watch(container_id)
            await node.images.release(container_id)
            await node.ledger.drop_container(container_id)
        node.events.publish(EventKind.DELETED, container_id, record.pod_id)
        if (pod := node.ledger.find_pod(record.pod_id)) is not None:
            await node.tell(node.observer.removed(pod, record), None)

    # Update

    async def update(self, ref: str, resources: Resources) -> None:
        """Change a container's limits; what is not set stays as it is."""
        record, observer = self._node.container(ref), self._node.observer
        _check_updatable(record)
        pod = self._node.pod(record.pod_id)
        # Without the lock: others may be changed as well, whose own changes may want this one.
        wanted = await observer.update(pod, record, resources)
        await self.change_others(wanted.updates)
        record = await self.change(record.id, wanted.resources)
        await self._node.tell(observer.updated(pod, record), None)

    async def change_others(self, updates: tuple[WantedLimits, ...]) -> None:
        """Change containers as an observer wants it, which is not asked about that again."""
        for one in updates:
            try:
                await self.change(one.container_id, one.resources)
            except OrlopError as error:
                if not one.optional:
                    raise
                log.info("container %s is not updated: %s", one.container_id[:12], error)

    async def change(self, ref: str, resources: Resources) -> ContainerRecord:
        """The same as :meth:`update`, of which no observer hears; the container as it is then."""
        record = self._node.container(ref)
        _check_updatable(record)
        async with self._node.ledger.locked(record.id):
            with in_words(f"container {record.name} ({record.id[:12]}) cannot be updated"):
                await self._node.sandbox(record.pod_id).update(record.id, resources)
            spec = self._node.container(record.id).spec
            new = msgspec.structs.replace(spec, resources=merged(spec.resources, resources))
            return await self._node.ledger.change_container(record.id, spec=new)

    async def reopen_log(self, ref: str) -> None:
        """Close and reopen a running container's log file."""
        record, sandbox = self._node.running(ref)
        with in_words(f"the log of container {record.name} ({record.id[:12]})"):
            await sandbox.reopen_log(record.id)


def _check_updatable(record: ContainerRecord) -> None:
    if record.phase not in (ContainerPhase.CREATED, ContainerPhase.RUNNING):
        raise FailedPrecondition(
            f"container {record.name} ({record.id[:12]}) cannot be updated, it is {record.phase}"
        )


def merged(old: Resources, new: Resources) -> Resources:
    """``old`` with those limits replaced that ``new`` sets."""
    fields = {name: value for name in new.__struct_fields__ if (value := getattr(new, name))}
    return msgspec.structs.replace(old, **fields)


async def _signal(sandbox: Sandbox, container_id: str, number: int) -> bool:
    """Send a signal; False when it may not have been heard, which is no failure: the exit tells."""
    try:
        await sandbox.signal(container_id, number)
    except (NotFound, FailedPrecondition) as error:  # it has just ended
        log.debug("signal %d to container %s: %s", number, container_id[:12], error)
    except (DeadlineExceeded, Unavailable) as error:
        log.debug("signal %d to container %s: %s", number, container_id[:12], error)
        return False
    return True


async def _heard_kill(sandbox: Sandbox, container_id: str) -> bool:
    try:
        return await _signal(sandbox, container_id, SIGKILL)
    except (OrlopError, OSError) as error:
        log.warning("container %s cannot be killed: %s", container_id[:12], error)
        return False


def _drop_empty_log(path: str) -> None:
    """Remove the log of a container that never was: the kubelet counts logs as starts."""
    with suppress(OSError):
        if path and Path(path).stat().st_size == 0:
            Path(path).unlink()
