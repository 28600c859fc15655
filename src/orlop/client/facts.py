"""What the daemon tells about its objects, as plain values. Times are seconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass

from orlop.errors import OrlopError


class CommandFailed(OrlopError):
    """A command ended with another exit code than 0."""


@dataclass(frozen=True)
class Result:
    """How a command ended and what it wrote."""

    exit_code: int
    stdout: bytes = b""
    stderr: bytes = b""

    @property
    def text(self) -> str:
        """What it wrote to stdout, as text."""
        return self.stdout.decode(errors="replace")

    def check(self) -> Result:
        """Itself when the exit code is 0. Raises CommandFailed with the end of stderr."""
        if self.exit_code == 0:
            return self
        words = self.stderr[-500:].decode(errors="replace").strip()
        raise CommandFailed(
            f"the command ended with exit code {self.exit_code}{': ' if words else ''}{words}"
        )


@dataclass(frozen=True)
class ContainerFacts:
    """A container. ``state`` is created, running, exited or unknown; ``exit_code`` is None while it runs.

    ``health`` is starting, healthy or unhealthy, and "" for one that nobody checks.
    """

    id: str
    name: str
    pod_id: str
    image: str
    state: str
    exit_code: int | None = None
    reason: str = ""
    health: str = ""


@dataclass(frozen=True)
class PodFacts:
    """A pod. ``handler`` is ``vm``, ``process``, or "" for the daemon's default."""

    id: str
    name: str
    namespace: str
    ready: bool
    handler: str
    ip: str = ""


@dataclass(frozen=True)
class ImageFacts:
    """An image on the node; ``size`` in bytes."""

    id: str
    tags: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class Event:
    """Something happened to a container, or to a pod, which then is named by ``container_id``, too.

    ``kind`` is created, started, stopped, deleted or health_status; ``health`` is what it is then.
    """

    time: float
    kind: str
    container_id: str
    pod_id: str
    health: str = ""


@dataclass(frozen=True)
class FileChange:
    """A file that a container has changed (``C``), added (``A``) or deleted (``D``) in its image.

    What in ``path`` is not UTF-8 is as ``os.fsdecode`` has it.
    """

    kind: str
    path: str


@dataclass(frozen=True)
class ContainerUse:
    """What a container uses. ``cpu`` is seconds of processor time so far, the others are bytes."""

    container_id: str
    name: str
    cpu: float
    memory: int
    disk: int
