"""A pod that runs in a VM.

The VM's end is watched: when the machine dies or its agent is gone, every container has exited
(137, with the reason) and :meth:`VmSandbox.wait` returns. Nothing here restarts anything.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol

from orlop import tracing
from orlop.config import VmConfig
from orlop.errors import AlreadyExists, DeadlineExceeded, FailedPrecondition, NotFound, OrlopError
from orlop.host import process, tasks, threads
from orlop.host.seccomp import Filter
from orlop.host.tasks import Undo, together
from orlop.linux.changes import Change
from orlop.sandbox import seccomp
from orlop.sandbox.figures import Detail, PodStats
from orlop.sandbox.spec import (
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    PodSpec,
    Resources,
    Security,
    UserIds,
)
from orlop.sandbox.vm import blockdevices, changes, diskbound, hostgroup, translate
from orlop.sandbox.vm.checks import check_container, check_volumes
from orlop.sandbox.vm.clock import ClockKeeper, when
from orlop.sandbox.vm.clone import Clone, Clones
from orlop.sandbox.vm.container import GuestExecs, VmContainer
from orlop.sandbox.vm.files import ContainerFile, PodFile, PodFiles
from orlop.sandbox.vm.gate import Gate
from orlop.sandbox.vm.meter import VmMeter
from orlop.sandbox.vm.plugs import Plugs
from orlop.sandbox.vm.process import SIGKILL, GuestAttachment, GuestExec, PortConnection
from orlop.sandbox.vm.room import Room
from orlop.sandbox.vm.sockets import Relay
from orlop.sandbox.vm.volumes import Volumes
from orlop.volumes.records import VolumeUse
from orlop.wire import values as wire
from orlop.wire.messages import (
    Called,
    ContainerExited,
    Create,
    Delete,
    Dump,
    Event,
    ExecExited,
    Listening,
    Log,
    OutOfMemory,
    Resume,
    Signal,
    Start,
    State,
    Update,
)

log = logging.getLogger(__name__)

_STEP_TIMEOUT = 60.0
_KILL_TIMEOUT = 5.0
_SIGNAL_TIMEOUT = 30.0
_GUEST_LINES = 1000
_CONSOLE = 64 << 10
"""Bytes of the console that are told."""


class Teardown(Protocol):
    """What the driver gave the pod and takes back. Both are idempotent."""

    async def detach(self) -> None:
        """Give back the network, while its namespace is still there."""

    async def discard(self, *, attached: bool) -> None:
        """Remove the VM, which has ended; its network namespace stays while the pod is ``attached``."""


class VmSandbox:
    """See :class:`orlop.sandbox.base.Sandbox`. Made by the driver, which gives the teardown as well."""

    def __init__(
        self,
        spec: PodSpec,
        config: VmConfig,
        clone: Clone,
        files: PodFiles,
        pod: PodFile,
        *,
        plugs: Plugs,
        volumes: Volumes,
        teardown: Teardown,
        gate: Gate,
    ) -> None:
        self._spec = spec
        self._config = config
        self._clone = clone
        self._agent = clone.agent
        self._files = files
        self._pod = pod
        self._plugs = plugs
        self._volumes = volumes
        self._teardown = teardown
        self._gate = gate
        self._containers: dict[str, VmContainer] = {}
        self._execs = GuestExecs(clone.agent)
        self._relay = Relay(clone.agent, spec.id)
        self._clock = ClockKeeper(clone.machine, clone.agent)
        self.room = Room(spec, config, clone, pod)
        """The size of its VM."""
        self._meter = VmMeter(clone, cgroup=pod.cgroup, place=plugs.place, ledger=files.cpu_ledger)
        self._gone: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._stopping = False
        self._stopped = asyncio.Lock()
        self._torn_down = False
        self._guest_lines = 0
        self._failure = ""
        self._tasks = tasks.Tasks()
        self.timings: dict[str, float] = {}
        """Milliseconds that the steps of the pod's start took."""
        self.number = 0
        """Its number at the gate; a pod of an earlier daemon goes before all others."""
        self._agent.on_event = self._on_event
        self._watch = self._tasks.spawn(self._watch_machine(), f"the watch on the VM of pod {spec.id}")

    @property
    def pod_id(self) -> str:
        """See ``Sandbox``."""
        return self._spec.id

    @property
    def addresses(self) -> tuple[str, ...]:
        """See ``Sandbox``."""
        return self._pod.addresses

    @property
    def netns(self) -> str:
        """See ``Sandbox``."""
        return str(self._clone.netns)

    @property
    def info(self) -> dict[str, object]:
        """See ``Sandbox``."""
        machine = self._clone.machine
        return {
            "handler": "vm",
            "vm": self._clone.id,
            "pid": machine.pid,
            "accelerator": self._pod.accelerator,
            "guestKernel": self._pod.kernel,
            **self.room.info,
            "unmappedVolumes": self._plugs.unmapped_volumes,
            "timingsMs": dict(self.timings),
        }

    async def console(self) -> str:
        """See ``Sandbox``."""
        return await self._clone.machine.console_tail(_CONSOLE)

    def keep_clock(self, *, fresh: bool) -> None:
        """Begin to keep the guest's clock; see :meth:`ClockKeeper.keep`."""
        self._tasks.spawn(self._clock.keep(fresh=fresh), f"the clock of pod {self.pod_id}")

    async def wait(self) -> str:
        """See ``Sandbox``."""
        return await asyncio.shield(self._gone)

    async def check(self, spec: ContainerSpec) -> None:
        """See ``Sandbox``."""
        check_container(spec, self._containers)
        if spec.devices or any(mount.host_path for mount in spec.mounts):
            await threads.call(check_volumes, spec, self._agent.hello.features)

    async def create(self, spec: ContainerSpec) -> UserIds:
        """See ``Sandbox``."""
        await self.check(spec)
        await self.check_disk()
        self._check_alive()
        async with self._gate.place(self.number):
            self._check_alive()
            if spec.id in self._containers:
                raise AlreadyExists(f"container {spec.id} exists in pod {self.pod_id}")
            plan = self._plugs.plan(spec)
            container = VmContainer.fresh(spec, self._agent, plan)
            self._containers[spec.id] = container
            async with container.changing:
                return await self._create(spec, container, plan)

    async def _create(self, spec: ContainerSpec, container: VmContainer, plan: ContainerFile) -> UserIds:
        try:
            self._check_alive()
            self._files.write_container(plan)
            with tracing.span("vm.plug"):
                # To its end even when cancelled: a thread that mounts a volume cannot be called back, and
                # must have ended before anybody removes what it mounts below.
                (plugged, program, _), _ = await tasks.uncancelled(
                    together(
                        together(
                            self._plugs.plug(spec, plan),
                            threads.call(_filter, spec.security),
                            container.log.open(),
                        ),
                        self.room.fit(self._limits()),
                    )
                )
            message = translate.container(
                spec,
                plugged,
                streams=container.streams,
                seccomp=program.program,
                seccomp_flags=program.flags,
            )
            container.held = plugged.recorded(plan)
            self._files.write_container(await container.remember_log())
            await self._clock.settled()
            with tracing.span("vm.agent.create"):
                made = await self._agent.call(Create(container=message), _STEP_TIMEOUT)
            await self._pin(self._cpusets())
        except BaseException:
            await tasks.roll_back(f"the making of container {spec.id}", self._undo_create(container))
            raise
        container.pump()
        self._weigh()
        return UserIds(uid=made.uid, gid=made.gid, groups=made.groups)

    async def start(self, container_id: str) -> int:
        """See ``Sandbox``."""
        container = self._container(container_id)
        async with self._gate.place(self.number), container.changing:
            if container.running or container.exited.done():
                raise FailedPrecondition(f"container {container_id} was started before")
            with tracing.span("vm.agent.start"):
                await self._agent.call(Start(id=container_id), _STEP_TIMEOUT)
            container.running = not container.exited.done()
            return time.time_ns()

    async def wait_container(self, container_id: str) -> ExitStatus:
        """See ``Sandbox``."""
        return await self._container(container_id).wait()

    async def container_info(self, container_id: str) -> dict[str, object]:
        """See ``Sandbox``. The container's own processes are the guest's; here it is in its VM's."""
        self._container(container_id)
        return {"pid": self._clone.machine.pid, "vm": self._clone.id}

    async def signal(self, container_id: str, signal: int) -> None:
        """See ``Sandbox``."""
        if self._container(container_id).exited.done():
            return
        kill = signal == SIGKILL
        try:
            request = Signal(id=container_id, signal=signal, all=kill)
            await self._agent.call(request, _KILL_TIMEOUT if kill else _SIGNAL_TIMEOUT)
        except DeadlineExceeded as error:
            if not kill:
                raise
            # Only the guest could kill it, and nobody there listens: what can be ended is the machine.
            log.warning("pod %s: %s; its VM is ended instead", self.pod_id, error)
            await self._clone.machine.stop()

    async def delete(self, container_id: str) -> None:
        """See ``Sandbox``."""
        container = self._containers.get(container_id)
        if container is None:
            return
        async with container.changing:
            if self._containers.get(container_id) is container:
                await self._delete(container)

    async def _delete(self, container: VmContainer) -> None:
        container_id = container.spec.id
        await self._volumes.shown.forget(container_id)
        if not self._agent.closed:
            await self._agent.call(Delete(id=container_id), _STEP_TIMEOUT)
        container.lost("it was deleted while it ran")
        await container.drop()
        await self._plugs.unplug(container.held, running=not self._agent.closed)
        self._files.remove_container(container_id)
        self._containers.pop(container_id, None)

    async def update(self, container_id: str, resources: Resources) -> None:
        """See ``Sandbox``."""
        container = self._container(container_id)
        if resources.cpuset_cpus:
            await self._pin({**self._cpusets(), container_id: resources.cpuset_cpus})
            container.cpuset = resources.cpuset_cpus
        container.memory_limit = resources.memory_limit or container.memory_limit
        await self.room.fit(self._limits())
        await self._agent.call(Update(id=container_id, resources=translate.resources(resources)))

    async def freeze(self, container_id: str, *, frozen: bool) -> None:
        """See ``Sandbox``."""
        await self._running(container_id).freeze(frozen=frozen)

    async def resize(self, overhead: Resources, resources: Resources) -> Resources:
        """See ``Sandbox``."""
        changed = await self.room.change(overhead, resources, self._limits())
        self._tasks.spawn(self.room.hold(), f"the control group of pod {self.pod_id}")
        return changed

    async def reopen_log(self, container_id: str) -> None:
        """See ``Sandbox``."""
        self._files.write_container(await self._container(container_id).reopen_log())

    async def exec(self, container_id: str, spec: ExecSpec) -> GuestExec:
        """See ``Sandbox``."""
        self._running(container_id)
        return await self._execs.start(container_id, spec)

    def changes(self, container_id: str) -> AsyncGenerator[Sequence[Change], None]:
        """See ``Sandbox``."""
        return changes.told(self._agent, self._container(container_id).spec.id)

    def archive(self, container_id: str, *, changed: bool) -> AsyncGenerator[bytes, None]:
        """See ``Sandbox``."""
        return changes.packed(self._agent, self._container(container_id).spec.id, changed=changed)

    async def attach(self, container_id: str, *, stdin: bool) -> GuestAttachment:
        """See ``Sandbox``."""
        return self._running(container_id).attach(stdin=stdin)

    async def connect(self, port: int) -> PortConnection:
        """See ``Sandbox``."""
        return await PortConnection.open(self._agent, port)

    async def stats(self, detail: Detail = Detail.POD) -> PodStats:
        """See ``Sandbox``."""
        layers = {key: container.held.scratch for key, container in self._containers.items()}
        return await self._meter.measure(layers, detail)

    async def volume_usage(self, path: str) -> VolumeUse | None:
        """See ``Sandbox``."""
        return await self._volumes.usage(path)

    async def check_disk(self) -> None:
        """Raises ResourceExhausted when the pod takes more of the host's disk than it may."""
        bound = self._config.pod_disk_mib
        if bound and self._containers:
            logs = [
                container.spec.sink.log for container in self._containers.values() if container.spec.sink.log
            ]
            diskbound.check(self.pod_id, await threads.call(diskbound.taken, self._plugs.layers, logs), bound)

    async def fail(self, reason: str) -> None:
        """End the VM, and with it the pod, for that reason."""
        self._failure = reason
        await self._clone.machine.stop()

    async def stop(self) -> None:
        """See ``Sandbox``."""
        async with self._stopped:
            if self._torn_down:
                return
            self._stopping = True
            await tasks.uncancelled(self._tear_down())
            self._torn_down = True
            self._end("")

    async def _tear_down(self) -> None:
        undo = Undo(f"pod {self.pod_id}")
        await tasks.end(self._watch)
        await undo.step("its meter", self._meter.close())
        # Its processes first, then the plug is pulled, and while its memory is given back the plug-ins
        # work: nothing of the pod is to run on if its network cannot be taken down.
        await undo.step("its processes", self._kill_all())
        # What they wrote to an emptyDir is there for the pod's next sandbox.
        await undo.step("what it wrote", self._write_out())
        _, detached = await together(self._power_off(undo), undo.step("its network", self._teardown.detach()))
        await undo.step("what its VM had", self._teardown.discard(attached=not detached))
        await self._tasks.close()
        undo.finish()

    async def _power_off(self, undo: Undo) -> None:
        await undo.step("its VM", self._clone.machine.stop())
        # Whoever makes or removes a container now fails at its next step, and has ended before the
        # directories go: a volume that is being mounted below them would go with them.
        await undo.step("its agent", self._agent.close("the pod was stopped"))
        await undo.step("its connections", self._relay.close())
        for container in list(self._containers.values()):
            async with container.changing:
                if not container.exited.done():
                    container.lost("its pod was stopped")
                await undo.step(f"container {container.spec.id}", container.close())
        self._execs.lost("the pod was stopped")
        await undo.step("what is kept in step", self._volumes.close())
        await undo.step("its volumes", self._plugs.release())

    async def _write_out(self) -> None:
        try:
            await self._volumes.flush()
        except OrlopError as error:
            log.warning("pod %s: what its volumes hold may not be complete: %s", self.pod_id, error)

    async def release(self, clones: Clones) -> None:
        """Let the pod run on without this daemon; its output waits in the guest. Raises NotUndone."""
        undo = Undo(f"pod {self.pod_id}")
        self._agent.on_event = lambda event: None  # the next daemon asks for what happens from now on
        await undo.step("its watch", self._tasks.close())
        await undo.step("its connections", self._relay.close())
        await undo.step("its meter", self._meter.close())
        await undo.step("what is kept in step", self._volumes.close())
        await undo.step("its volumes", self._plugs.close())
        for container in self._containers.values():
            await undo.step(f"container {container.spec.id}", container.close())
        await undo.step("its VM", clones.release(self._clone))
        undo.finish()

    async def adopt(self, specs: tuple[ContainerSpec, ...]) -> None:
        """Take over what an earlier daemon left: called once, before anything else."""
        state = await self._agent.call(Dump(), _STEP_TIMEOUT)
        held = {container.id: container for container in self._files.containers()}
        offsets = {entry.stream: entry for entry in state.streams}
        known = {spec.id: spec for spec in specs}
        found: list[tuple[VmContainer, wire.ContainerState]] = []
        for entry in state.containers:
            if entry.id in known:
                container = await VmContainer.found(
                    known[entry.id],
                    self._agent,
                    held.get(entry.id, ContainerFile(id=entry.id)),
                    entry,
                    offsets,
                )
                self._containers[entry.id] = container
                devices = blockdevices.asked_of(container.spec)
                self._plugs.adopt(container.held, container.spec.mounts, devices)
                found.append((container, entry))
        for spec in specs:
            if spec.id not in self._containers:
                self._lost_container(spec, held.get(spec.id))
        resumed = tuple(pair for container, _ in found for pair in container.offsets)
        await self._agent.call(Resume(streams=resumed))
        self._volumes.adopt()
        for container, entry in found:
            await self._pump_again(container)
            if entry.exit is not None:
                self._spawn(self._finish(container, entry.exit, when(entry.exit, state)))
        await self._delete_strangers(state, known, held)

    def _lost_container(self, spec: ContainerSpec, held: ContainerFile | None) -> None:
        """The daemon died while it made or removed this one: the guest does not know it."""
        container = VmContainer(spec, self._agent, held or ContainerFile(id=spec.id))
        container.lost("the container is not in its VM any more")
        self._plugs.adopt(container.held)
        self._containers[spec.id] = container

    async def _pump_again(self, container: VmContainer) -> None:
        try:
            await container.log.open()
        except FailedPrecondition as error:
            log.warning("pod %s: %s", self.pod_id, error)
        self._files.write_container(await container.remember_log())
        container.pump()

    async def _delete_strangers(
        self, state: State, known: dict[str, ContainerSpec], held: dict[str, ContainerFile]
    ) -> None:
        """Containers that the journal does not know were being made when the daemon died."""
        for entry in state.containers:
            if entry.id not in known:
                try:
                    await self._agent.call(Delete(id=entry.id), _STEP_TIMEOUT)
                except OrlopError as error:
                    # It is nobody's; the pod's own containers need not suffer from it.
                    log.warning("pod %s: a container that nobody knows stays: %s", self.pod_id, error)
        for container_id, file in held.items():
            if container_id not in known:
                self._plugs.adopt(file)
                await self._plugs.unplug(file, running=True)
                self._files.remove_container(container_id)

    async def _undo_create(self, container: VmContainer) -> None:
        container_id = container.spec.id
        undo = Undo(f"container {container_id}")
        await undo.step("its sockets", self._volumes.shown.forget(container_id))
        if not self._agent.closed:
            await undo.step("its processes", self._agent.call(Delete(id=container_id), _STEP_TIMEOUT))
        await undo.step("its log", container.drop())
        await undo.step(
            "its disks and volumes", self._plugs.unplug(container.held, running=not self._agent.closed)
        )
        self._containers.pop(container_id, None)
        # Its file names what is left: the next daemon goes on with it, or it goes with the pod.
        undo.finish()
        self._files.remove_container(container_id)

    async def _kill_all(self) -> None:
        """Kill what runs, and wait until it is dead, for a while.

        A dead process has no written pages left that its volumes do not have: the guest writes
        them out when the process lets go of its mappings.
        """
        running = [container for container in self._containers.values() if container.running]
        if running and not self._agent.closed:
            with suppress(OrlopError, TimeoutError):
                async with asyncio.timeout(_KILL_TIMEOUT):
                    await together(*(self._kill(container) for container in running))

    async def _kill(self, container: VmContainer) -> None:
        await self._agent.call(Signal(id=container.spec.id, signal=SIGKILL, all=True))
        await container.wait()

    async def _watch_machine(self) -> None:
        ended = await self._clone.wait()
        reason = self._failure or ended
        log.warning("the VM of pod %s has ended: %s", self.pod_id, reason)
        undo = Undo(f"pod {self.pod_id}")
        await undo.step("its VM", self._clone.machine.stop())
        await undo.step("its agent", self._agent.close(reason))
        self._execs.lost(reason)
        for container in self._containers.values():
            container.lost(reason)
        self._end(reason)
        undo.finish()

    def _end(self, reason: str) -> None:
        if not self._gone.done():
            self._gone.set_result(reason)

    def _on_event(self, event: Event) -> None:
        if isinstance(event, ExecExited):
            self._execs.exited(event.id, event.exit)
            return
        if isinstance(event, Log):
            self._guest_lines += 1
            if self._guest_lines > _GUEST_LINES:
                return  # what a guest says is not to fill the host's disk
            level = {"debug": logging.DEBUG, "info": logging.DEBUG, "warning": logging.WARNING}
            log.log(level.get(event.level, logging.ERROR), "guest of pod %s: %s", self.pod_id, event.text)
            return
        container = self._containers.get(event.id)
        if isinstance(event, Listening):
            self._volumes.listeners.changed(event)
        elif isinstance(event, Called):
            held = container.held.sockets if container is not None else ()
            self._relay.called(event, (*held, *self._volumes.shown.of(event.id)))
        elif container is None:
            return
        elif isinstance(event, OutOfMemory):
            container.oom = True
        elif isinstance(event, ContainerExited) and not container.ending:
            # Said once: each would be a task that waits for the output's end.
            container.ending = True
            # All of a pod's times are the host's: a guest's clock need not agree with it.
            self._spawn(self._finish(container, event.exit, time.time_ns()))

    async def _finish(self, container: VmContainer, exit_status: wire.Exit, at: int) -> None:
        # Whoever hears of the end reads what was said about it.
        await self._volumes.copies.write_back(container.spec.id)
        await container.finish(exit_status, at)

    def _weigh(self) -> None:
        """The VM is as dear to the host as the dearest of its containers."""
        wanted = [container.spec.resources.oom_score_adj for container in self._containers.values()]
        process.set_oom_score(self._clone.machine.pid, min(wanted, default=0))

    def _limits(self) -> list[int]:
        return [one.memory_limit for one in self._containers.values() if not one.exited.done()]

    def _cpusets(self) -> dict[str, str]:
        return {container_id: container.cpuset for container_id, container in self._containers.items()}

    async def _pin(self, sets: dict[str, str]) -> None:
        if self._pod.cgroup:
            await hostgroup.pin(self._pod.cgroup, sets.values())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.spawn(work, f"the end of a container of pod {self.pod_id}")

    def _container(self, container_id: str) -> VmContainer:
        container = self._containers.get(container_id)
        if container is None:
            raise NotFound(f"container {container_id} does not exist in pod {self.pod_id}")
        return container

    def _running(self, container_id: str) -> VmContainer:
        container = self._container(container_id)
        self._check_alive()
        if not container.running:
            raise FailedPrecondition(f"container {container_id} does not run")
        return container

    def _check_alive(self) -> None:
        if self._stopping or self._agent.closed:
            raise FailedPrecondition(f"pod {self.pod_id} does not run any more")


def _filter(security: Security) -> Filter:
    """The system-call filter; a privileged container has none, whatever was asked for."""
    if security.privileged:
        return Filter()
    return seccomp.compile_bpf(security.seccomp, capabilities=security.capabilities)
