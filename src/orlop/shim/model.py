"""What is known of a task: what containerd said when it made one, and how it stands now."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any

import msgspec

from orlop.bundle.document import OciHook, OciProcess
from orlop.sandbox.base import ProcessIO
from orlop.sandbox.spec import ExitStatus
from orlop.shim.stdio import Feed, Stdio
from orlop.value import Value

KEY = "orlop.shim/task"
"""The annotation of a container, or of a pod that is a task itself, with its :class:`TaskRecord`."""

Key = tuple[str, str]
"""containerd's namespace and the task's id in it."""


class TaskRecord(Value, frozen=True):
    """A task as containerd made it; kept in the engine's own record.

    ``events`` is the path of containerd's socket for events, ``rootfs`` where something was mounted for the
    task, and ``netns`` the network namespace that was made for it, "" for none. ``sandbox`` is a pod of a
    kubelet's: the task is the VM itself. ``member`` is a container of one. ``by_sandboxer`` is a sandbox that
    came over the service for sandboxes: containerd waits for its end there, and is told no events of it.
    ``after_start`` and ``after_end`` are programs of the host that are to run then, and hear ``version``,
    that of the specification, and ``annotations``; all of these only where there are such programs.
    """

    namespace: str
    id: str
    bundle: str
    events: str = ""
    stdio: Stdio = Stdio()
    rootfs: str = ""
    netns: str = ""
    sandbox: bool = False
    member: bool = False
    by_sandboxer: bool = False
    after_start: tuple[OciHook, ...] = ()
    after_end: tuple[OciHook, ...] = ()
    version: str = ""
    annotations: dict[str, str] = msgspec.field(default_factory=dict)

    def state(self, status: str, pid: int = 0) -> dict[str, Any]:
        """The state that a hook is told (OCI runtime specification)."""
        return {
            "ociVersion": self.version,
            "id": self.id,
            "pid": pid,
            "status": status,
            "bundle": self.bundle,
            "annotations": self.annotations,
        }

    @property
    def key(self) -> Key:
        """Its name among all."""
        return self.namespace, self.id

    @property
    def hears(self) -> bool:
        """Whether who made it hears events, as containerd does. CRI-O does not: it waits, and looks."""
        return bool(self.events)


def encoded(record: TaskRecord) -> dict[str, str]:
    """The annotation."""
    return {KEY: msgspec.json.encode(record).decode()}


def decoded(annotations: dict[str, str]) -> TaskRecord | None:
    """What the annotation says, None where there is none."""
    text = annotations.get(KEY)
    return msgspec.json.decode(text, type=TaskRecord) if text else None


class TaskStatus(IntEnum):
    """How a process stands, by the numbers that containerd has for that."""

    CREATED = 1
    RUNNING = 2
    STOPPED = 3
    PAUSED = 4


@dataclass
class TaskProcess:
    """A process of a task: its first one, or one more with an ``exec_id``. ``asked`` is what is to run,
    and ``held`` names what the keeper holds of its streams."""

    stdio: Stdio
    exec_id: str = ""
    asked: OciProcess | None = None
    held: set[str] = field(default_factory=set)
    started: bool = False
    exit: ExitStatus | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    io: ProcessIO | None = None
    feed: Feed | None = None
    stdin_done: bool = False
    send: Callable[[int], Awaitable[None]] | None = None
    size: tuple[int, int] = (0, 0)

    @property
    def standing(self) -> TaskStatus:
        """How it stands."""
        if self.exit is not None:
            return TaskStatus.STOPPED
        return TaskStatus.RUNNING if self.started else TaskStatus.CREATED

    def end(self, status: ExitStatus) -> None:
        """It has ended; who waits for that hears of it. The first end counts."""
        if self.exit is None:
            self.exit = status
        self.ended.set()


@dataclass
class LiveTask:
    """A task that is there. ``container_id`` is "" for a sandbox; one that is to end is ``stopping``."""

    record: TaskRecord
    pod_id: str
    container_id: str
    first: TaskProcess
    execs: dict[str, TaskProcess] = field(default_factory=dict)
    stopping: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return f"task {self.record.id}"
