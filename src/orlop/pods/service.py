"""The one object that the CRI servicers and the streaming server talk to.

Every id may be the full one or a unique prefix of it. Raises :mod:`orlop.errors` only. What
stops or removes is idempotent, and does nothing for what does not exist. A call on a pod that an earlier
daemon left waits until that pod is found again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from orlop import config as configuration
from orlop.errors import NotUndone, OrlopError
from orlop.host.tasks import Undo
from orlop.linux.changes import Change
from orlop.pods import disposal, outline, restarts
from orlop.pods.aftermath import Aftermath
from orlop.pods.changes import ChangedFiles
from orlop.pods.containers import Containers
from orlop.pods.disposal import Disposal
from orlop.pods.events import Events
from orlop.pods.execs import ExecResult, Execs
from orlop.pods.handlers import Handlers
from orlop.pods.health import Health
from orlop.pods.journal import Journal
from orlop.pods.ledger import Ledger
from orlop.pods.meter import Meter
from orlop.pods.names import Names
from orlop.pods.node import Node
from orlop.pods.observer import Observer
from orlop.pods.ports import Images, NamedVolumes, NoNamedVolumes
from orlop.pods.records import (
    ContainerFilter,
    ContainerPhase,
    ContainerRecord,
    ContainerUse,
    Event,
    Handler,
    HealthResult,
    PodFilter,
    PodRecord,
    PodUse,
)
from orlop.pods.recovery import Recovery
from orlop.pods.renewal import Renewal
from orlop.pods.requests import ContainerRequest
from orlop.pods.restarts import Restarts
from orlop.pods.sandboxes import Pods
from orlop.sandbox.base import Connection, ProcessIO, SandboxDriver, StartedProcess
from orlop.sandbox.figures import Detail, LayerUse
from orlop.sandbox.spec import ExecSpec, PodSpec, Resources
from orlop.volumes.records import VolumeUse

log = logging.getLogger(__name__)

ALL_PODS = PodFilter()
ALL_CONTAINERS = ContainerFilter()

STATUS_PATIENCE = 1.0
"""Seconds that a question about a pod may wait for its recovery."""


async def _no_network() -> str:
    return ""


class PodService:
    """Pods and containers of this node; :meth:`open` before use, :meth:`close` after it.

    ``absent`` are handlers that this machine cannot offer, with the reason. ``network`` says why
    pods would get no network now, or "". ``volumes`` are the named ones, None where there are none.
    """

    def __init__(
        self,
        config: configuration.Config,
        images: Images,
        drivers: Mapping[str, SandboxDriver],
        *,
        absent: Mapping[str, str] | None = None,
        network: Callable[[], Awaitable[str]] = _no_network,
        volumes: NamedVolumes | None = None,
    ) -> None:
        self.ledger = Ledger(Journal(config.root_dir / "journal.db"))
        events = Events(self.ledger)
        self._handlers = Handlers(drivers, config.default_handler, absent, config.handler_names)
        self._node = Node(ledger=self.ledger, events=events, handlers=self._handlers, images=images)
        self._network = network
        self._execs = Execs(self._node)
        self._health = Health(self._node, self._execs)
        self._names = Names(self._node)
        self._containers = Containers(self._node, self._health, self._names)
        self._pods = Pods(self._node, self._containers, self._names)
        self._changes = ChangedFiles(self._node)
        self._meter = Meter(self._node)
        self._recovery = Recovery(self._node, self._pods, self._containers)
        self._disposal = Disposal(self._node, self._pods, self._containers)
        named = volumes or NoNamedVolumes()
        renewal = Renewal(self._node, self._pods, self._containers, named)
        self._restarts = Restarts(self._node, self._containers, renewal, named)
        self._aftermath = Aftermath(self._node, self._disposal, self._restarts)

    async def open(self) -> dict[str, str]:
        """Read the journal, open the drivers, and begin to find again what runs; :meth:`recovered` ends that.

        Returns the handlers that cannot be used, with the reason.
        """
        await self.ledger.open()
        absent = await self._handlers.open()
        await self._recovery.begin()
        self._node.tasks.spawn(self._recovery.janitor(), "janitor")
        self._node.tasks.spawn(self._aftermath.run(), "aftermath")
        return absent

    async def recovered(self) -> None:
        """Wait until all that an earlier daemon left is found again or removed."""
        await self._recovery.finished()

    async def close(self) -> None:
        """Undo what is half made and let go of everything; pods that run keep running."""
        undo = Undo("the pods")
        await undo.step("what is under way", self._node.tasks.close())
        await undo.step("their handlers", self._handlers.close())
        await undo.step("their journal", self.ledger.close())
        try:
            undo.finish()
        except NotUndone as error:
            log.error("%s", error)

    def observe(self, observer: Observer) -> None:
        """Have ``observer`` hear of each step from now on."""
        self._node.observer = observer

    def known(self) -> tuple[list[PodRecord], list[ContainerRecord]]:
        """All pods and containers that callers may see."""
        return self.pods(PodFilter(front=None)), self.containers(ContainerFilter(front=None))

    # Pods

    async def run_pod(self, spec: PodSpec) -> str:
        """Start a pod; its id. A repeated call joins the first."""
        return await self._pods.run(spec)

    async def stop_pod(self, pod_id: str) -> None:
        """Kill what runs in the pod, release its network."""
        await self._node.known(pod_id)
        await self._pods.stop(pod_id)

    async def remove_pod(self, pod_id: str) -> None:
        """Remove the pod and its containers, stopping them first."""
        await self._node.known(pod_id)
        await self._pods.remove(pod_id)

    def pod(self, pod_id: str) -> PodRecord:
        """One pod. Raises NotFound."""
        return self._node.pod(pod_id)

    def pods(self, filter: PodFilter = ALL_PODS) -> list[PodRecord]:  # noqa: A002 - CRI's word
        """The pods that match."""
        return self.ledger.pods(filter)

    def pod_info(self, pod_id: str) -> dict[str, object]:
        """For verbose status: which handler and why, and what the sandbox tells of itself."""
        record = self._node.pod(pod_id)
        sandbox = self._node.sandboxes.get(record.id)
        info = dict(sandbox.info) if sandbox is not None else {}
        return {
            "handler": record.handler,
            "handlerReason": record.handler_reason,
            "reason": record.reason,
            "recovering": record.id in self._node.recovering,
            "netns": record.netns,
            "ports": [
                {
                    "address": port.host_ip,
                    "port": port.host_port,
                    "inside": port.container_port,
                    "protocol": port.protocol,
                }
                for port in record.spec.port_mappings
            ],
            "pid": info.get("pid", 0),
            "sandbox": info,
        }

    async def update_pod_resources(self, pod_id: str, overhead: Resources, resources: Resources) -> None:
        """Change the limits of the pod as a whole."""
        await self._node.known(pod_id)
        await self._pods.update(pod_id, overhead, resources)

    # Containers

    async def create_container(self, request: ContainerRequest) -> str:
        """Make a container ready to start; its id. A repeated call joins the first."""
        await self._node.known(request.pod_id)
        pod = self._node.pod(request.pod_id)
        disposal.check(request.annotations, pod)
        restarts.check(request.annotations, pod)
        return await self._containers.create(request)

    async def start_container(self, container_id: str) -> None:
        """Run the container's process."""
        await self._node.known_of(container_id)
        await self._containers.start(container_id)

    async def stop_container(self, container_id: str, timeout: float) -> None:
        """Stop signal, then KILL after ``timeout`` seconds."""
        await self._node.known_of(container_id)
        await self._restarts.leave(container_id)
        await self._containers.stop(container_id, timeout)

    async def signal_container(self, container_id: str, number: int) -> None:
        """Send a signal to the container's first process; KILL goes to all of its processes."""
        await self._node.known_of(container_id)
        await self._restarts.leave_killed(container_id, number)
        await self._containers.signal(container_id, number)

    async def pause_container(self, container_id: str) -> None:
        """Stop a running container's processes where they are."""
        await self._node.known_of(container_id)
        await self._containers.pause(container_id)

    async def resume_container(self, container_id: str) -> None:
        """Let a paused container's processes go on."""
        await self._node.known_of(container_id)
        await self._containers.resume(container_id)

    async def rename_container(self, container_id: str, name: str) -> None:
        """Give a container of our own clients another name. Raises AlreadyExists for one that is taken."""
        await self._names.rename(container_id, name)

    async def check_health(self, container_id: str) -> HealthResult:
        """Run the health check of a running container now. Raises FailedPrecondition for one without."""
        return await self._health.check(container_id)

    async def ended_container(self, container_id: str) -> ContainerRecord | None:
        """Wait until the container does not run; what it is then, None when it was removed."""
        return await self._containers.ended(container_id)

    async def wait_container(self, container_id: str) -> int:
        """The exit code of a container once it has ended, also if it went then. Raises NotFound."""
        await self._node.known_of(container_id)
        return await self._disposal.wait(container_id)

    async def remove_container(self, container_id: str) -> None:
        """Remove the container, killing it first."""
        await self._node.known_of(container_id)
        await self._containers.remove(container_id)

    def container(self, container_id: str) -> ContainerRecord:
        """One container. Raises NotFound."""
        return self._node.container(container_id)

    def containers(self, filter: ContainerFilter = ALL_CONTAINERS) -> list[ContainerRecord]:  # noqa: A002
        """The containers that match."""
        return self.ledger.containers(filter)

    async def container_info(self, container_id: str) -> dict[str, object]:
        """For verbose status: the pod and its handler, the process on this host, and all that was decided."""
        record = self._node.container(container_id)
        pod = self.ledger.find_pod(record.pod_id)
        sandbox = self._node.sandboxes.get(record.pod_id)
        found: dict[str, object] = {}
        if sandbox is not None and record.phase in (ContainerPhase.CREATED, ContainerPhase.RUNNING):
            # A container that is going away meanwhile is still shown.
            with contextlib.suppress(OrlopError):
                found = await sandbox.container_info(record.id)
        return {
            "sandboxID": record.pod_id,
            "handler": pod.handler if pod is not None else "",
            "pid": 0,
            "paused": record.paused,
            "restarts": record.restarts,
            "runtimeSpec": outline.runtime_spec(record),
            "layers": len(record.spec.root.layers),
            **outline.health(record),
            **found,
        }

    async def update_container(self, container_id: str, resources: Resources) -> None:
        """Change the container's limits."""
        await self._node.known_of(container_id)
        await self._containers.update(container_id, resources)

    async def change_container(self, container_id: str, resources: Resources) -> None:
        """The same for the observer itself, which is not asked."""
        await self._containers.change(container_id, resources)

    async def reopen_log(self, container_id: str) -> None:
        """Close and reopen the container's log file."""
        await self._node.known_of(container_id)
        await self._containers.reopen_log(container_id)

    # Streams

    async def exec_sync(self, container_id: str, args: tuple[str, ...], timeout: float = 0) -> ExecResult:
        """Run a command to its end; DeadlineExceeded after ``timeout`` seconds (0: no limit)."""
        return await self._execs.exec_sync(container_id, args, timeout)

    async def exec(self, container_id: str, spec: ExecSpec) -> StartedProcess:
        """Start a command; the caller closes its streams."""
        return await self._execs.exec(container_id, spec)

    async def attach(self, container_id: str, *, stdin: bool) -> ProcessIO:
        """Join the container's streams; the caller closes them."""
        return await self._execs.attach(container_id, stdin=stdin)

    async def connect(self, pod_id: str, port: int) -> Connection:
        """Connect to a port on the pod's loopback; the caller closes it."""
        return await self._execs.connect(pod_id, port)

    def changes(self, container_id: str) -> AsyncGenerator[Sequence[Change], None]:
        """What a container has changed in its image's files, in parts; its pod must run."""
        return self._changes.of(container_id)

    def archive(self, container_id: str, *, changed: bool = False) -> AsyncGenerator[bytes, None]:
        """The files of a container as a tar archive, in pieces, or as a layer what it has ``changed``; its
        pod must run."""
        return self._changes.archive(container_id, changed=changed)

    # Statistics and events

    async def container_stats(self, container_id: str) -> ContainerUse:
        """What one container uses."""
        await self._node.known_of(container_id, STATUS_PATIENCE)
        return await self._meter.container(container_id)

    async def list_container_stats(
        self,
        filter: ContainerFilter = ALL_CONTAINERS,  # noqa: A002
    ) -> list[ContainerUse]:
        """What the running containers that match use."""
        return await self._meter.containers(filter)

    async def pod_stats(self, pod_id: str) -> PodUse:
        """What one pod uses."""
        await self._node.known(pod_id, STATUS_PATIENCE)
        return await self._meter.pod(pod_id)

    async def list_pod_stats(
        self,
        filter: PodFilter = ALL_PODS,  # noqa: A002
        detail: Detail = Detail.POD,
    ) -> list[PodUse]:
        """What the ready pods that match use."""
        return await self._meter.pods(filter, detail)

    async def layers(self) -> list[LayerUse]:
        """What the writable layers of each handler take; a handler that cannot tell is left out."""
        found = await asyncio.gather(
            *(driver.layers() for driver in self._handlers.drivers), return_exceptions=True
        )
        return [one for one in found if isinstance(one, LayerUse)]

    async def console(self, pod_id: str) -> str:
        """The last words of the kernel in the pod's VM; "" for a pod without one, or one that is gone."""
        sandbox = self._node.sandboxes.get(pod_id)
        return "" if sandbox is None else await sandbox.console()

    async def volume_usage(self, path: Path) -> VolumeUse | None:
        """How full the volume is that the host has at ``path``, by a pod whose machine alone knows its files;
        None when there is none."""
        for sandbox in list(self._node.sandboxes.values()):
            with contextlib.suppress(OrlopError):  # one that has just ended
                use = await sandbox.volume_usage(os.fspath(path))
                if use is not None:
                    return use
        return None

    def gauges(self) -> dict[str, float]:
        """What the handlers count, by the names of metrics."""
        values: dict[str, float] = {}
        for driver in self._handlers.drivers:
            values.update(getattr(driver, "gauges", dict)())
        return values

    def events(self) -> AsyncIterator[Event]:
        """What happens from now on. ResourceExhausted for a reader that lags too far."""
        return self._node.events.subscribe()

    # The node

    async def handlers(self) -> list[Handler]:
        """The RuntimeClass handlers."""
        return await self._handlers.all()

    async def runtime_reason(self) -> str:
        """Why a pod that names no handler cannot be run now, or ""."""
        return await self._handlers.default_reason()

    async def network_reason(self) -> str:
        """Why pods would get no network now, or ""."""
        return await self._network()
