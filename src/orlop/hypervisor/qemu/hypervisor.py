"""Makes, finds and removes machines that run under QEMU."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import secrets
import shutil
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path

import msgspec

from orlop.config import VmConfig
from orlop.errors import (
    DataLoss,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    NotFound,
    OrlopError,
    Unavailable,
)
from orlop.host import process, scheduling, threads
from orlop.hypervisor.base import (
    Accelerator,
    Capabilities,
    GuestFiles,
    MachineShape,
    Progress,
    Settle,
    Template,
)
from orlop.hypervisor.jail import ids
from orlop.hypervisor.jail.spawn import Jail
from orlop.hypervisor.qemu import (
    accelerator,
    bays,
    cleanup,
    confinement,
    greeting,
    migration,
    record,
    taps,
    templates,
)
from orlop.hypervisor.qemu.accelerator import Finding
from orlop.hypervisor.qemu.cmdline import Arguments, Boot, Memory, Network, Sockets, machine_key
from orlop.hypervisor.qemu.errorlog import ErrorLog
from orlop.hypervisor.qemu.launch import launch as process_of
from orlop.hypervisor.qemu.machine import QemuMachine
from orlop.hypervisor.qemu.record import title
from orlop.hypervisor.qemu.settings import NAME, PACKAGE, QemuConfig

log = logging.getLogger(__name__)

# Counts changes of what a template is that its command line does not show.
_RECIPE = 1
_RESTORE_TIMEOUT = 30.0
# Measured: with 8 MiB a boot takes four times as long as with 32; with 32, what the pool warmed up is lost
# again before a pod uses it (300 ms for its first container instead of 100).
_CODE_MIB = 64
_BOOT_CODE_MIB = 128
_CHUNK = 16 << 20
_NICE = 10


class Launch(msgspec.Struct, frozen=True, kw_only=True):
    """A machine that is to be: with ``boot`` it starts cold, without it waits for a saved state."""

    directory: Path
    shape: MachineShape
    finding: Finding
    share: Path
    memory: Memory
    boot: Boot | None = None


class QemuMachines:
    """QEMU machines that run; see :class:`orlop.hypervisor.base.Machines`."""

    async def recover(self, directory: Path) -> QemuMachine:
        """Find a machine again; see :class:`orlop.hypervisor.base.Machines`."""
        known = await threads.call(record.load, directory)
        if not process.pid_alive(known.pid, known.start_time):
            raise NotFound(f"the machine in {directory} has ended")
        machine = QemuMachine(directory, known, log=ErrorLog.of_process(directory, known.pid))
        try:
            await machine.open(agent_ready=True)
            status = await machine.monitor.execute("query-status")
        except BaseException as error:
            await machine.close()
            if isinstance(error, Unavailable) and not process.pid_alive(known.pid, known.start_time):
                raise NotFound(f"the machine in {directory} has ended") from error
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

    def __init__(self, config: VmConfig, settings: QemuConfig, guest: GuestFiles, root: Path) -> None:
        self._config = config
        self._settings = settings
        self._guest = guest
        self._root = root
        self._finding: Finding | None = None
        self._probing = asyncio.Lock()
        self._saved: dict[Path, templates.Saved] = {}
        self._tree: Path | None = None
        self._building = asyncio.Lock()

    @property
    def name(self) -> str:
        """The back end's name."""
        return NAME

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
        asked = self._settings.accelerator
        if asked == "tcg":
            return self._tcg("vm.qemu.accelerator asks for it")
        refusal = accelerator.kvm_refusal()
        finding = self._tcg(refusal) if refusal else await self._recall_or_try(version)
        if asked == "kvm" and finding.accelerator.kind != "kvm":
            raise FailedPrecondition(
                f"vm.qemu.accelerator is kvm, but KVM does not work here: {finding.accelerator.reason}"
            )
        return finding

    async def _recall_or_try(self, version: str) -> Finding:
        settings = repr(self._settings), repr(self.template_shape), str(self._config.max_memory_mib)
        inputs = accelerator.inputs(version, self._guest.digest, *settings)
        finding = await threads.call(accelerator.remembered, self._root, inputs)
        # Who insists on KVM wants to hear of it as soon as it works.
        if finding is not None and (finding.accelerator.kind == "kvm" or self._settings.accelerator != "kvm"):
            return finding
        finding = msgspec.structs.replace(await self._try_kvm(), inputs=inputs)
        await threads.call(accelerator.remember, self._root, finding)
        return finding

    async def _try_kvm(self) -> Finding:
        reasons, until = [], 0.0
        for cpu in (self._settings.cpu,) if self._settings.cpu else accelerator.KVM_CPUS:
            reason = "a guest came up under KVM, was saved and restored"
            finding = Finding(Accelerator(kind="kvm", reason=reason), cpu)
            try:
                await self._prove(finding)
                return finding
            except DeadlineExceeded as error:
                reasons.append(f"a guest does not come up under KVM: {error}")
                until = time.time() + accelerator.PASSING
                # The other processor models differ in what QEMU refuses at once, not in what hangs.
                break
            except (Unavailable, DataLoss, Internal) as error:
                reasons.append(f"a guest does not run under KVM: {error}")
        log.warning("KVM is not used: %s", "; ".join(reasons))
        return msgspec.structs.replace(self._tcg(reasons[-1]), until=until)

    async def _prove(self, finding: Finding) -> None:
        """Take a guest through what a pod's goes through: boot it, save it, restore it, hear from it.

        Raises DeadlineExceeded, or with QEMU's words Unavailable, DataLoss or Internal."""
        timeout = self._settings.kvm_probe_timeout
        async with self._scratch() as work:
            with ExitStack() as stack:
                file = templates.new_memory(work, self.template_shape)
                stack.callback(os.close, file)
                machine = await self._boot(
                    self._template_launch(finding, work / "vm", file, shared=True), verbose=True
                )
                try:
                    await accelerator.came_up(machine, timeout)
                    await migration.save(machine, work / templates.STATE, timeout=timeout)
                finally:
                    await machine.stop()
                state = os.open(work / templates.STATE, os.O_RDONLY | os.O_CLOEXEC)
                stack.callback(os.close, state)
                clone = await self._restored(
                    self._template_launch(finding, work / "clone", file, shared=False), state, timeout=timeout
                )
                try:
                    await greeting.answered(clone.agent_socket, timeout)
                finally:
                    await clone.stop()

    def _tcg(self, reason: str) -> Finding:
        cpu = self._settings.cpu or accelerator.TCG_CPU
        return Finding(Accelerator(kind="tcg", reason=reason), cpu)

    async def _version(self) -> str:
        """QEMU's version with the build's file, so that another build of one version is told apart."""
        program = self._program()
        answer = await process.run([program, "--version"], timeout=30)
        status = program.resolve().stat()
        first = answer.stdout.decode(errors="replace").partition("\n")[0]
        return f"{first} {status.st_size} {status.st_mtime_ns}"

    def _program(self) -> Path:
        program = shutil.which(self._settings.binary)
        if program is None:
            raise NotFound(f"{self._settings.binary} is not installed, or not in PATH: install {PACKAGE}")
        return Path(program).absolute()

    # Machines

    async def start(
        self, directory: Path, shape: MachineShape, *, tap_fd: int | None, share: Path
    ) -> QemuMachine:
        """Boot a machine; see :class:`orlop.hypervisor.base.Hypervisor`."""
        launch = Launch(
            directory=directory,
            shape=shape,
            finding=await self._find_accelerator(),
            share=share,
            memory=Memory(size_mib=shape.memory_mib, max_mib=self._config.max_memory_mib),
        )
        return await self._boot(launch, tap_fd=tap_fd)

    async def _boot(self, launch: Launch, *, tap_fd: int | None = None, verbose: bool = False) -> QemuMachine:
        with ExitStack() as stack:
            files = []
            for path in (self._guest.kernel, self._guest.initrd):
                files.append(await threads.call(_loaded, path))
                stack.callback(os.close, files[-1])
            boot = Boot(files[0], files[1], verbose)
            return await self._launch(msgspec.structs.replace(launch, boot=boot), tap_fd=tap_fd)

    async def _launch(
        self, launch: Launch, *, tap_fd: int | None, pass_fds: tuple[int, ...] = ()
    ) -> QemuMachine:
        directory = launch.directory
        made = not directory.exists()
        with ExitStack() as lent:
            image = os.open(self._guest.image, os.O_RDONLY | os.O_CLOEXEC)
            lent.callback(os.close, image)
            tap = tap_fd
            if tap is None:
                tap = await taps.placeholder()
                lent.callback(os.close, tap)
            log = ErrorLog.new(directory)
            try:
                owner = await threads.call(self._prepare, launch)
                jail = await self._jail(launch, owner)
                boot = (launch.boot.kernel, launch.boot.initrd) if launch.boot else ()
                files = (image, launch.memory.file, *boot)
                child = await process_of(
                    directory,
                    jail,
                    lambda sockets, network: self._arguments(launch, image, sockets, network),
                    log=log,
                    tap_fd=tap,
                    pass_fds=(*pass_fds, *(file for file in files if file is not None)),
                )
                return await self._opened(launch, owner, child, log)
            except BaseException:
                log.close()
                await cleanup.remove(directory, whole=made)
                raise

    def _prepare(self, launch: Launch) -> int:
        """Make the machine's directories; returns whose they and the machine are."""
        launch.share.mkdir(mode=0o755, parents=True, exist_ok=True)
        launch.directory.mkdir(parents=True, exist_ok=True)
        return ids.claim(self._root / "ids", launch.directory)

    async def _opened(
        self, launch: Launch, owner: int, child: process.Detached, log: ErrorLog
    ) -> QemuMachine:
        """The machine whose process has just been started; it is ended when that fails."""
        known = record.MachineRecord(
            pid=child.pid,
            start_time=child.start_time,
            shape=launch.shape,
            base_memory_mib=launch.memory.size_mib,
            max_memory_mib=launch.memory.max_mib,
            bays=self._bays(),
            owner=owner,
        )
        machine = QemuMachine(launch.directory, known, child, log)
        try:
            await machine.save_record()
            await machine.open(agent_ready=launch.boot is None)
        except BaseException:
            await machine.stop()
            raise
        return machine

    async def _jail(self, launch: Launch, owner: int) -> Jail:
        if self._tree is None:
            self._tree = await confinement.tree(self._root, self._program())
        kind = launch.finding.accelerator.kind
        return confinement.jail(self._tree, owner, launch.share, kind, self._settings.seccomp)

    def _bays(self) -> tuple[bays.Bay, ...]:
        return bays.bays(self._config.scratch_mib, self._config.volumes.empty_dir_mib)

    def _arguments(self, launch: Launch, image: int, sockets: Sockets, network: Network) -> Arguments:
        kind, vcpus = launch.finding.accelerator.kind, launch.shape.vcpus
        return Arguments(
            program=str(self._program()),
            name=title(launch.directory),
            machine=self._settings.machine,
            accelerator=kind,
            cpu=launch.finding.cpu,
            memory=launch.memory,
            vcpus=vcpus,
            # QEMU's emulator aborts when a processor is plugged after its code buffer was used up.
            max_vcpus=vcpus if kind == "tcg" else self._kvm_vcpus(vcpus),
            image=image,
            sockets=sockets,
            network=network,
            bays=self._bays(),
            boot=launch.boot,
            code_mib=_CODE_MIB if launch.boot is None else _BOOT_CODE_MIB,
            own_filter=self._settings.seccomp != "enforce",
        )

    def _kvm_vcpus(self, least: int) -> int:
        return max(least, min(self._config.max_vcpus, accelerator.recommended_vcpus()))

    # Templates

    async def has_template(self) -> bool:
        """Whether there is one on disk; see :class:`orlop.hypervisor.base.Hypervisor`."""
        return await threads.call(templates.any_in, self._root)

    async def template(self, settle: Settle, *, progress: Progress | None = None) -> Template:
        """Find or make the template; see :class:`orlop.hypervisor.base.Hypervisor`."""
        finding = await self._find_accelerator()
        async with self._building:
            for saved in self._saved.values():
                return saved.template
            return await self._load_or_build(finding, settle, progress or (lambda line: None))

    async def another(self, settle: Settle) -> Template:
        """Find or make one more; see :class:`orlop.hypervisor.base.Hypervisor`."""
        finding = await self._find_accelerator()
        async with self._building:
            return await self._load_or_build(finding, settle, lambda line: None, nice=_NICE)

    async def _load_or_build(
        self, finding: Finding, settle: Settle, say: Progress, *, nice: int = 0
    ) -> Template:
        """A template that is not in use yet."""
        key = await self._key(finding)
        for number, directory in enumerate(await threads.call(templates.find, self._root, key)):
            if directory in self._saved:
                continue
            if number < self._config.templates:
                try:
                    return await self._use(directory, key)
                except DataLoss as reason:
                    log.warning("the template is made anew: %s", reason)
            await threads.call(templates.drop, directory)
        return await self._use(await self._build(finding, key, settle, say, nice=nice), key)

    async def _use(self, directory: Path, key: str) -> Template:
        saved = self._saved[directory] = await threads.call(templates.load, directory, key)
        return saved.template

    async def retire(self, template: Template) -> None:
        """Let go of a template; see :class:`orlop.hypervisor.base.Hypervisor`."""
        async with self._building:
            saved = self._saved.pop(template.directory, None)
            if saved is not None:
                saved.close()
            await threads.call(templates.drop, template.directory)

    async def restore(
        self, template: Template, directory: Path, *, tap_fd: int | None, share: Path
    ) -> QemuMachine:
        """Start a clone; see :class:`orlop.hypervisor.base.Hypervisor`."""
        saved = self._saved.get(template.directory)
        if saved is None:
            raise DataLoss(f"the template {template.directory.name} is not in use any more")
        with ExitStack() as stack:
            memory = saved.open_memory()
            stack.callback(os.close, memory)
            state = saved.open_state()
            stack.callback(os.close, state)
            launch = self._template_launch(await self._find_accelerator(), directory, memory, shared=False)
            launch = msgspec.structs.replace(launch, share=share)
            try:
                return await self._restored(launch, state, tap_fd=tap_fd)
            except DataLoss:
                # Its files are whole, and yet QEMU does not take it.
                await self.retire(template)
                raise

    async def _restored(
        self, launch: Launch, state: int, *, tap_fd: int | None = None, timeout: float = _RESTORE_TIMEOUT
    ) -> QemuMachine:
        """A machine that goes on from the state in an open file; a failure leaves nothing of it."""
        machine = await self._launch(launch, tap_fd=tap_fd, pass_fds=(state,))
        try:
            await migration.load(machine, state, timeout=timeout)
        except BaseException:
            await machine.stop()
            await cleanup.remove(launch.directory, whole=False)
            raise
        return machine

    def _template_launch(self, finding: Finding, directory: Path, file: int, *, shared: bool) -> Launch:
        """A machine in ``directory`` whose memory is the template's, in the open ``file``."""
        shape = self.template_shape
        memory = Memory(
            size_mib=shape.memory_mib,
            max_mib=self._config.max_memory_mib,
            file=file,
            shared=shared,
        )
        share = directory.with_name("share")
        return Launch(directory=directory, shape=shape, finding=finding, share=share, memory=memory)

    async def _key(self, finding: Finding) -> str:
        launch = self._template_launch(finding, self._root, 0, shared=False)
        arguments = self._arguments(launch, 0, Sockets(0, 0), Network(0))
        version = await self._version()
        parts = [str(_RECIPE), version, self._guest.digest, machine_key(arguments)]
        if finding.accelerator.kind == "kvm":
            # KVM's own state is part of what is saved, and not the same for each kernel and processor.
            parts += [finding.inputs]
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()

    async def _build(self, finding: Finding, key: str, settle: Settle, say: Progress, *, nice: int) -> Path:
        """Boot a machine and save it; returns the template's directory."""
        shape = self.template_shape
        async with self._scratch() as work:
            result = work / "result"
            result.mkdir()
            say(f"booting the template ({finding.accelerator.kind})")
            file = templates.new_memory(result, shape)
            try:
                machine = await self._boot(self._template_launch(finding, work / "vm", file, shared=True))
            finally:
                os.close(file)
            try:
                scheduling.be_nice(machine.pid, nice)
                await machine.wait_agent_port(self._config.boot_timeout)
                await settle(machine)
                say("saving the template")
                await migration.save(machine, result / templates.STATE, timeout=_RESTORE_TIMEOUT)
            finally:
                await machine.stop()
            saved = await threads.call(templates.seal, result, self._root, key, shape, finding.accelerator)
            return saved.directory

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[Path]:
        """A directory for one boot, gone afterwards; those of a killed daemon are removed first."""
        await threads.call(self._root.mkdir, parents=True, exist_ok=True)
        for old in self._root.glob("boot-*"):
            for machine in (old / "vm", old / "clone"):
                with suppress(OrlopError):
                    await cleanup.end(machine)
            await cleanup.remove(old, whole=True)
        work = self._root / f"boot-{secrets.token_hex(4)}"
        work.mkdir()
        try:
            yield work
        finally:
            await cleanup.remove(work, whole=True)


def _loaded(path: Path) -> int:
    """A file's content in memory, for a QEMU that may read no file of the host; the caller closes it."""
    copy = os.memfd_create(path.name, os.MFD_CLOEXEC)
    try:
        with path.open("rb") as file:
            while os.sendfile(copy, file.fileno(), None, _CHUNK):
                pass
    except BaseException:
        os.close(copy)
        raise
    return copy
