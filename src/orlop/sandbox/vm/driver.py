"""The handler ``vm``: pods in virtual machines.

A pod takes a VM from the pool, or a new clone of the template whose start runs beside the CNI
plug-ins. Then the VM is made the pod's own: clock, entropy, machine id, host name and
network are set before anything of the pod runs in it, so that no two clones of one template are alike.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orlop import tracing
from orlop.config import Config
from orlop.errors import DataLoss, NotFound, OrlopError, Unavailable
from orlop.host import cgroups, tasks, threads
from orlop.host.tasks import Undo, together
from orlop.host.turns import Turns
from orlop.host.watching import Watcher
from orlop.hypervisor.base import GuestFiles, Hypervisor, Machines, MachineShape
from orlop.linux import space
from orlop.net.network import PodNetwork
from orlop.sandbox.base import Features
from orlop.sandbox.figures import LayerUse
from orlop.sandbox.spec import ContainerSpec, PodSpec
from orlop.sandbox.vm import diskbound, hostgroup, listeners, network, rotation, translate
from orlop.sandbox.vm.checks import check_pod
from orlop.sandbox.vm.clone import Clone, Cloner, Clones, netns_of
from orlop.sandbox.vm.files import PodFile, PodFiles, owned_vms, pods_on_disk
from orlop.sandbox.vm.gate import Gate
from orlop.sandbox.vm.plugs import Plugs
from orlop.sandbox.vm.pool import Pool
from orlop.sandbox.vm.sandbox import VmSandbox
from orlop.sandbox.vm.sizing import shape_of
from orlop.sandbox.vm.states import Absent, Preparing, Ready, State
from orlop.sandbox.vm.volumes import Volumes
from orlop.wire.messages import Setup, SetupReply
from orlop.wire.values import Interface

log = logging.getLogger(__name__)

Enter = Callable[[int], Awaitable[None]]
"""Moves a process into the pod's control group."""

T = TypeVar("T")

NAME = "vm"
_SETUP_TIMEOUT = 30.0
_ENTROPY = 256
_LOOK_AGAIN = 10.0
_TIDY_EVERY = 30.0
_SEARCHING = "the accelerator and the VM template are being looked for"
_RESOLV_CONF = Path("/etc/resolv.conf")


Source = Callable[[], Awaitable[tuple[Hypervisor, GuestFiles]]]
"""Finds the guest image, and makes the hypervisor that boots it.

Raises an OrlopError with the remedy while there is none."""


@dataclass(frozen=True)
class _Teardown:
    """Takes back what a pod was given."""

    pod: PodFile
    clone: Clone
    clones: Clones
    network: PodNetwork

    async def detach(self) -> None:
        """See ``Teardown``."""
        await network.detach(self.network, self.pod, self.clone.netns)

    async def discard(self, *, attached: bool) -> None:
        """See ``Teardown``."""
        await self.clones.discard(self.clone.directory, attached=attached)


class VmDriver:
    """See :class:`orlop.sandbox.base.SandboxDriver`. ``machines`` are those of ``source``'s hypervisor."""

    def __init__(self, config: Config, network: PodNetwork, machines: Machines, source: Source) -> None:
        self._config = config
        self._network = network
        self._source = source
        self._scratch = config.root_dir / "vm-scratch"
        self._clones = Clones(machines, state=config.state_dir, scratch=self._scratch)
        self._gate = Gate()
        self._watcher = Watcher()
        self._names = Watcher(once=True)
        self._state: State = Absent("the handler vm is not open")
        self._sandboxes: dict[str, VmSandbox] = {}
        self._turns = Turns()
        self._tasks = tasks.Tasks()

    @property
    def name(self) -> str:
        """See ``SandboxDriver``."""
        return NAME

    @property
    def features(self) -> Features:
        """See ``SandboxDriver``."""
        return Features(recursive_read_only_mounts=True, user_namespaces=True)

    def gauges(self) -> dict[str, float]:
        """What there is to count."""
        pool = self._state.pool if isinstance(self._state, Ready) else None
        return {
            "orlop_vm_sandboxes": float(len(self._sandboxes)),
            "orlop_vm_pool_ready": float(pool.size if pool else 0),
            "orlop_vm_pool_bytes": float(pool.memory if pool else 0),
            "orlop_vm_starts_waiting": float(self._gate.waiting),
        }

    def check(self, spec: PodSpec) -> None:
        """See ``SandboxDriver``."""
        check_pod(spec, self._config.vm)

    async def open(self) -> None:
        """See ``SandboxDriver``. The template is built in the background.

        Without a guest image pods that run can be recovered and removed all the same; the image is
        looked for again until there is one.
        """
        try:
            await self._clones.sweep(owned_vms(self._config.state_dir).__contains__)
        except (Unavailable, OSError) as error:
            # Whose VMs are whose is not known then.
            log.warning("VMs that belong to no pod are left until the next start: %s", error)
        await self._look(_SEARCHING)
        self._tasks.spawn(self._prepare(), "VM driver")
        self._tasks.spawn(self._tidy(), "remains of VMs")
        if self._config.vm.pod_disk_mib:
            self._tasks.spawn(diskbound.watch(self._sandboxes.values), "the disks of VMs")

    async def close(self) -> None:
        """See ``SandboxDriver``."""
        await self._tasks.close()
        if isinstance(self._state, Ready):
            await self._state.pool.close()
        undo = Undo("the handler vm")
        for sandbox in list(self._sandboxes.values()):
            await undo.step(f"pod {sandbox.pod_id}", sandbox.release(self._clones))
        self._sandboxes.clear()
        self._watcher.close()
        self._names.close()
        await self._tidy_once()
        if not isinstance(self._state, Absent):
            await undo.step("its template", self._state.cloner.close())
        self._state = Absent("the handler vm is closed")
        undo.finish()

    async def ready(self) -> str:
        """See ``SandboxDriver``."""
        return self._state.reason

    async def run(self, spec: PodSpec) -> VmSandbox:
        """See ``SandboxDriver``."""
        self.check(spec)
        state = self._state
        if isinstance(state, Absent):
            raise Unavailable(f"pods cannot run in VMs now: {state.reason}")
        number = self._gate.number()
        async with self._turns.of(spec.id):
            return await self._run(spec, state, number)

    async def _run(self, spec: PodSpec, state: Preparing | Ready, number: int) -> VmSandbox:
        # Whoever waits for the template needs no processor.
        await state.cloner.prepare()
        begun = time.monotonic()
        files = PodFiles(self._config.state_dir, spec.id)
        files.write(PodFile(pod_id=spec.id))
        try:
            async with self._gate.place(number):
                waited = _since(begun)
                sandbox = await self._start(spec, state, files)
        except BaseException:
            await tasks.roll_back(f"the start of pod {spec.id}", self._clean_up(spec.id))
            raise
        sandbox.number = number
        sandbox.keep_clock(fresh=True)
        sandbox.room.tell()
        sandbox.timings.update(waited=waited, total=_since(begun))
        self._sandboxes[spec.id] = sandbox
        return sandbox

    async def recover(self, spec: PodSpec, containers: tuple[ContainerSpec, ...]) -> VmSandbox:
        """See ``SandboxDriver``."""
        async with self._turns.of(spec.id):
            return await self._recover(spec, containers)

    async def _recover(self, spec: PodSpec, containers: tuple[ContainerSpec, ...]) -> VmSandbox:
        files = PodFiles(self._config.state_dir, spec.id)
        pod = files.read()
        if pod is None or not pod.set_up:
            raise NotFound(f"pod {spec.id} has no VM")
        try:
            clone = await self._clones.recover(pod.vm_id)
        except NotFound as error:
            raise NotFound(f"the VM of pod {spec.id} runs no more: {error}") from error
        sandbox = self._sandbox(spec, clone, files, pod)
        try:
            await sandbox.adopt(containers)
            sandbox.keep_clock(fresh=False)
        except BaseException:
            await tasks.roll_back(f"the recovery of pod {spec.id}", sandbox.release(self._clones))
            raise
        self._sandboxes[spec.id] = sandbox
        return sandbox

    async def discard(self, pod_id: str) -> None:
        """See ``SandboxDriver``."""
        async with self._turns.of(pod_id):
            await tasks.uncancelled(self._discard(pod_id))

    async def _discard(self, pod_id: str) -> None:
        undo = Undo(f"pod {pod_id}")
        sandbox = self._sandboxes.get(pod_id)
        # Not forgotten before it has stopped: what it is making must end before its files go.
        if sandbox is not None and await undo.step("its sandbox", sandbox.stop()):
            self._sandboxes.pop(pod_id, None)
        await undo.step("its traces", self._clean_up(pod_id))
        undo.finish()

    async def layers(self) -> LayerUse:
        """See ``SandboxDriver``."""
        used, inodes = await threads.call(space.taken, os.fspath(self._scratch))
        return LayerUse(
            timestamp=time.time_ns(), mountpoint=os.fspath(self._scratch), used=used, inodes=inodes
        )

    async def traces(self) -> list[str]:
        """See ``SandboxDriver``."""
        return await threads.call(pods_on_disk, self._config.state_dir)

    async def _look(self, reason: str) -> None:
        """Look for a guest image; with one, pods may wait, and ``reason`` says what for."""
        try:
            hypervisor, guest = await self._source()
        except OrlopError as error:
            self._fail(error)
            return
        cloner = Cloner(
            self._config.vm,
            hypervisor,
            state=self._config.state_dir,
            scratch=self._scratch,
            image=guest.image,
            say=self._on_template_step,
        )
        if reason == _SEARCHING and cloner.templated and await hypervisor.has_template():
            # Pods wait for the moment that it takes to look at it, as they would for a slow start: a daemon
            # that was only restarted does not make its node unready.
            reason = ""
        self._state = Preparing(cloner, reason)

    async def _prepare(self) -> None:
        """Get to the point where pods can be run, however often it takes."""
        while True:
            if isinstance(self._state, Preparing):
                cloner = self._state.cloner
                try:
                    self._state = Ready(cloner, await self._pool(cloner))
                    return
                except OrlopError as error:
                    self._fail(error)
                    await cloner.close()
            await asyncio.sleep(_LOOK_AGAIN)
            # What went wrong last is still the reason, until it is known to be over.
            await self._look(self._state.reason)

    async def _pool(self, cloner: Cloner) -> Pool:
        """The pool of clones of a template, which is found or made before."""
        accelerator = await cloner.accelerator()
        log.info("VMs run with %s: %s", accelerator.kind, accelerator.reason)
        await cloner.prepare()
        vm = self._config.vm
        default = MachineShape(memory_mib=vm.default_memory_mib, vcpus=vm.default_vcpus)
        pool = Pool(vm.pool, cloner, default, self._gate)
        pool.open()
        if rotation.wanted(cloner, vm):
            self._tasks.spawn(rotation.keep(cloner, vm, self._gate), "the VM templates")
        return pool

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(_TIDY_EVERY)
            await self._tidy_once()

    async def _tidy_once(self) -> None:
        await self._clones.tidy()
        if not isinstance(self._state, Absent):
            await self._state.cloner.tidy()

    def _fail(self, error: OrlopError) -> None:
        if str(error) != self._state.reason:
            log.error("pods cannot run in VMs: %s", error)
        self._state = Absent(str(error))

    def _on_template_step(self, step: str) -> None:
        log.info("VM template: %s", step)
        if isinstance(self._state, Preparing):
            self._state = replace(self._state, reason=f"the VM template is being made: {step}")

    async def _start(self, spec: PodSpec, state: Preparing | Ready, files: PodFiles) -> VmSandbox:
        """Get a VM and a network, and bring them together."""
        timings: dict[str, float] = {}
        cloner = state.cloner
        shape = cloner.attainable(shape_of(spec, self._config.vm))
        cgroup = hostgroup.path_of(spec.cgroup_parent, spec.id)
        ready = state.claim(shape)
        directory = await cloner.begin() if ready is None else ready.directory
        pod = PodFile(pod_id=spec.id, vm_id=directory.name, cgroup=cgroup)

        def remember(name: str) -> None:
            nonlocal pod
            pod = msgspec.structs.replace(pod, interface=name)
            files.write(pod)

        try:
            files.write(pod)
        except BaseException:
            # Nobody else knows of it.
            await tasks.roll_back(f"VM {directory.name}", cloner.discard(directory))
            raise
        step = "machine" if ready is None else "fit"
        enter = partial(hostgroup.enter, cgroup, memory_mib=shape.memory_mib, io=self._config.vm.io)
        held = [] if ready is None else [ready]
        try:
            await together(
                _timed(timings, "network", partial(network.attach, self._network, spec, netns_of(directory))),
                _timed(timings, step, partial(_obtain, held, cloner, directory, shape, enter)),
            )
            (clone,) = held
            interface = await _timed(timings, "look", partial(network.look, spec, clone, remember))
            _, reply = await together(
                _timed(timings, "join", partial(network.join, spec, clone, interface)),
                _timed(timings, "setup", partial(self._set_up, spec, clone, interface)),
            )
        except BaseException:
            # Its machine ends with the clean-up, which finds it by the pod's file.
            for clone in held:
                await clone.agent.close("the pod could not be started")
            raise
        result = self._network.result(spec.id)
        pod = msgspec.structs.replace(
            pod,
            set_up=True,
            addresses=result.ips if result is not None else _plain(interface),
            kernel=reply.kernel,
            accelerator=(await cloner.accelerator()).kind,
        )
        files.write(pod)
        sandbox = self._sandbox(spec, clone, files, pod)
        sandbox.timings.update(timings)
        return sandbox

    async def _set_up(self, spec: PodSpec, clone: Clone, interface: Interface | None) -> SetupReply:
        """Make the clone this pod's own."""
        hostname = translate.hostname_of(spec)
        node = ""
        with suppress(OSError):
            node = _RESOLV_CONF.read_text(encoding="utf-8", errors="replace")
        return await clone.agent.call(
            Setup(
                hostname=hostname,
                share=clone.machine.share_at,
                clock=time.time_ns(),
                entropy=os.urandom(_ENTROPY),
                machine_id=secrets.token_hex(16),
                interfaces=() if interface is None else (interface,),
                resolv_conf=translate.resolv_conf(spec.dns, node),
                hosts=translate.hosts(hostname, _plain(interface)),
                sysctls=tuple(spec.sysctls.items()),
            ),
            timeout=_SETUP_TIMEOUT,
        )

    def _sandbox(self, spec: PodSpec, clone: Clone, files: PodFiles, pod: PodFile) -> VmSandbox:
        scratch = self._clones.scratch_of(clone.id)
        volumes = Volumes(
            clone.machine,
            clone.agent,
            files,
            self._watcher,
            names=self._names,
            uid=spec.uid,
            config=self._config.vm.volumes,
            workplace=scratch,
            named=self._config.root_dir / "volumes" / "volumes",
        )
        plugs = Plugs(
            clone.machine,
            clone.share,
            scratch_directory=scratch,
            scratch_mib=self._config.vm.scratch_mib,
            only_mapped=self._config.vm.unmapped_volumes == "refuse",
            volumes=volumes,
            ready=clone.layer,
        )
        return VmSandbox(
            spec,
            self._config.vm,
            clone,
            files,
            pod,
            plugs=plugs,
            volumes=volumes,
            teardown=_Teardown(pod, clone, self._clones, self._network),
            gate=self._gate,
        )

    async def _clean_up(self, pod_id: str) -> None:
        """Remove all that bears the pod's name, whether it was ever complete or not."""
        files = PodFiles(self._config.state_dir, pod_id)
        try:
            pod = files.read()
        except DataLoss as error:
            log.warning("%s; its VM is removed at the next start of the daemon", error)
            pod = None
        directory = self._clones.directory / pod.vm_id if pod is not None and pod.vm_id else None
        # The VM first: nothing of the pod is to run on if its network cannot be taken down. The network
        # before its namespace, which the plug-ins look for and the clone's directory holds.
        undo = Undo(f"pod {pod_id}")
        if directory is not None:
            await undo.step("its VM", self._clones.end(directory))
        await undo.step("its sockets", threads.call(listeners.remove, files))
        netns = netns_of(directory or self._clones.directory / "none")
        known = pod or PodFile(pod_id=pod_id)
        detached = await undo.step("its network", network.detach(self._network, known, netns))
        if directory is not None:
            await undo.step("what its VM had", self._clones.discard(directory, attached=not detached))
        await undo.step("its control group", cgroups.leave(pod.cgroup if pod is not None else ""))
        # The pod's file goes last: it names all that is left, for the next try.
        undo.finish()
        files.remove()


def _plain(interface: Interface | None) -> tuple[str, ...]:
    """The addresses without their prefixes."""
    return () if interface is None else tuple(one.partition("/")[0] for one in interface.addresses)


async def _timed(timings: dict[str, float], step: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    begun = time.monotonic()
    with tracing.span(f"vm.{step}"):
        result = await work()
    timings[step] = _since(begun)
    return result


def _since(begun: float) -> float:
    return round((time.monotonic() - begun) * 1000, 1)


async def _obtain(
    held: list[Clone], cloner: Cloner, directory: Path, shape: MachineShape, enter: Enter
) -> None:
    """Have a clone in ``held``, the one there or a new one, that is of the right size.

    It is there as soon as it is anybody's: the other half of a pod's start may fail at any moment.
    """
    if not held:
        held.append(await cloner.finish(directory))
    await _fit(held[0], shape, enter)


async def _fit(clone: Clone, shape: MachineShape, enter: Enter) -> None:
    """Bring the VM to its size, in the place where what it uses is the pod's."""
    await enter(clone.machine.pid)
    got = await clone.resize(shape)
    if got.memory_mib < shape.memory_mib or got.vcpus < shape.vcpus:
        log.warning(
            "VM %s has %d MiB and %d processors instead of %d and %d",
            clone.id, got.memory_mib, got.vcpus, shape.memory_mib, shape.vcpus,
        )  # fmt: skip
