"""Makes, finds and removes machines that run under QEMU."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import platform
import secrets
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from orlop.config import VmConfig
from orlop.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    OrlopError,
    Unavailable,
)
from orlop.host import process, threads
from orlop.hypervisor.base import (
    Accelerator,
    Capabilities,
    GuestFiles,
    MachineShape,
    Progress,
    Settle,
    Template,
)
from orlop.hypervisor.qemu import accelerator, bays, cleanup, migration, record, taps, templates
from orlop.hypervisor.qemu.accelerator import Finding
from orlop.hypervisor.qemu.cmdline import Arguments, Boot, Memory, Network, Sockets, machine_key
from orlop.hypervisor.qemu.launch import launch
from orlop.hypervisor.qemu.machine import QemuMachine
from orlop.hypervisor.qemu.record import title

log = logging.getLogger(__name__)

# Counts changes of what a template is that its command line does not show.
_RECIPE = 1
_RESTORE_TIMEOUT = 30.0
# Measured: with 8 MiB a boot takes four times as long as with 32; with 32, what the pool warmed up is lost
# again before a pod uses it (300 ms for its first container instead of 100).
_CODE_MIB = 64
_BOOT_CODE_MIB = 128


class QemuMachines:
    """QEMU machines that run; see :class:`orlop.hypervisor.base.Machines`."""

    async def recover(self, directory: Path) -> QemuMachine:
        """Find a machine again; see :class:`orlop.hypervisor.base.Machines`."""
        known = await threads.call(record.load, directory)
        if not process.pid_alive(known.pid, known.start_time):
            raise NotFound(f"the machine in {directory} has ended")
        machine = QemuMachine(directory, known)
        try:
            await machine.open(agent_ready=True)
            status = await machine.monitor.execute("query-status")
        except Unavailable as error:
            await machine.stop()
            raise NotFound(f"the machine in {directory} has ended") from error
        except BaseException:
            await machine.close()
            raise
        if not isinstance(status, dict) or status.get("status") != "running":
            await machine.console_tail()
            await machine.stop()
            raise NotFound(f"the machine in {directory} has ended: it is in the state {status}")
        return machine

    async def discard(self, directory: Path) -> None:
        """Remove a machine; see :class:`orlop.hypervisor.base.Machines`."""
        await cleanup.end(directory)
        await cleanup.remove(directory, whole=True)


class QemuHypervisor(QemuMachines):
    """QEMU machines that boot ``guest``. ``root`` keeps the template and what was found out about KVM."""

    def __init__(self, config: VmConfig, guest: GuestFiles, root: Path) -> None:
        self._config = config
        self._guest = guest
        self._root = root
        self._finding: Finding | None = None
        self._probing = asyncio.Lock()
        self._template: Template | None = None
        self._stamp: templates.Stamp = ()
        self._building = asyncio.Lock()

    @property
    def name(self) -> str:
        """The back end's name."""
        return "qemu"

    @property
    def capabilities(self) -> Capabilities:
        """What it can do beyond the core."""
        return Capabilities(
            template=True,
            add_vcpus=self._finding is not None and self._finding.accelerator.kind == "kvm",
        )

    @property
    def template_shape(self) -> MachineShape:
        """The size that every restored machine starts with: what a pod without limits gets.

        Memory that is there from the start costs a clone nothing until it is used, for its page
        descriptors are shared; memory that is plugged costs 1/64 of it at once. A pod of less is bounded
        by the limits of its containers."""
        memory = min(self._config.default_memory_mib, self._config.max_memory_mib)
        return MachineShape(memory_mib=memory, vcpus=self._config.default_vcpus)

    # Accelerator

    async def probe(self) -> Accelerator:
        """Find out what runs guests here; see :class:`orlop.hypervisor.base.Hypervisor`."""
        return (await self._find_accelerator()).accelerator

    async def _find_accelerator(self) -> Finding:
        async with self._probing:
            if self._finding is None:
                self._finding = await self._try_accelerators()
            return self._finding

    async def _try_accelerators(self) -> Finding:
        version = await self._version()
        for path in (self._guest.kernel, self._guest.initrd, self._guest.image):
            if not path.is_file():
                raise NotFound(f"the guest file {path} does not exist: run `orlop guest build`")
        asked = self._config.accelerator
        if asked == "tcg":
            return accelerator.tcg("vm.accelerator asks for it")
        refusal = accelerator.kvm_refusal()
        inputs = accelerator.inputs(version, self._guest.digest)
        finding = None if refusal else await threads.call(accelerator.remembered, self._root, inputs)
        if finding is None and not refusal:
            finding = await self._try_kvm(inputs)
            await threads.call(accelerator.remember, self._root, finding)
        finding = finding or accelerator.tcg(refusal)
        if asked == "kvm" and finding.accelerator.kind != "kvm":
            raise FailedPrecondition(
                f"vm.accelerator is kvm, but KVM does not work here: {finding.accelerator.reason}"
            )
        return finding

    async def _try_kvm(self, inputs: str) -> Finding:
        reasons = []
        for cpu in accelerator.KVM_CPUS:
            finding = Finding(Accelerator(kind="kvm", reason="a guest came up under KVM"), cpu, inputs)
            try:
                async with self._scratch() as work:
                    machine = await self._boot(
                        work, self.template_shape, finding, None, work / "share", verbose=True
                    )
                    try:
                        await accelerator.came_up(machine, self._config.kvm_probe_timeout)
                    finally:
                        await machine.stop()
                return finding
            except DeadlineExceeded as error:
                reasons.append(f"a guest does not come up under KVM: {error}")
                # The other processor models differ in what QEMU refuses at once, not in what hangs.
                break
            except Unavailable as error:
                reasons.append(str(error))
        log.warning("KVM is not used: %s", "; ".join(reasons))
        return accelerator.tcg(reasons[-1], inputs)

    async def _version(self) -> str:
        """QEMU's version with the build's file, so that another build of one version is told apart."""
        program = shutil.which(self._config.qemu)
        if program is None:
            raise NotFound(f"{self._config.qemu} is not installed, or not in PATH: install qemu-system-x86")
        answer = await process.run([program, "--version"], timeout=30)
        status = Path(program).resolve().stat()
        first = answer.stdout.decode(errors="replace").partition("\n")[0]
        return f"{first} {status.st_size} {status.st_mtime_ns}"

    # Machines

    async def start(
        self, directory: Path, shape: MachineShape, *, tap_fd: int | None, share: Path
    ) -> QemuMachine:
        """Boot a machine; see :class:`orlop.hypervisor.base.Hypervisor`."""
        return await self._boot(directory, shape, await self._find_accelerator(), tap_fd, share)

    async def _boot(
        self,
        directory: Path,
        shape: MachineShape,
        finding: Finding,
        tap_fd: int | None,
        share: Path,
        memory: Memory | None = None,
        *,
        verbose: bool = False,
    ) -> QemuMachine:
        memory = memory or Memory(size_mib=shape.memory_mib, max_mib=self._config.max_memory_mib)
        boot = Boot(self._guest.kernel, self._guest.initrd, verbose)
        return await self._launch(
            directory, shape, finding, tap_fd=tap_fd, share=share, memory=memory, boot=boot
        )

    async def _launch(
        self,
        directory: Path,
        shape: MachineShape,
        finding: Finding,
        *,
        tap_fd: int | None,
        share: Path,
        memory: Memory,
        boot: Boot | None,
        pass_fds: tuple[int, ...] = (),
    ) -> QemuMachine:
        made = not directory.exists()
        tap = tap_fd if tap_fd is not None else await taps.placeholder()
        machine = None
        try:
            share.mkdir(parents=True, exist_ok=True)
            directory.mkdir(parents=True, exist_ok=True)

            def build(sockets: Sockets, network: Network) -> Arguments:
                return self._arguments(
                    directory,
                    shape,
                    finding,
                    share=share,
                    memory=memory,
                    boot=boot,
                    sockets=sockets,
                    network=network,
                )

            child = await launch(directory, build, tap_fd=tap, pass_fds=pass_fds)
            known = record.MachineRecord(
                pid=child.pid,
                start_time=child.start_time,
                shape=shape,
                base_memory_mib=memory.size_mib,
                max_memory_mib=memory.max_mib,
                bays=bays.bays(self._config.scratch_mib),
            )
            machine = QemuMachine(directory, known, child)
            await machine.save_record()
            await machine.open(agent_ready=boot is None)
        except BaseException:
            if machine is not None:
                await machine.stop()
            await cleanup.remove(directory, whole=made)
            raise
        finally:
            if tap_fd is None:
                os.close(tap)
        return machine

    def _arguments(
        self,
        directory: Path,
        shape: MachineShape,
        finding: Finding,
        *,
        share: Path,
        memory: Memory,
        boot: Boot | None,
        sockets: Sockets,
        network: Network,
    ) -> Arguments:
        return Arguments(
            program=self._config.qemu,
            name=title(directory),
            machine=self._config.machine,
            accelerator=finding.accelerator.kind,
            cpu=finding.cpu,
            memory=memory,
            vcpus=shape.vcpus,
            # QEMU's emulator aborts when a processor is plugged after its code buffer was used up.
            max_vcpus=shape.vcpus if finding.accelerator.kind == "tcg" else self._config.max_vcpus,
            image=self._guest.image,
            share=share,
            sockets=sockets,
            network=network,
            bays=bays.bays(self._config.scratch_mib),
            boot=boot,
            code_mib=_CODE_MIB if boot is None else _BOOT_CODE_MIB,
        )

    # Templates

    async def template(self, settle: Settle, *, progress: Progress | None = None) -> Template:
        """Find or make the template; see :class:`orlop.hypervisor.base.Hypervisor`."""
        finding = await self._find_accelerator()
        async with self._building:
            if self._template is not None:
                return self._template
            key = await self._key(finding)
            try:
                template = await threads.call(templates.load, self._root, key)
            except DataLoss as reason:
                if templates.directory_for(self._root, key).exists():
                    log.warning("the template is made anew: %s", reason)
                template = await self._build(finding, key, settle, progress or (lambda line: None))
            self._stamp = templates.stamp(template)
            self._template = template
            return template

    async def discard_template(self) -> None:
        """Throw the template away; the next :meth:`template` builds another."""
        async with self._building:
            self._template = None
            await threads.call(templates.remove, self._root)

    async def restore(
        self, template: Template, directory: Path, *, tap_fd: int | None, share: Path
    ) -> QemuMachine:
        """Start a clone; see :class:`orlop.hypervisor.base.Hypervisor`."""
        await self._check(template)
        finding = await self._find_accelerator()
        memory = self._template_memory(template.directory, shared=False)
        state = os.open(template.directory / templates.STATE, os.O_RDONLY | os.O_CLOEXEC)
        try:
            machine = await self._launch(
                directory,
                template.shape,
                finding,
                tap_fd=tap_fd,
                share=share,
                memory=memory,
                boot=None,
                pass_fds=(state,),
            )
            try:
                await migration.load(machine, state, timeout=_RESTORE_TIMEOUT)
            except BaseException:
                await machine.stop()
                await cleanup.remove(directory, whole=False)
                raise
        finally:
            os.close(state)
        return machine

    async def _check(self, template: Template) -> None:
        try:
            whole = template == self._template and templates.stamp(template) == self._stamp
        except DataLoss:
            whole = False
        if not whole:
            await self.discard_template()
            raise DataLoss(f"the template {template.directory} was changed or removed; it is made anew")

    def _template_memory(self, directory: Path, *, shared: bool) -> Memory:
        return Memory(
            size_mib=self.template_shape.memory_mib,
            max_mib=self._config.max_memory_mib,
            file=directory / templates.MEMORY,
            shared=shared,
        )

    async def _key(self, finding: Finding) -> str:
        shape = self.template_shape
        memory = self._template_memory(self._root, shared=False)
        arguments = self._arguments(
            self._root,
            shape,
            finding,
            share=self._root,
            memory=memory,
            boot=None,
            sockets=Sockets(0, 0),
            network=Network(0),
        )
        version = await self._version()
        parts = [str(_RECIPE), version, self._guest.digest, machine_key(arguments)]
        if finding.accelerator.kind == "kvm":
            parts += [platform.release(), finding.inputs]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    async def _build(self, finding: Finding, key: str, settle: Settle, say: Progress) -> Template:
        shape = self.template_shape
        async with self._scratch() as work:
            result = work / "result"
            result.mkdir()
            say(f"booting the template ({finding.accelerator.kind})")
            memory = self._template_memory(result, shared=True)
            machine = await self._boot(work / "vm", shape, finding, None, work / "share", memory)
            try:
                await machine.wait_agent_port(self._config.boot_timeout)
                await settle(machine)
                say("saving the template")
                await migration.save(machine, result / templates.STATE, timeout=_RESTORE_TIMEOUT)
            finally:
                await machine.stop()
            return await threads.call(templates.seal, result, self._root, key, shape, finding.accelerator)

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """A directory for one boot, gone afterwards; those of a killed daemon are removed first."""
        await threads.call(self._root.mkdir, parents=True, exist_ok=True)
        for old in self._root.glob("boot-*"):
            for machine in (old, old / "vm"):
                with suppress(OrlopError):
                    await cleanup.end(machine)
            await cleanup.remove(old, whole=True)
        work = self._root / f"boot-{secrets.token_hex(4)}"
        work.mkdir()
        try:
            yield work
        finally:
            await cleanup.remove(work, whole=True)
