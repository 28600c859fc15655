"""What is known about pods and containers: immutable records, replaced as a whole at each step.

The journal keeps these values as JSON; reading one back gives an equal value. Times are
nanoseconds since the epoch, 0 for "not yet".
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

from orlop.images.model import HealthCheck
from orlop.sandbox.figures import ContainerStats, PodStats
from orlop.sandbox.spec import ContainerSpec, PodSpec, Resources, UserIds
from orlop.value import Value

REASON_COMPLETED = "Completed"
REASON_ERROR = "Error"
REASON_OOM = "OOMKilled"
REASON_START_FAILED = "StartError"
REASON_SANDBOX_LOST = "SandboxLost"
REASON_UNKNOWN = "Unknown"

CODE_KILLED = 137
"""The exit code of a container that died with its sandbox: 128 + SIGKILL."""

CODE_START_FAILED = 128
"""The exit code of a container whose process could not be started."""


class PodPhase(StrEnum):
    """Where a pod is in its life. Only READY and NOTREADY pods are shown to callers."""

    STARTING = "starting"
    READY = "ready"
    NOTREADY = "notready"
    REMOVING = "removing"


class ContainerPhase(StrEnum):
    """Where a container is in its life. CREATING ones are hidden from callers."""

    CREATING = "creating"
    CREATED = "created"
    RUNNING = "running"
    EXITED = "exited"
    UNKNOWN = "unknown"
    REMOVING = "removing"


SHOWN_PODS = frozenset({PodPhase.READY, PodPhase.NOTREADY})
SHOWN_CONTAINERS = frozenset(
    {ContainerPhase.CREATED, ContainerPhase.RUNNING, ContainerPhase.EXITED, ContainerPhase.UNKNOWN}
)


class PodRecord(Value, frozen=True):
    """One pod sandbox.

    ``spec.handler`` is the handler that runs it, ``runtime_handler`` what the caller asked for
    ("" when it left the choice to us) and ``handler_reason`` why the former was chosen.
    ``reason`` says why a NOTREADY pod is no longer ready ("" when it was asked to stop).
    ``request`` is the digest of what was asked for, by which a retry is told from a clash of names.
    ``stop_requested`` is set before the pod is stopped, so that a stop cut short by a crash is carried on.
    """

    spec: PodSpec
    phase: PodPhase
    created_at: int
    request: str = ""
    runtime_handler: str = ""
    handler_reason: str = ""
    addresses: tuple[str, ...] = ()
    netns: str = ""
    reason: str = ""
    stop_requested: bool = False

    @property
    def id(self) -> str:
        """The pod's id: 64 hex digits."""
        return self.spec.id

    @property
    def handler(self) -> str:
        """The handler that runs the pod."""
        return self.spec.handler

    @property
    def ready(self) -> bool:
        """Whether the pod runs (CRI ``SANDBOX_READY``)."""
        return self.phase is PodPhase.READY


class HealthStatus(StrEnum):
    """How a container is that has a health check."""

    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"


class HealthResult(Value, frozen=True):
    """What one check has found."""

    started_at: int
    finished_at: int
    exit_code: int
    output: str = ""


class HealthState(Value, frozen=True):
    """How a container is, how many checks have failed in a row, and the last results, oldest first."""

    status: HealthStatus = HealthStatus.STARTING
    failures: int = 0
    results: tuple[HealthResult, ...] = ()


class ContainerRecord(Value, frozen=True):
    """One container.

    ``image`` is the reference as the caller wrote it, ``image_ref`` what the container runs
    (a repository digest where there is one, else the image's id). ``stop_signal`` is the name
    that applies (``SIGTERM``); ``spec.stop_signal`` its number. ``start_requested`` is set before
    the process is started, so that a start cut short by a crash is carried on. ``user`` is None
    when the image alone knows (a name, looked up in the container's own /etc/passwd).
    ``paused`` is set before its processes are stopped where they are, and cleared after they go on.
    ``cannot_start`` says why a CREATED container's program cannot be run: its start will fail so.
    ``health_check`` is None for one whose health nobody checks, and so is ``health``. ``restarts`` counts how
    often the daemon has run it again, ``stay_ended`` is set before it is ended by somebody who means it.
    """

    spec: ContainerSpec
    phase: ContainerPhase
    created_at: int
    request: str = ""
    start_requested: bool = False
    cannot_start: str = ""
    paused: bool = False
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    image: str = ""
    user_image: str = ""
    image_ref: str = ""
    stop_signal: str = "SIGTERM"
    user: UserIds | None = None
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""
    health_check: HealthCheck | None = None
    health: HealthState | None = None
    restarts: int = 0
    stay_ended: bool = False

    @property
    def id(self) -> str:
        """The container's id: 64 hex digits."""
        return self.spec.id

    @property
    def pod_id(self) -> str:
        """The id of the pod it belongs to."""
        return self.spec.pod_id

    @property
    def name(self) -> str:
        """The container's name within its pod."""
        return self.spec.name

    @property
    def image_id(self) -> str:
        """The image's id: ``sha256:`` and the digest of its configuration."""
        return self.spec.image_id

    @property
    def log_path(self) -> str:
        """Absolute path of the log file, or ""."""
        return self.spec.sink.log

    @property
    def resources(self) -> Resources:
        """The limits that hold now."""
        return self.spec.resources

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self.phase is ContainerPhase.RUNNING


class EventKind(StrEnum):
    """What happened: CRI's ``ContainerEventType``, and a change of health, for which it has no word."""

    CREATED = "created"
    STARTED = "started"
    STOPPED = "stopped"
    DELETED = "deleted"
    HEALTH = "health_status"


class Event(Value, frozen=True):
    """Something that happened to a container, or to a pod (then ``container_id`` is the pod's id).

    ``pod`` and ``containers`` are the whole pod's state just after it, or the last known one
    of a pod that was removed.
    """

    kind: EventKind
    container_id: str
    at: int
    pod: PodRecord
    containers: tuple[ContainerRecord, ...] = ()


class PodFilter(Value, frozen=True):
    """Which pods to list; empty fields match everything, and ``front`` None any. ``id`` may be a
    unique-enough prefix."""

    id: str = ""
    ready: bool | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    front: str | None = ""


class ContainerFilter(Value, frozen=True):
    """Which containers to list; empty fields match everything, and ``front``, their pod's, None any."""

    id: str = ""
    pod_id: str = ""
    phase: ContainerPhase | None = None
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    front: str | None = ""


class ContainerUse(Value, frozen=True):
    """A running container and what it uses."""

    record: ContainerRecord
    stats: ContainerStats


class PodUse(Value, frozen=True):
    """A ready pod, what it uses, and the records of the containers in ``stats.containers``."""

    record: PodRecord
    stats: PodStats
    containers: tuple[ContainerRecord, ...] = ()


class Handler(Value, frozen=True):
    """A RuntimeClass handler and why it cannot be used now ("" when it can)."""

    name: str
    reason: str = ""
    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False
    user_namespaces_host_network: bool = False
