"""What a hypervisor offers: a small core that every one of them has, and capabilities it declares.

A *machine* is one virtual machine in one directory of its own. It is started cold, or restored from
a *template*: a machine that was booted once, stopped when its agent was ready, and saved. It outlives
the daemon, which finds it again with :meth:`Machines.recover`.

A device is found by the guest at a :data:`GuestAddress`, text that only the back end and the guest's
``devices`` understand; everybody else hands it on as it is.

Sizes are MiB where a name ends in ``_mib`` and bytes otherwise; times are seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from orlop.value import Value
from orlop.wire.values import GuestAddress


class MachineShape(Value, frozen=True, kw_only=True):
    """A machine's size."""

    memory_mib: int
    vcpus: int = 1


class Accelerator(Value, frozen=True, kw_only=True):
    """What runs the guest's instructions ("kvm"), and in one sentence why that was chosen."""

    kind: str
    reason: str


class Disk(Value, frozen=True, kw_only=True):
    """A disk to attach. ``id`` is unique within its machine: letters, digits, ``-``, ``_`` and ``.``.

    Each of ``files`` is one file system, bottom first. A writable disk has one file. With ``durable`` what
    the guest flushes is on the host's disk then; else it ends with the machine, and nothing has to be safe.
    With ``device`` its one file is a block device of the host: the guest sees its size and its sectors.
    """

    id: str
    files: tuple[str, ...]
    read_only: bool = True
    durable: bool = False
    device: bool = False


class Stacking(StrEnum):
    """How the guest gets a stack of read-only layers soonest: a disk for each, or one disk for all."""

    APART = "apart"
    TOGETHER = "together"


class MemoryUse(Value, frozen=True, kw_only=True):
    """Host memory of a machine in bytes (smaps_rollup): ``pss`` counts shared pages by their share."""

    pss: int
    private: int
    shared: int


class Capabilities(Value, frozen=True, kw_only=True):
    """What a back end can do beyond the core."""

    template: bool
    add_vcpus: bool


class Template(Value, frozen=True, kw_only=True):
    """A saved machine. ``key`` is a digest of all that it depends on; several of one key may stand beside one
    another, each in a directory of its own. ``made`` is in seconds since the epoch."""

    key: str
    directory: Path
    shape: MachineShape
    accelerator: Accelerator
    made: float = 0.0


class GuestFiles(Protocol):
    """What a machine boots; ``digest`` changes with the content of any of the three."""

    @property
    def kernel(self) -> Path:
        """The kernel."""
        ...

    @property
    def initrd(self) -> Path:
        """The initial RAM disk."""
        ...

    @property
    def image(self) -> Path:
        """The root disk, read-only."""
        ...

    @property
    def digest(self) -> str:
        """A digest over the three."""
        ...


class Confinement(Value, frozen=True, kw_only=True):
    """What the hypervisor's process sees of the host: ``share`` is where it has the directory that the guest
    can mount; in its user namespace the ids from ``owner`` on are those from 0 on."""

    share: Path
    owner: int


class Machine(Protocol):
    """One running virtual machine. Its methods may be called concurrently."""

    @property
    def pid(self) -> int:
        """The hypervisor's process."""
        ...

    @property
    def directory(self) -> Path:
        """Where its sockets and state files are."""
        ...

    @property
    def agent_socket(self) -> Path:
        """The Unix socket that leads to the agent's port; takes one client at a time."""
        ...

    @property
    def shape(self) -> MachineShape:
        """Its present size, as asked for."""
        ...

    @property
    def confinement(self) -> Confinement | None:
        """What its process sees of the host; None for all of it."""
        ...

    @property
    def share_at(self) -> GuestAddress:
        """Where the guest finds the host's directory that it can mount."""
        ...

    @property
    def network_at(self) -> GuestAddress:
        """Where the guest finds its network interface."""
        ...

    def stacking(self, layers: int) -> Stacking:
        """How a stack of which ``layers`` layers are not attached yet is best attached now."""
        ...

    async def attach_disk(self, disk: Disk, *, reversible: bool = False) -> tuple[GuestAddress, ...]:
        """Plug a disk; returns where the guest finds the file system of each of its files.

        With ``reversible`` the machine is as it was once the disk is detached: nothing that it has a
        bounded number of is used up. A machine that is going to be a template wants that.

        Raises AlreadyExists for a used id, NotFound for a missing file, ResourceExhausted when there is
        no place left, FailedPrecondition for a disk to write to that somebody else uses, Unavailable when
        the machine has ended."""
        ...

    async def resize_disk(self, disk_id: str, size: int) -> None:
        """Have the guest see that the device behind a disk has ``size`` bytes now.

        Raises NotFound for a disk that is not attached."""
        ...

    async def detach_disk(self, disk_id: str) -> None:
        """Unplug a disk, used by the guest or not; returns when its file is closed. Idempotent."""
        ...

    async def resize(self, shape: MachineShape) -> MachineShape:
        """Bring it as near to ``shape`` as the guest and the back end allow; returns what it has now.

        Memory never falls below what it started with, processors are only added. The guest's
        agent has to bring new processors online."""
        ...

    async def console_tail(self, limit: int = 4096) -> str:
        """The last bytes the guest wrote to its console; also after the machine has ended."""
        ...

    async def wait_agent_port(self, timeout: float) -> None:
        """Return when the guest's agent has opened its port. Raises DeadlineExceeded with the
        console's last lines, Unavailable when the machine ends before."""
        ...

    async def stop(self, grace: float = 0.0) -> None:
        """End it: wait ``grace`` seconds for the guest to power off, then pull the plug. Idempotent;
        when this returns no process is left, cancelled or not."""
        ...

    async def wait(self) -> str:
        """Return when it has ended, with the reason in one sentence. Any number of callers."""
        ...

    async def paused(self) -> bool:
        """Whether somebody has stopped it by hand: it is silent, and may go on."""
        ...

    async def resumed(self) -> None:
        """Return when it goes on after it was stopped by hand. Any number of callers."""
        ...

    async def memory(self) -> MemoryUse:
        """What it costs the host now. Raises Unavailable when it has ended."""
        ...

    async def close(self) -> None:
        """Let go of the running machine, which goes on; :meth:`Machines.recover` finds it again."""
        ...


Settle = Callable[[Machine], Awaitable[None]]
Progress = Callable[[str], None]


class Machines(Protocol):
    """Finds machines that run, and removes them: all that can be done without a guest to boot."""

    async def recover(self, directory: Path) -> Machine:
        """Find a machine again that an earlier daemon made; NotFound if it runs no more, Unavailable or
        DeadlineExceeded when it could not be reached now."""
        ...

    async def discard(self, directory: Path) -> None:
        """End the machine in ``directory``, if any, and remove the directory. Idempotent."""
        ...


class Hypervisor(Machines, Protocol):
    """Makes, finds and removes machines."""

    @property
    def name(self) -> str:
        """The back end's name."""
        ...

    @property
    def capabilities(self) -> Capabilities:
        """What it can do beyond the core."""
        ...

    async def has_template(self) -> bool:
        """Whether an earlier daemon left a template, be it one that fits and is whole or not."""
        ...

    async def probe(self) -> Accelerator:
        """Find out what runs guests here, by booting one where need be; remembered across restarts.

        Raises NotFound when the hypervisor or a guest file is missing, FailedPrecondition when
        the accelerator that was asked for does not work."""
        ...

    async def start(
        self, directory: Path, shape: MachineShape, *, tap_fd: int | None, share: Path
    ) -> Machine:
        """Boot a machine in the new ``directory``. ``tap_fd`` is an open tap that stays the caller's;
        ``share`` is the host directory the guest can mount. A failure leaves nothing behind."""
        ...

    async def template(self, settle: Settle, *, progress: Progress | None = None) -> Template:
        """The saved machine, built now unless a fitting one is on disk. Joins a build that is going on.

        ``settle`` is called on the booted machine before it is saved: it waits for the agent and
        brings it into the state that every clone shall start from; its connection must be closed
        when it returns."""
        ...

    async def another(self, settle: Settle) -> Template:
        """One more template beside those that are in use: one that is on disk, or a new one, made gently.

        It differs from the others in what a kernel draws when it boots: where it lies, and its secrets."""
        ...

    async def retire(self, template: Template) -> None:
        """Make no more machines of this one, and remove it; those that run go on. Idempotent."""
        ...

    async def restore(
        self, template: Template, directory: Path, *, tap_fd: int | None, share: Path
    ) -> Machine:
        """As :meth:`start`, from a template: running, its agent ready, in the template's shape.

        Raises DataLoss when the template is damaged, or was retired: it is then thrown away, and
        :meth:`template` finds or builds another."""
        ...


class NeededProgram(Value, frozen=True, kw_only=True):
    """A program that a back end runs, and the package that has it."""

    name: str
    package: str


class Backend(Protocol):
    """One kind of hypervisor, as it is configured."""

    @property
    def programs(self) -> tuple[NeededProgram, ...]:
        """What has to be installed."""
        ...

    @property
    def machines(self) -> Machines:
        """Those of its machines that run."""
        ...

    def booting(self, guest: GuestFiles, root: Path) -> Hypervisor:
        """The hypervisor whose machines boot ``guest``; it keeps templates and the like in ``root``."""
        ...
