"""What the verbs on pods and containers share: the records, the running sandboxes, the background work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from orlop.errors import SHORT, FailedPrecondition, Internal, NotFound, OrlopError, ResourceExhausted
from orlop.host.tasks import Tasks, Undo, end, uncancelled
from orlop.pods.ends import Ends
from orlop.pods.events import Events
from orlop.pods.handlers import Handlers
from orlop.pods.joint import JointCalls
from orlop.pods.ledger import Ledger
from orlop.pods.observer import Observer
from orlop.pods.ports import Images
from orlop.pods.records import (
    SHOWN_CONTAINERS,
    SHOWN_PODS,
    ContainerPhase,
    ContainerRecord,
    PodPhase,
    PodRecord,
)
from orlop.sandbox.base import Sandbox

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass
class Node:
    """Everything that is known and everything that runs. Owned by the service."""

    ledger: Ledger
    events: Events
    handlers: Handlers
    images: Images
    tasks: Tasks = field(default_factory=Tasks)
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    watchers: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    observer: Observer = field(default_factory=Observer)
    recovering: dict[str, asyncio.Event] = field(default_factory=dict)
    """Pods of an earlier daemon whose state is not known yet, with what is set when it is."""
    ends: Ends = field(default_factory=Ends)

    def __post_init__(self) -> None:
        """The calls that retries can join, by what they make or unmake."""
        self.made: JointCalls[str] = JointCalls(self.tasks)
        self.done: JointCalls[None] = JointCalls(self.tasks)

    def pod(self, ref: str) -> PodRecord:
        """A pod that callers may see. Raises NotFound."""
        record = self.ledger.pod(ref)
        if record.phase not in SHOWN_PODS:
            raise NotFound(f"pod {ref} does not exist")
        return record

    def container(self, ref: str) -> ContainerRecord:
        """A container that callers may see. Raises NotFound."""
        record = self.ledger.container(ref)
        if record.phase not in SHOWN_CONTAINERS:
            raise NotFound(f"container {ref} does not exist")
        return record

    def sandbox(self, pod_id: str) -> Sandbox:
        """The sandbox of a pod that is ready. Raises FailedPrecondition when it is not."""
        record = self.ledger.pod(pod_id)
        sandbox = self.sandboxes.get(record.id)
        if record.phase is not PodPhase.READY or sandbox is None:
            why = f": {record.reason}" if record.reason else ""
            if record.id in self.recovering:
                why = ": it is being found again after a restart of the daemon"
            raise FailedPrecondition(
                f"pod {record.spec.namespace}/{record.spec.name} ({record.id[:12]}) does not run{why}"
            )
        return sandbox

    async def known(self, pod_ref: str, timeout: float | None = None) -> None:
        """Wait until the state of a pod of an earlier daemon is known, at most ``timeout`` seconds.

        Recovery has a deadline of its own. There need not be such a pod.
        """
        if not self.recovering:
            return
        record = self.ledger.find_pod(pod_ref)
        decided = self.recovering.get(record.id) if record is not None else None
        if decided is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout):
                    await decided.wait()

    async def known_of(self, container_ref: str, timeout: float | None = None) -> None:
        """The same for the pod of a container, which need not exist."""
        if self.recovering and (record := self.ledger.find_container(container_ref)) is not None:
            await self.known(record.pod_id, timeout)

    def running(self, ref: str) -> tuple[ContainerRecord, Sandbox]:
        """A container whose process runs, and its pod's sandbox. Raises FailedPrecondition."""
        record = self.container(ref)
        if record.phase is not ContainerPhase.RUNNING:
            raise FailedPrecondition(
                f"container {record.name} ({record.id[:12]}) does not run, it is {record.phase}"
            )
        return record, self.sandbox(record.pod_id)

    async def drop_pod(self, pod_id: str) -> None:
        """Remove every trace of a pod and forget it and its containers.

        A pod whose traces cannot be removed stays in the journal as REMOVING, for the next try.
        """
        record = self.ledger.pod(pod_id)
        if record.phase is not PodPhase.REMOVING:
            await self.ledger.note_pod(pod_id, phase=PodPhase.REMOVING)
        await self.handlers.driver(record.handler).discard(pod_id)
        self.sandboxes.pop(pod_id, None)
        undo = Undo(f"pod {pod_id[:12]}")
        for member in self.ledger.members(pod_id):
            await undo.step(f"container {member.id[:12]}", self.forget(member.id))
        undo.finish()
        await self.ledger.drop_pod(pod_id)
        await self.end_watch(pod_id)

    async def tell(self, news: Coroutine[Any, Any, T], default: T) -> T:
        """The observer's answer to news: to its end, though the caller be cancelled. It refuses nothing."""
        if not self.observer.listens:
            news.close()
            return default
        try:
            return await uncancelled(news)
        except Exception as error:
            log.warning("an observer: %s", reason_of(error))
            return default

    async def forget(self, container_id: str) -> None:
        """Drop the record of a container that is gone, its hold on images and its watcher."""
        await self.end_watch(container_id)
        await self.images.release(container_id)
        await self.ledger.drop_container(container_id)

    async def end_watch(self, object_id: str) -> None:
        """Stop watching a pod or container that is gone; not from within its own watcher."""
        watcher = self.watchers.pop(object_id, None)
        if watcher is not None and watcher is not asyncio.current_task():
            await end(watcher)


@contextmanager
def in_words(what: str) -> Iterator[None]:
    """Name the object that an error of the system is about: ResourceExhausted where something ran out."""
    try:
        yield
    except OSError as error:
        kind = ResourceExhausted if error.errno in SHORT else Internal
        raise kind(f"{what}: {error}") from error


def now() -> int:
    """Nanoseconds since the epoch."""
    return time.time_ns()


def reason_of(error: BaseException) -> str:
    """One line for a record's ``reason`` or ``message``."""
    if isinstance(error, OrlopError):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
