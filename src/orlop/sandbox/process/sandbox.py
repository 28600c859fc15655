"""A pod as namespaces on the host; implements ``Sandbox``."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Iterable, Sequence
from pathlib import Path

from orlop.errors import AlreadyExists, FailedPrecondition, NotFound, of_system
from orlop.host import cgroups, process, tasks, threads
from orlop.host.cgroups import Cgroup
from orlop.host.tasks import Undo, beside, together
from orlop.linux.changes import Change, mounted_in
from orlop.net import outside
from orlop.net.network import PodNetwork
from orlop.sandbox import crilog
from orlop.sandbox.base import Connection, ProcessIO, StartedProcess
from orlop.sandbox.figures import Detail, LayerUse, PodStats
from orlop.sandbox.process import checks, conmon, layout, oci, podgroup, podns, streams
from orlop.sandbox.process.container import ProcessContainer, Tools, owners_of
from orlop.sandbox.process.layout import ContainerProcesses, PodPaths, PodState
from orlop.sandbox.process.meter import PodMeter
from orlop.sandbox.spec import (
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    NamespaceMode,
    PodSpec,
    Resources,
    UserIds,
)
from orlop.volumes.records import VolumeUse


class ProcessSandbox:
    """One running pod. Made by the driver; see ``Sandbox`` for what the methods promise."""

    def __init__(
        self,
        tools: Tools,
        network: PodNetwork,
        spec: PodSpec,
        paths: PodPaths,
        state: PodState,
        holder: podns.Holder | None = None,
    ) -> None:
        self._tools = tools
        self._network = network
        self._spec = spec
        self._paths = paths
        self._state = state
        self._holder = holder
        self._containers: dict[str, ProcessContainer] = {}
        self._specs: dict[str, ContainerSpec] = {}
        own = state.cgroup if podgroup.alone(state.cgroup, spec) else ""
        self._meter = PodMeter(own, paths.root.parent, paths.cpu_ledger)
        self._stopped = asyncio.Event()
        self._stopping = asyncio.Lock()
        self._closing = False

    # What it is

    @property
    def pod_id(self) -> str:
        """See ``Sandbox``."""
        return self._spec.id

    @property
    def addresses(self) -> tuple[str, ...]:
        """See ``Sandbox``."""
        return self._state.addresses

    @property
    def netns(self) -> str:
        """See ``Sandbox``."""
        return "" if self._on_host_network else os.fspath(self._paths.namespace("net"))

    @property
    def _on_host_network(self) -> bool:
        return self._spec.namespaces.network is NamespaceMode.NODE

    @property
    def info(self) -> dict[str, object]:
        """See ``Sandbox``."""
        runtime = self._tools.runtime
        return {
            "handler": "process",
            "runtime": f"{runtime.name} {runtime.version}".strip(),
            "cgroup": self._state.cgroup,
            "pid": self._state.holder.pid,
            "pids": {key: item.state.init.pid for key, item in self._containers.items() if item.state},
        }

    async def console(self) -> str:
        """See ``Sandbox``."""
        return ""

    async def volume_usage(self, path: str) -> VolumeUse | None:
        """See ``Sandbox``. What it has the host has mounted."""
        return None

    async def wait(self) -> str:
        """See ``Sandbox``. Only a shared PID namespace can end by itself."""
        holder = self._state.holder
        if not holder.pid:
            await self._stopped.wait()
            return ""
        async with beside(self._stopped.wait()) as stopped, beside(process.wait_pid(holder.pid)) as died:
            await asyncio.wait((stopped, died), return_when=asyncio.FIRST_COMPLETED)
            return "" if stopped.done() else "the first process of the pod's PID namespace was killed"

    # Containers

    async def adopt(self, container_id: str, spec: ContainerSpec, state: ContainerProcesses | None) -> None:
        """Take over a container of an earlier daemon."""
        found = self._add(container_id, spec, state)
        if state is not None:
            await found.forward_again(spec)

    def _add(
        self, container_id: str, spec: ContainerSpec, state: ContainerProcesses | None = None
    ) -> ProcessContainer:
        paths = self._paths.container(container_id)
        found = ProcessContainer(self._tools, container_id, paths, state)
        self._containers[container_id] = found
        self._specs[container_id] = spec
        self._meter.add(container_id, paths.rootfs)
        return found

    def _container(self, container_id: str) -> ProcessContainer:
        try:
            return self._containers[container_id]
        except KeyError as error:
            raise NotFound(f"container {container_id[:12]} is not in pod {self.pod_id[:12]}") from error

    async def check(self, spec: ContainerSpec) -> None:
        """See ``Sandbox``."""
        checks.check_container(spec, self._spec, self._tools.runtime)

    async def create(self, spec: ContainerSpec) -> UserIds:
        """See ``Sandbox``."""
        if self._closing:
            raise FailedPrecondition(f"pod {self.pod_id[:12]} is stopped or being stopped")
        if spec.id in self._containers:
            raise AlreadyExists(f"container {spec.id[:12]} exists in pod {self.pod_id[:12]}")
        await self.check(spec)
        target = self._target(spec)
        container = self._add(spec.id, spec)
        try:
            return await container.create(
                self._spec, spec, self._paths, cgroup=self._state.cgroup, target_pid=target
            )
        except OSError as error:
            raise of_system(error, f"container {spec.name}: {error}") from error

    def _target(self, spec: ContainerSpec) -> int:
        if spec.namespaces.pid is not NamespaceMode.TARGET:
            return 0
        target = self._container(spec.namespaces.target_container)
        if not target.running or target.state is None:
            raise FailedPrecondition(
                f"container {spec.name}: its target {target.id[:12]} does not run, "
                "so its PID namespace cannot be shared"
            )
        return target.state.init.pid

    async def start(self, container_id: str) -> int:
        """See ``Sandbox``."""
        return await self._container(container_id).start()

    async def wait_container(self, container_id: str) -> ExitStatus:
        """See ``Sandbox``."""
        return await self._container(container_id).wait()

    async def container_info(self, container_id: str) -> dict[str, object]:
        """See ``Sandbox``."""
        container = self._container(container_id)
        found: dict[str, object] = {}
        if container.state is not None:
            found = {"pid": container.state.init.pid, "cgroup": container.state.cgroup}
        document = await threads.call(layout.load_document, container.paths.document)
        return found if document is None else {**found, "runtimeSpec": document}

    async def signal(self, container_id: str, signal: int) -> None:
        """See ``Sandbox``."""
        await threads.call(self._container(container_id).signal, signal, everyone=True)

    async def delete(self, container_id: str) -> None:
        """See ``Sandbox``."""
        found = self._containers.get(container_id)
        if found is None:
            return
        await found.delete()
        self._containers.pop(container_id, None)
        self._specs.pop(container_id, None)
        self._meter.drop(container_id)

    async def update(self, container_id: str, resources: Resources) -> None:
        """See ``Sandbox``."""
        container = self._container(container_id)
        wanted = oci.resources(resources)
        if wanted:
            await self._tools.runtime.update(container.id, wanted, container.paths.bundle / "runtime.log")

    async def freeze(self, container_id: str, *, frozen: bool) -> None:
        """See ``Sandbox``."""
        container = self._container(container_id)
        if not container.running:
            raise FailedPrecondition(f"container {container_id[:12]} does not run")
        await container.freeze(frozen=frozen)

    async def resize(self, overhead: Resources, resources: Resources) -> Resources:
        """See ``Sandbox``. The cgroup of a pod that a kubelet has made is the kubelet's to change."""
        if self._spec.cgroup_parent:
            return resources
        limits = cgroups.Limits(
            cpu_period=resources.cpu_period or overhead.cpu_period,
            cpu_quota=_sum(resources.cpu_quota, overhead.cpu_quota),
            cpu_shares=resources.cpu_shares + overhead.cpu_shares,
            memory_limit=_sum(resources.memory_limit, overhead.memory_limit),
        )
        group = Cgroup(self._state.cgroup)
        try:
            await threads.call(group.create)
            await threads.call(group.set, limits)
        except OSError as error:
            raise FailedPrecondition(
                f"limits of pod {self.pod_id[:12]} cannot be changed: {error}"
            ) from error
        return resources

    async def reopen_log(self, container_id: str) -> None:
        """See ``Sandbox``."""
        container = self._container(container_id)
        if not container.running:
            raise FailedPrecondition(f"container {container_id[:12]} does not run")
        if self._specs[container_id].sink.raw:
            raise FailedPrecondition(f"container {container_id[:12]} has no log that could be opened again")
        log_path = self._specs[container_id].sink.log
        if not log_path or container.state is None:
            return
        monitor, path = container.state.monitor.pid, Path(log_path)
        if await threads.call(conmon.writes_to, monitor, path):
            return  # it was not renamed away: the monitor would put an empty file in its place
        await threads.call(conmon.reopen_log, container.paths.bundle)
        for _ in range(100):  # it is an order without an answer
            if await threads.call(conmon.writes_to, monitor, path):
                await threads.call(path.chmod, crilog.MODE)
                return
            await asyncio.sleep(0.01)
        raise FailedPrecondition(f"log {path} of container {container_id[:12]} was not opened again")

    # Streams

    async def exec(self, container_id: str, spec: ExecSpec) -> StartedProcess:
        """See ``Sandbox``."""
        container = self._container(container_id)
        if not container.running:
            raise FailedPrecondition(f"container {container_id[:12]} does not run")
        directory = container.paths.bundle / f"exec-{secrets.token_hex(6)}"
        name = f"container {self._specs[container_id].name}"
        return await streams.HostExec.start(self._tools.runtime, container_id, spec, directory, name)

    def changes(self, container_id: str) -> AsyncGenerator[Sequence[Change], None]:
        """See ``Sandbox``."""
        container, spec = self._container(container_id), self._specs[container_id]
        if spec.root.directory:
            raise FailedPrecondition(f"container {spec.name} has no image that it could have changed")
        return container.changes(spec.root.layers)

    def archive(self, container_id: str, *, changed: bool) -> AsyncGenerator[bytes, None]:
        """See ``Sandbox``."""
        container, spec = self._container(container_id), self._specs[container_id]
        if not changed:
            return container.archive(Path(spec.root.directory) if spec.root.directory else None)
        if spec.root.directory:
            raise FailedPrecondition(f"container {spec.name} has no image that it could have changed")
        return container.layer(mounted_in(one.container_path for one in spec.mounts))

    async def attach(self, container_id: str, *, stdin: bool) -> ProcessIO:
        """See ``Sandbox``."""
        container = self._container(container_id)
        if conmon.direct(self._specs[container_id]):
            raise FailedPrecondition(
                f"container {container_id[:12]} writes to its files itself: nobody can attach to it"
            )
        client = await conmon.connect(container.paths.bundle)
        return streams.Attached(client, container.paths.bundle, container.wait, stdin=stdin)

    async def connect(self, port: int) -> Connection:
        """See ``Sandbox``."""
        netns = None if self._on_host_network else self._paths.namespace("net")
        return await streams.connect(netns, port)

    # Use

    async def stats(self, detail: Detail = Detail.POD) -> PodStats:
        """See ``Sandbox``."""
        groups = {key: item.cgroup for key, item in self._containers.items() if item.running}
        netns = None if self._on_host_network else self._paths.namespace("net")
        return await self._meter.measure(groups, netns, detail)

    async def layers(self) -> tuple[LayerUse, ...]:
        """The writable layers of all containers that there are."""
        return await self._meter.layers()

    # End

    async def stop(self) -> None:
        """See ``Sandbox``. Raises NotUndone when everything was tried."""
        # From here on no container is added, so that those deleted below are all there will ever be.
        self._closing = True
        async with self._stopping:
            if self._stopped.is_set():
                return
            await tasks.uncancelled(self._stop())
            self._stopped.set()

    async def _stop(self) -> None:
        undo = Undo(f"pod {self.pod_id[:12]}")
        await undo.step("its meter", self._meter.close())
        network = None if self._on_host_network else self._network
        attached = await _end(undo, self._containers.values(), network, self.pod_id, self._paths)
        # Only then what they had in common: the first process of their PID namespace, for one.
        shared = podns.release(self._paths, self._state.holder, attached=attached)
        await undo.step("what its containers share", shared)
        if self._holder is not None and undo.complete:
            await undo.step("its first process", self._holder.child.wait())
        undo.finish()

    async def release(self) -> None:
        """Let go of the pod, which goes on. Raises NotUndone."""
        undo = Undo(f"pod {self.pod_id[:12]}")
        await undo.step("its meter", self._meter.close())
        await together(
            *(undo.step(f"container {item.id[:12]}", item.release()) for item in self._containers.values())
        )
        undo.finish()


def _sum(first: int, second: int) -> int:
    return first + second if first > 0 and second > 0 else first


async def _end(
    undo: Undo,
    containers: Iterable[ProcessContainer],
    network: PodNetwork | None,
    pod_id: str,
    paths: PodPaths,
) -> bool:
    """End a pod's containers and take it off its network, at the same time; whether it is still attached."""

    async def detach() -> bool:
        if network is None:
            return True
        return await undo.step("its network", network.detach(pod_id, paths.namespace("net")))

    ends = (undo.step(f"container {item.id[:12]}", item.delete()) for item in containers)
    detached, *_ = await together(detach(), *ends)
    return not detached


async def prepare(
    spec: PodSpec, paths: PodPaths, network: PodNetwork, state: PodState, pause: Path
) -> tuple[PodState, podns.Holder | None]:
    """Make all that the pod's containers share, and record it.

    Raises OrlopError with the reason; the caller removes what is left.
    """
    holder: podns.Holder | None = None
    try:
        await threads.call(_lay_out, spec, paths, state)
        holder = await podns.make(spec, paths, pause)
        if holder is not None:
            state = PodState(cgroup=state.cgroup, holder=holder.first)
            await threads.call(layout.save, paths.record, state)
        addresses: tuple[str, ...] = ()
        if spec.netns:
            addresses = await outside.addresses(paths.namespace("net"))
        elif spec.namespaces.network is not NamespaceMode.NODE:
            result = await network.attach(
                spec.id,
                paths.namespace("net"),
                name=spec.name,
                namespace=spec.namespace,
                uid=spec.uid,
                port_mappings=spec.port_mappings,
                annotations=spec.annotations,
            )
            addresses = result.ips
        await podns.set_sysctls(spec, paths)
        state = PodState(cgroup=state.cgroup, holder=state.holder, addresses=addresses)
        await threads.call(_finish, spec, paths, state)
    except BaseException as error:
        if holder is not None:
            # It is a child of ours, which the rest of the undo, by the record, cannot reap.
            await tasks.roll_back(f"the first process of pod {spec.id[:12]}", podns.end(holder.child))
        if isinstance(error, OSError):
            raise of_system(error, f"pod {spec.namespace}/{spec.name} cannot be made: {error}") from error
        raise
    return state, holder


def group_of(spec: PodSpec, paths: PodPaths) -> int | None:
    """The group of root in the pod's user namespace, if it has one."""
    owners = owners_of(spec, paths)
    return None if owners is None else owners.gid


def _lay_out(spec: PodSpec, paths: PodPaths, state: PodState) -> None:
    paths.create(group_of(spec, paths))
    layout.save(paths.record, state)
    podns.share_shm(spec, paths)


def _finish(spec: PodSpec, paths: PodPaths, state: PodState) -> None:
    podns.write_files(spec, paths, state.addresses)
    layout.save(paths.record, state)


async def discard(tools: Tools, network: PodNetwork, paths: PodPaths, pod_id: str, parent: str) -> None:
    """Remove every trace of a pod, from its directories alone. Idempotent. Raises NotUndone.

    ``parent`` is the control group of pods that ask for none, if nothing says where this one was.
    """
    state = await threads.call(layout.load_pod, paths.record)
    group = state.cgroup if state is not None and state.cgroup else parent
    containers = []
    for container_id in await threads.call(paths.containers):
        found = paths.container(container_id)
        containers.append(
            ProcessContainer(
                tools, container_id, found, await threads.call(layout.load_container, found.record)
            )
        )
    undo = Undo(f"pod {pod_id[:12]}")
    attached = await _end(undo, containers, network, pod_id, paths)
    holder = state.holder if state is not None else layout.KnownProcess()
    await undo.step("what its containers share", podns.release(paths, holder, attached=attached))
    if podgroup.made_by_us(group, pod_id):
        await undo.step("its control group", cgroups.destroy(Cgroup(group)))
    await together(*(undo.step(f"container {item.id[:12]}", item.release()) for item in containers))
    # They name all that is left, for the next try.
    if undo.complete:
        await undo.step("its directories", threads.call(paths.remove))
    undo.finish()
