"""The handler ``vm``: pods in virtual machines.

A pod takes a VM from the pool, or a new clone of the template whose start runs beside the CNI
plug-ins. Then the VM is made the pod's own: clock, entropy, machine id, boot id, host name and
network are set before anything of the pod runs in it, so that no two clones of one template are alike.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
import uuid
from collections.abc import Callable, Coroutine
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orlop import tracing
from orlop.config import Config
from orlop.errors import DataLoss, NotFound, OrlopError, Unavailable
from orlop.guestos.build import GuestArtifacts, find
from orlop.host import tasks
from orlop.host.tasks import together
from orlop.hypervisor.base import Hypervisor, MachineShape
from orlop.hypervisor.qemu import QemuHypervisor
from orlop.net.network import PodNetwork
from orlop.net.tap import join_tap
from orlop.sandbox.base import Features
from orlop.sandbox.spec import ContainerSpec, PodSpec
from orlop.sandbox.vm import hostgroup, translate
from orlop.sandbox.vm.checks import check_pod
from orlop.sandbox.vm.clone import TAP, Clone, Cloner, netns_of
from orlop.sandbox.vm.files import PodFile, PodFiles, owned_vms, pods_on_disk
from orlop.sandbox.vm.plugs import Plugs
from orlop.sandbox.vm.pool import Pool
from orlop.sandbox.vm.sandbox import VmSandbox
from orlop.sandbox.vm.sizing import shape_of
from orlop.wire.messages import Setup, SetupReply

log = logging.getLogger(__name__)

T = TypeVar("T")

NAME = "vm"
_SETUP_TIMEOUT = 30.0
_ENTROPY = 256
_LOOK_AGAIN = 10.0
_NO_GUEST = GuestArtifacts(kernel=Path(), initrd=Path(), image=Path(), digest="", size=0)
_RESOLV_CONF = Path("/etc/resolv.conf")


@dataclass(frozen=True)
class _Teardown:
    """Takes back what a pod was given."""

    pod_id: str
    clone: Clone
    cloner: Cloner
    network: PodNetwork

    async def detach(self) -> None:
        """See ``Teardown``."""
        await self.network.detach(self.pod_id, self.clone.netns)

    async def discard(self) -> None:
        """See ``Teardown``."""
        await self.cloner.discard(self.clone.directory)


class VmDriver:
    """See :class:`orlop.sandbox.base.SandboxDriver`."""

    def __init__(
        self, config: Config, network: PodNetwork, *, given: tuple[Hypervisor, GuestArtifacts] | None = None
    ) -> None:
        self._config = config
        self._network = network
        self._given = given
        self._cloner: Cloner | None = None
        self._pool: Pool | None = None
        self._guestless = True
        self._sandboxes: dict[str, VmSandbox] = {}
        self._preparing: asyncio.Task[None] | None = None
        self._reason = "the handler vm is not open"

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
        pool = self._pool
        return {
            "orlop_vm_sandboxes": float(len(self._sandboxes)),
            "orlop_vm_pool_ready": float(pool.size if pool else 0),
            "orlop_vm_pool_bytes": float(pool.memory if pool else 0),
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
            hypervisor, guest = self._given or await self._find()
        except OrlopError as error:
            self._reason = str(error)
            log.error("pods cannot run in VMs: %s", error)
            guest = _NO_GUEST
            hypervisor = self._hypervisor(guest)
        self._use(hypervisor, guest)
        await self._opened().sweep(owned_vms(self._config.state_dir).__contains__)
        self._preparing = asyncio.create_task(self._prepare(hypervisor, guest), name="VM driver")

    async def close(self) -> None:
        """See ``SandboxDriver``."""
        if self._preparing is not None:
            self._preparing.cancel()
            await asyncio.wait((self._preparing,))
        if self._pool is not None:
            await self._pool.close()
        if self._cloner is not None:
            for sandbox in list(self._sandboxes.values()):
                await sandbox.release(self._cloner)
            self._sandboxes.clear()
            await self._cloner.close()

    async def ready(self) -> str:
        """See ``SandboxDriver``."""
        return self._reason

    async def run(self, spec: PodSpec) -> VmSandbox:
        """See ``SandboxDriver``."""
        self.check(spec)
        cloner, pool = self._opened(), self._pool
        if pool is None or self._guestless:
            raise Unavailable(f"pods cannot run in VMs now: {self._reason}")
        begun = time.monotonic()
        files = PodFiles(self._config.state_dir, spec.id)
        files.write(PodFile(pod_id=spec.id))
        try:
            with pool.busy():
                sandbox = await self._start(spec, cloner, pool, files)
        except BaseException:
            await tasks.uncancelled(self._clean_up(spec.id))
            raise
        sandbox.timings["total"] = _since(begun)
        self._sandboxes[spec.id] = sandbox
        return sandbox

    async def recover(self, spec: PodSpec, containers: tuple[ContainerSpec, ...]) -> VmSandbox:
        """See ``SandboxDriver``."""
        cloner = self._opened()
        files = PodFiles(self._config.state_dir, spec.id)
        pod = files.read()
        if pod is None or not pod.set_up:
            raise NotFound(f"pod {spec.id} has no VM")
        try:
            clone = await cloner.recover(pod.vm_id)
        except OrlopError as error:
            raise NotFound(f"the VM of pod {spec.id} runs no more: {error}") from error
        sandbox = self._sandbox(spec, cloner, clone, files, pod)
        try:
            await sandbox.adopt(containers)
        except BaseException:
            await tasks.uncancelled(sandbox.release(cloner))
            raise
        self._sandboxes[spec.id] = sandbox
        return sandbox

    async def discard(self, pod_id: str) -> None:
        """See ``SandboxDriver``."""
        sandbox = self._sandboxes.pop(pod_id, None)
        if sandbox is not None:
            await sandbox.stop()
        await self._clean_up(pod_id)

    async def traces(self) -> list[str]:
        """See ``SandboxDriver``."""
        return await asyncio.to_thread(pods_on_disk, self._config.state_dir)

    async def _find(self) -> tuple[Hypervisor, GuestArtifacts]:
        guest = await asyncio.to_thread(find, self._config.vm.guest, self._config.root_dir / "guest")
        return self._hypervisor(guest), guest

    def _hypervisor(self, guest: GuestArtifacts) -> Hypervisor:
        return QemuHypervisor(self._config.vm, guest, root=self._config.root_dir / "hypervisor")

    def _use(self, hypervisor: Hypervisor, guest: GuestArtifacts) -> None:
        vm = self._config.vm
        self._guestless = guest is _NO_GUEST
        self._cloner = Cloner(
            vm,
            hypervisor,
            state=self._config.state_dir,
            scratch=self._config.root_dir / "vm-scratch",
            image=guest.image,
        )
        default = MachineShape(memory_mib=vm.default_memory_mib, vcpus=vm.default_vcpus)
        self._pool = Pool(vm.pool, self._cloner, default)

    def _opened(self) -> Cloner:
        if self._cloner is None:
            raise Unavailable(f"pods cannot run in VMs now: {self._reason}")
        return self._cloner

    async def _prepare(self, hypervisor: Hypervisor, guest: GuestArtifacts) -> None:
        """Get to the point where pods can be run, however often it takes."""
        while True:
            try:
                if guest is _NO_GUEST:
                    hypervisor, guest = await self._find()
                    self._use(hypervisor, guest)
                self._reason = "the VM template is being made"
                accelerator = await hypervisor.probe()
                log.info("VMs run with %s: %s", accelerator.kind, accelerator.reason)
                await self._opened().prepare()
                break
            except OrlopError as error:
                if str(error) != self._reason:
                    log.error("pods cannot run in VMs: %s", error)
                self._reason = str(error)
            await asyncio.sleep(_LOOK_AGAIN)
        self._reason = ""
        if self._pool is not None:
            self._pool.open()

    async def _start(self, spec: PodSpec, cloner: Cloner, pool: Pool, files: PodFiles) -> VmSandbox:
        """Get a VM and a network, and bring them together."""
        timings: dict[str, float] = {}
        shape = cloner.attainable(shape_of(spec, self._config.vm))
        cgroup = hostgroup.path_of(spec.cgroup_parent, spec.id)
        ready = pool.claim(shape)
        if ready is not None:
            clone = ready
            files.write(PodFile(pod_id=spec.id, vm_id=clone.id, cgroup=cgroup))
            try:
                await together(
                    _timed(timings, "network", partial(self._attach, spec, netns_of(clone.directory))),
                    _timed(timings, "fit", partial(_fit, clone, shape, cgroup)),
                )
            except BaseException:
                await clone.agent.close("the pod could not be started")
                raise
        else:
            directory = await cloner.begin()
            files.write(PodFile(pod_id=spec.id, vm_id=directory.name, cgroup=cgroup))
            _, clone = await together(
                _timed(timings, "network", partial(self._attach, spec, netns_of(directory))),
                _timed(timings, "machine", partial(self._made, cloner, directory, shape, cgroup)),
            )
        try:
            reply = await _timed(timings, "setup", partial(self._set_up, spec, clone))
        except BaseException:
            await clone.agent.close("the pod could not be set up")
            raise
        result = self._network.result(spec.id)
        pod = PodFile(
            pod_id=spec.id,
            vm_id=clone.id,
            cgroup=cgroup,
            set_up=True,
            addresses=result.ips if result is not None else (),
            kernel=reply.kernel,
            accelerator=(await cloner.accelerator()).kind,
        )
        files.write(pod)
        sandbox = self._sandbox(spec, cloner, clone, files, pod)
        sandbox.timings.update(timings)
        return sandbox

    async def _made(self, cloner: Cloner, directory: Path, shape: MachineShape, cgroup: str) -> Clone:
        clone = await cloner.finish(directory)
        await _fit(clone, shape, cgroup)
        return clone

    async def _attach(self, spec: PodSpec, netns: Path) -> None:
        await self._network.attach(
            spec.id,
            netns,
            name=spec.name,
            namespace=spec.namespace,
            uid=spec.uid,
            port_mappings=spec.port_mappings,
            annotations=spec.annotations,
        )

    async def _set_up(self, spec: PodSpec, clone: Clone) -> SetupReply:
        """Make the clone this pod's own."""
        info = await join_tap(clone.netns, "eth0", TAP)
        hostname = translate.hostname_of(spec)
        addresses = tuple(address.partition("/")[0] for address in info.addresses)
        node = ""
        with suppress(OSError):
            node = _RESOLV_CONF.read_text(encoding="utf-8", errors="replace")
        return await clone.agent.call(
            Setup(
                hostname=hostname,
                clock=time.time_ns(),
                entropy=os.urandom(_ENTROPY),
                machine_id=secrets.token_hex(16),
                boot_id=str(uuid.uuid4()),
                interfaces=(translate.interface(info),),
                resolv_conf=translate.resolv_conf(spec.dns, node),
                hosts=translate.hosts(hostname, addresses),
                sysctls=tuple(spec.sysctls.items()),
            ),
            timeout=_SETUP_TIMEOUT,
        )

    def _sandbox(
        self, spec: PodSpec, cloner: Cloner, clone: Clone, files: PodFiles, pod: PodFile
    ) -> VmSandbox:
        plugs = Plugs(
            clone.machine,
            clone.share,
            disk_directory=clone.directory,
            scratch_directory=cloner.scratch_of(clone.id),
            scratch_mib=self._config.vm.scratch_mib,
        )
        return VmSandbox(
            spec,
            self._config.vm,
            clone,
            files,
            pod,
            plugs=plugs,
            teardown=_Teardown(spec.id, clone, cloner, self._network),
            busy=self._pool.busy if self._pool is not None else nullcontext,
        )

    async def _clean_up(self, pod_id: str) -> None:
        """Remove all that bears the pod's name, whether it was ever complete or not."""
        cloner = self._opened()
        files = PodFiles(self._config.state_dir, pod_id)
        try:
            pod = files.read()
        except DataLoss as error:
            log.warning("%s; its VM is removed at the next start of the daemon", error)
            pod = None
        directory = cloner.directory / pod.vm_id if pod is not None and pod.vm_id else None
        await self._network.detach(pod_id, netns_of(directory or cloner.directory / "none"))
        if directory is not None:
            await cloner.discard(directory)
        await hostgroup.leave(pod.cgroup if pod is not None else "")
        files.remove()


async def _timed(timings: dict[str, float], step: str, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    begun = time.monotonic()
    with tracing.span(f"vm.{step}"):
        result = await work()
    timings[step] = _since(begun)
    return result


def _since(begun: float) -> float:
    return round((time.monotonic() - begun) * 1000, 1)


async def _fit(clone: Clone, shape: MachineShape, cgroup: str) -> None:
    """Bring the VM to its size, in the place where what it uses is the pod's."""
    if cgroup:
        await hostgroup.enter(cgroup, clone.machine.pid)
    got = await clone.resize(shape)
    if got.memory_mib < shape.memory_mib or got.vcpus < shape.vcpus:
        log.warning(
            "VM %s has %d MiB and %d processors instead of %d and %d",
            clone.id, got.memory_mib, got.vcpus, shape.memory_mib, shape.vcpus,
        )  # fmt: skip
