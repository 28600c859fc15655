"""The one interface between pods and what they run in.

A :class:`SandboxDriver` makes sandboxes; there is one per RuntimeClass handler (``vm``,
``process``). A :class:`Sandbox` is one pod that runs. Drivers keep whatever they need to find
a sandbox again after the daemon was killed in a directory of their own, named after the pod's
id; :meth:`SandboxDriver.recover` and :meth:`SandboxDriver.discard` work from it alone.

Every method may be cancelled; a cancelled or failed ``run``/``create`` leaves nothing behind.
``stop``, ``remove`` and ``discard`` are idempotent.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Protocol

from orlop.linux.changes import Change
from orlop.sandbox.figures import Detail, LayerUse, PodStats
from orlop.sandbox.spec import (
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    PodSpec,
    Resources,
    UserIds,
)
from orlop.value import Value
from orlop.volumes.records import VolumeUse


class Features(Value, frozen=True):
    """What a handler can do (CRI ``RuntimeHandlerFeatures``)."""

    recursive_read_only_mounts: bool = False
    user_namespaces: bool = False
    user_namespaces_host_network: bool = False


class ProcessIO(Protocol):
    """The streams of an exec or an attach. Whoever gets one must call :meth:`close`.

    Flow control is built in: a reader that stops reading stops the process, never the daemon.
    """

    def output(self) -> AsyncIterator[tuple[int, bytes]]:
        """Yield ``(1, data)`` for stdout and ``(2, data)`` for stderr until both have ended."""
        ...

    async def write(self, data: bytes) -> None:
        """Send stdin bytes; returns when they fit the window. Ignored after the process ended."""
        ...

    async def close_stdin(self) -> None:
        """Half-close: the process reads end of file."""
        ...

    async def resize(self, width: int, height: int) -> None:
        """Set the terminal's size in character cells; ignored without a terminal."""
        ...

    async def wait(self) -> ExitStatus:
        """The exit of the process; for an attach, of the container."""
        ...

    async def close(self) -> None:
        """Release the streams. An exec whose process still runs is killed; an attach only detaches."""
        ...


class StartedProcess(ProcessIO, Protocol):
    """An exec: its streams, and the process itself."""

    async def signal(self, number: int) -> None:
        """Send it a signal; one that has ended is no error."""
        ...


class Connection(Protocol):
    """A byte stream to a port inside the pod."""

    async def read(self, limit: int) -> bytes:
        """Up to ``limit`` bytes; empty at end of stream."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        ...

    async def write_eof(self) -> None:
        """Half-close our side."""
        ...

    async def close(self) -> None:
        """Release the connection."""
        ...


class Sandbox(Protocol):
    """A pod that runs."""

    @property
    def pod_id(self) -> str:
        """The pod's id."""
        ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """The pod's IP addresses, the primary first; empty on the host's network."""
        ...

    @property
    def netns(self) -> str:
        """Path of the pod's network namespace on the host, or "" on the host's network."""
        ...

    @property
    def info(self) -> dict[str, object]:
        """For verbose status and for people: handler, accelerator, guest kernel, pids, timings."""
        ...

    async def console(self) -> str:
        """The last that the kernel of the pod's own machine said; "" for a pod without one."""
        ...

    async def volume_usage(self, path: str) -> VolumeUse | None:
        """How full the volume is that the host has at ``path``, as its user knows it; None where the host
        itself knows, and for one that the pod does not have."""
        ...

    async def wait(self) -> str:
        """Return when the sandbox is no more, with the reason ("" if it was asked to stop)."""
        ...

    async def check(self, spec: ContainerSpec) -> None:
        """Raise what :meth:`create` would raise for a container that can never be made here as asked for."""
        ...

    async def create(self, spec: ContainerSpec) -> UserIds | None:
        """Make the container ready to start. Checks what can be checked before: an unknown user
        or an unreadable volume fail here or in :meth:`start`, and so does a missing executable,
        with CannotRun. Returns who it will run as, where that is known by now."""
        ...

    async def start(self, container_id: str) -> int:
        """Run the container's process; returns the time it started at (ns)."""
        ...

    async def wait_container(self, container_id: str) -> ExitStatus:
        """Wait for the container's exit; answers at once, and any number of times, after it."""
        ...

    async def container_info(self, container_id: str) -> dict[str, object]:
        """For verbose status and for people: ``pid`` is the process on this host that the container is,
        or is in; ``runtimeSpec`` the document that it runs from, where there is one."""
        ...

    async def signal(self, container_id: str, signal: int) -> None:
        """Send a signal to the container's first process; KILL goes to all of its processes."""
        ...

    async def freeze(self, container_id: str, *, frozen: bool) -> None:
        """Stop all processes of a running container where they are, or let them go on. Idempotent.

        KILL ends one that is stopped so; every other signal waits until it goes on."""
        ...

    async def delete(self, container_id: str) -> None:
        """Kill what still runs, release the container's disks and mounts. Idempotent."""
        ...

    def changes(self, container_id: str) -> AsyncGenerator[Sequence[Change], None]:
        """What the container has changed in its image's files, in parts. Raises FailedPrecondition for one
        whose root is a directory of the host."""
        ...

    def archive(self, container_id: str, *, changed: bool) -> AsyncGenerator[bytes, None]:
        """The files of the container's root as a tar archive, in pieces; only what it has ``changed`` in its
        image's, as a layer above that. Raises FailedPrecondition."""
        ...

    async def update(self, container_id: str, resources: Resources) -> None:
        """Change a container's limits; zero fields stay as they are."""
        ...

    async def resize(self, overhead: Resources, resources: Resources) -> Resources:
        """Change the limits of the pod as a whole, and a VM with them; those that hold from now on."""
        ...

    async def reopen_log(self, container_id: str) -> None:
        """Close and reopen the container's log file, after it was renamed away."""
        ...

    async def exec(self, container_id: str, spec: ExecSpec) -> StartedProcess:
        """Start a process in a running container."""
        ...

    async def attach(self, container_id: str, *, stdin: bool) -> ProcessIO:
        """Join the streams of a running container's first process."""
        ...

    async def connect(self, port: int) -> Connection:
        """Connect to a TCP port on the pod's loopback."""
        ...

    async def stats(self, detail: Detail = Detail.POD) -> PodStats:
        """Use of the pod and of all its running containers; what was not asked for is 0."""
        ...

    async def stop(self) -> None:
        """Kill all that runs and release network and VM. The exits stay readable by
        :meth:`wait_container`. The directory that ``discard`` needs stays."""
        ...


class SandboxDriver(Protocol):
    """Makes, finds and removes sandboxes of one handler."""

    @property
    def name(self) -> str:
        """The handler's name."""
        ...

    @property
    def features(self) -> Features:
        """What pods of this handler may ask for."""
        ...

    def check(self, spec: PodSpec) -> None:
        """Refuse with the reason (InvalidArgument, FailedPrecondition) what this handler cannot serve."""
        ...

    async def open(self) -> None:
        """Get ready: find the tools, probe the accelerator, fill the pool in the background."""
        ...

    async def close(self) -> None:
        """Let go of everything that is not a running pod. Running pods keep running."""
        ...

    async def ready(self) -> str:
        """Why no pod could be run now, or "" when one can."""
        ...

    async def run(self, spec: PodSpec) -> Sandbox:
        """Start a pod: its network, its VM or namespaces."""
        ...

    async def recover(self, spec: PodSpec, containers: tuple[ContainerSpec, ...]) -> Sandbox:
        """Find a pod again that ran before this daemon did; NotFound if it runs no more.

        Unavailable, DeadlineExceeded, ResourceExhausted and OSError say that another try may find it."""
        ...

    async def discard(self, pod_id: str) -> None:
        """Remove every trace of a pod: processes, network, leases, mounts, disks, directories."""
        ...

    async def layers(self) -> LayerUse:
        """What the writable layers of all containers take together, and where they are."""
        ...

    async def traces(self) -> list[str]:
        """The ids of all pods that the driver keeps anything of, for a daemon whose records are lost."""
        ...
