"""A virtual machine with its network namespace and a line to its agent, not yet anybody's pod.

A :class:`Clone` owns one directory, ``<state>/vms/<id>``: the machine's own (``machine``), what the
guest may see of the host (``share``) and the pinned network namespace (``netns``). The
:class:`Cloner` makes clones; :class:`Clones` finds them again and removes them. Nobody else does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from orlop.config import VmConfig
from orlop.errors import DataLoss, NotUndone, OrlopError, Unavailable
from orlop.host import mounts, netns, scheduling, tasks, threads
from orlop.host.tasks import Undo, beside
from orlop.hypervisor.base import (
    Accelerator,
    Hypervisor,
    Machine,
    Machines,
    MachineShape,
    Progress,
    Template,
)
from orlop.linux.removal import remove_tree
from orlop.net.tap import create_tap, move_tap
from orlop.sandbox.vm import pulse, warm
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.warm import ReadyLayer
from orlop.storage.disks import MIN_SCRATCH_MIB
from orlop.storage.share import Share
from orlop.wire.messages import Online, Ping, Quiesce, Resume

log = logging.getLogger(__name__)

TAP = "tap0"
_ANSWER_TIMEOUT = 30.0
_SETTLE_TIMEOUT = 60.0
_ONLINE_TIME = 5.0
_REST = 1.0
_OUTSIDE = "netns.outside"


class Clone:
    """One machine that runs. Whoever has it removes it with :meth:`Clones.discard`.

    ``origin`` is the template that it comes from, if it comes from one that is in use.
    """

    def __init__(
        self, directory: Path, machine: Machine, agent: AgentClient, origin: Template | None = None
    ) -> None:
        self.directory = directory
        self.machine = machine
        self.agent = agent
        self.origin = origin
        self.layer: ReadyLayer | None = None
        """What its first container can write to at once, if it was warmed up."""

    @property
    def id(self) -> str:
        """The directory's name."""
        return self.directory.name

    @property
    def netns(self) -> Path:
        """Its network namespace on the host."""
        return netns_of(self.directory)

    @property
    def share(self) -> Path:
        """The directory of the host that the guest can mount."""
        return self.directory / "share"

    async def wait(self) -> str:
        """Return when the machine has ended, its agent is gone, or its guest hangs, with the reason."""
        async with (
            beside(self.machine.wait()) as ended,
            beside(self.agent.wait_closed()) as lost,
            beside(pulse.lost(self.machine, self.agent)) as silent,
        ):
            await asyncio.wait((ended, lost, silent), return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                # A dying machine takes its agent along: the machine's reason is the better one.
                await asyncio.wait((ended,), timeout=1.0)
            first = ended if ended.done() else lost if lost.done() else silent
            return first.result()

    def be_nice(self, level: int) -> None:
        """Give way to others (10) while nobody waits for this VM, or not (0)."""
        scheduling.be_nice(self.machine.pid, level)

    async def resize(self, shape: MachineShape) -> MachineShape:
        """Bring the machine towards ``shape``, and what is new into the guest's use."""
        if shape == self.machine.shape:
            return shape
        before = self.machine.shape
        now = await self.machine.resize(shape)
        if now != before:
            await self._bring_online(now.vcpus)
        return now

    async def pin_outside(self, namespace: Path) -> Path:
        """Keep a network namespace that somebody else made, for :meth:`enter_outside`; where it is kept.

        Raises NotFound, InvalidArgument.
        """
        aside = self.directory / _OUTSIDE
        await netns.pin(namespace, aside)
        return aside

    async def enter_outside(self) -> None:
        """Move into the network namespace that was pinned; :attr:`netns` is that one from now on.

        Raises FailedPrecondition.
        """
        aside = self.directory / _OUTSIDE
        await move_tap(self.netns, aside, TAP)
        # What is pinned keeps its name while it is exchanged: one of the two is always there.
        await netns.delete(self.netns)
        await netns.pin(aside, self.netns)
        await netns.delete(aside)

    async def _bring_online(self, vcpus: int) -> None:
        """The guest's kernel takes a moment to find a new processor; only then can it be put to use."""
        end = time.monotonic() + _ONLINE_TIME
        pause = 0.01
        while (await self.agent.call(Online())).cpus < vcpus:
            if time.monotonic() > end:
                log.warning("VM %s does not use all of its %d processors", self.id, vcpus)
                return
            await asyncio.sleep(pause)
            pause *= 2


def netns_of(directory: Path) -> Path:
    """Where the network namespace of the clone in ``directory`` is pinned."""
    return directory / "netns"


def machine_of(directory: Path) -> Path:
    """Where the hypervisor keeps the machine of the clone in ``directory``."""
    return directory / "machine"


class Clones:
    """Finds the clones below ``state`` again, and removes them: all that needs no guest image.

    Below ``scratch``, which is on disk, each VM has a directory for the writable layers of its containers.
    """

    def __init__(self, machines: Machines, *, state: Path, scratch: Path) -> None:
        self._machines = machines
        self.directory = state / "vms"
        self._scratch = scratch
        self._left: set[Path] = set()

    def scratch_of(self, vm_id: str) -> Path:
        """Where the writable layers of a VM's containers are."""
        return self._scratch / vm_id

    async def recover(self, vm_id: str) -> Clone:
        """The clone that an earlier daemon made; its agent waits for a Resume.

        Raises NotFound when it runs no more, Unavailable or DeadlineExceeded when it cannot be reached now.
        """
        directory = self.directory / vm_id
        machine = await self._machines.recover(machine_of(directory))
        try:
            agent = await AgentClient.connect(
                machine.agent_socket, name=f"VM {vm_id}", timeout=_ANSWER_TIMEOUT
            )
        except BaseException:
            await tasks.roll_back(f"the recovery of VM {vm_id}", machine.close())
            raise
        return Clone(directory, machine, agent)

    async def release(self, clone: Clone) -> None:
        """Let go of a clone that goes on running. Raises NotUndone."""
        undo = Undo(f"VM {clone.id}")
        await undo.step("what its agent is still told", clone.agent.flush())
        await undo.step("its agent", clone.agent.close("the daemon stops"))
        await undo.step("its machine", clone.machine.close())
        undo.finish()

    async def end(self, directory: Path) -> None:
        """End the machine in ``directory``, and leave the rest for :meth:`discard`. Idempotent."""
        await self._machines.discard(machine_of(directory))

    async def discard(self, directory: Path, *, attached: bool = False) -> None:
        """End the machine in ``directory`` and remove all there is of it. Idempotent. Raises NotUndone.

        Its pod's network is torn down by whoever attached it, before this. If that failed, the pod is
        ``attached`` still: its namespace stays, where the plug-ins look for what they made.
        """
        await tasks.uncancelled(self._discard(directory, attached=attached))

    async def _discard(self, directory: Path, *, attached: bool) -> None:
        undo = Undo(f"VM {directory.name}")
        await undo.step("its machine", self.end(directory))
        if not attached:
            await undo.step("its network namespace", netns.delete(netns_of(directory)))
        await undo.step("its volumes", Share(directory / "share").release_all())
        # The rest is found again by the directory, so that goes only when nothing else is left.
        if undo.complete and not attached:
            await undo.step("its files", threads.call(_remove, directory, self.scratch_of(directory.name)))
        self._left.discard(directory)
        if not undo.complete and not attached:
            self._left.add(directory)
        undo.finish()

    async def tidy(self) -> None:
        """Try again to remove what could not be: of a clone that never was a pod's nobody else will ask."""
        for directory in tuple(self._left):
            try:
                await self.discard(directory)
            except NotUndone as error:
                log.warning("%s", error)

    async def sweep(self, keep: Callable[[str], bool]) -> None:
        """Remove clones of an earlier daemon that no pod owns."""
        for place in (self.directory, self._scratch):
            for found in sorted(place.iterdir()) if place.is_dir() else ():
                if not keep(found.name):
                    log.info("removing VM %s, which belongs to no pod", found.name)
                    try:
                        await self.discard(self.directory / found.name)
                    except NotUndone as error:
                        log.error("%s", error)


class Cloner(Clones):
    """Makes clones, and builds the template they come from; ``image`` is the guest's root disk.

    ``say`` hears of the steps when a template has to be made.
    """

    def __init__(
        self,
        config: VmConfig,
        hypervisor: Hypervisor,
        *,
        state: Path,
        scratch: Path,
        image: Path,
        say: Progress = lambda step: None,
    ) -> None:
        super().__init__(hypervisor, state=state, scratch=scratch)
        self._config = config
        self._hypervisor = hypervisor
        self._image = image
        self._say = say
        self._templates: deque[Template] = deque()
        self._building: asyncio.Task[Template] | None = None
        self._tasks = tasks.Tasks()

    @property
    def shape(self) -> MachineShape:
        """The size a new clone has."""
        for template in self._templates:
            return template.shape
        return MachineShape(memory_mib=self._config.default_memory_mib, vcpus=self._config.default_vcpus)

    @property
    def templated(self) -> bool:
        """Whether clones come from a template."""
        return self._config.template and self._hypervisor.capabilities.template

    async def accelerator(self) -> Accelerator:
        """What runs the guests."""
        return await self._hypervisor.probe()

    def attainable(self, shape: MachineShape) -> MachineShape:
        """``shape`` as near as a clone can come to it.

        A machine does not shrink below what every clone has; an emulated one gets no more processors.
        """
        least = self.shape
        vcpus = max(shape.vcpus, least.vcpus)
        if self._templates and not self._hypervisor.capabilities.add_vcpus:
            vcpus = least.vcpus
        return MachineShape(memory_mib=max(shape.memory_mib, least.memory_mib), vcpus=vcpus)

    @property
    def templates(self) -> tuple[Template, ...]:
        """Those that clones come from now, in turn."""
        return tuple(self._templates)

    async def add_template(self) -> None:
        """Find or make one more, while clones come from the others."""
        self._take(await self._hypervisor.another(self._settle))

    async def retire_template(self, template: Template) -> None:
        """Make no more clones of one. Idempotent."""
        with suppress(ValueError):
            self._templates.remove(template)
        await self._hypervisor.retire(template)

    async def prepare(self) -> None:
        """Build the first template, or join its building. A cancellation does not stop the building."""
        if not self.templated or self._templates:
            return
        if self._building is None or self._building.done():
            self._building = self._tasks.spawn(
                self._hypervisor.template(self._settle, progress=self._say), "VM template", awaited=True
            )
        self._take(await asyncio.shield(self._building))

    def _take(self, template: Template) -> None:
        # Two callers may have waited for the same one.
        if template not in self._templates:
            self._templates.append(template)

    async def begin(self) -> Path:
        """A new clone's directory with its network namespace; :meth:`discard` it if nothing comes of it."""
        directory = self.directory / secrets.token_hex(6)
        directory.mkdir(parents=True, mode=0o700)
        try:
            (directory / "share").mkdir(mode=0o755)
            await netns.create(netns_of(directory))
        except BaseException:
            await tasks.roll_back(f"VM {directory.name}", self.discard(directory))
            raise
        return directory

    async def finish(self, directory: Path) -> Clone:
        """The clone in ``directory``, its agent ready. A failure leaves the directory to the caller."""
        await self.prepare()
        tap = await create_tap(netns_of(directory), TAP)
        try:
            machine, origin = await self._machine(directory, tap)
        finally:
            os.close(tap)
        return await self._greet(directory, machine, origin)

    async def make(self) -> Clone:
        """A new clone, its agent ready. A failure or cancellation leaves nothing behind."""
        directory = await self.begin()
        try:
            return await self.finish(directory)
        except BaseException:
            await tasks.roll_back(f"VM {directory.name}", self.discard(directory))
            raise

    async def warm_up(self, clone: Clone) -> None:
        """Let the machine do once what a pod will ask of it, and have a layer ready to be written to."""
        await warm.rehearse(clone.machine, clone.agent)
        Share(clone.share).make_point("warm")
        await warm.exercise(
            clone.machine,
            clone.agent,
            self._image,
            self.scratch_of(clone.id) / "warm.img",
            scratch_mib=self._config.scratch_mib,
            share="warm",
        )
        clone.layer = await warm.lay_ready(
            clone.machine,
            clone.agent,
            self.scratch_of(clone.id) / "ready.img",
            scratch_mib=self._config.scratch_mib,
        )

    async def close(self) -> None:
        """Stop building."""
        await self._tasks.close()

    async def _machine(self, directory: Path, tap: int) -> tuple[Machine, Template | None]:
        where, share = machine_of(directory), directory / "share"
        for retry in (True, False):
            template = self._next()
            if template is None:
                break
            try:
                machine = await self._hypervisor.restore(template, where, tap_fd=tap, share=share)
                return machine, template
            except DataLoss as error:
                log.warning("%s; another template is used", error)
                with suppress(ValueError):
                    self._templates.remove(template)
                if not retry:
                    raise
                await self.prepare()
        machine = await self._hypervisor.start(where, self.shape, tap_fd=tap, share=share)
        await machine.wait_agent_port(self._config.boot_timeout)
        return machine, None

    def _next(self) -> Template | None:
        """The template whose turn it is."""
        self._templates.rotate(-1)
        return self._templates[-1] if self._templates else None

    async def _greet(self, directory: Path, machine: Machine, origin: Template | None) -> Clone:
        name = f"VM {directory.name}"
        try:
            agent = await AgentClient.connect(machine.agent_socket, name=name, timeout=_ANSWER_TIMEOUT)
            try:
                await agent.call(Resume())
            except BaseException:
                await agent.close("it did not answer")
                raise
        except OrlopError as error:
            tail = (await machine.console_tail(400)).strip()
            raise Unavailable(f"{error}; last on its console: {tail!r}") from error
        return Clone(directory, machine, agent, origin)

    async def _settle(self, machine: Machine) -> None:
        """Bring a booted machine into the state that all clones start from."""
        await machine.wait_agent_port(_SETTLE_TIMEOUT)
        agent = await AgentClient.connect(
            machine.agent_socket, name="the VM template", timeout=_SETTLE_TIMEOUT
        )
        try:
            await agent.call(Resume())
            await agent.call(Ping())
            await warm.exercise(
                machine,
                agent,
                self._image,
                machine.directory / "warm.img",
                scratch_mib=MIN_SCRATCH_MIB,
                reversible=True,
            )
            await agent.call(Quiesce(), timeout=_SETTLE_TIMEOUT)
        finally:
            await agent.close("the template is saved")
        # What the guest's kernel does about all that only later (groups and mounts that went, the line that
        # was closed) it does now, and not in each clone again.
        await asyncio.sleep(_REST)


def _remove(directory: Path, scratch: Path) -> None:
    mounts.unmount_below(directory)
    remove_tree(directory)
    remove_tree(scratch)
