"""One running QEMU: its disks, its size, its end."""

from __future__ import annotations

import asyncio
import base64
import logging
import signal
from contextlib import suppress
from pathlib import Path

import msgspec

from orlop.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    ResourceExhausted,
    Unavailable,
)
from orlop.host import blockdevices, filesizes, process, scheduling, tasks, threads
from orlop.host.tasks import beside
from orlop.hypervisor.base import Confinement, Disk, MachineShape, MemoryUse, Stacking
from orlop.hypervisor.qemu import (
    addresses,
    bays,
    blocks,
    cmdline,
    descriptors,
    ending,
    memuse,
    record,
    stacks,
)
from orlop.hypervisor.qemu.bays import SCSI_BUS, Bay
from orlop.hypervisor.qemu.blocks import Content
from orlop.hypervisor.qemu.errorlog import ErrorLog
from orlop.hypervisor.qemu.launch import AGENT_SOCKET, MONITOR_SOCKET
from orlop.hypervisor.qemu.monitor import CommandFailed, Monitor
from orlop.hypervisor.qemu.record import title
from orlop.wire.values import GuestAddress

log = logging.getLogger(__name__)

CONSOLE_LOG = "console.log"
_UNPLUG_TIMEOUT = 15.0
_GROW_TIMEOUT = 10.0
_SHRINK_TIMEOUT = 1.0
_SIZE_INTERVAL = 0.01
_QUICK = 2.0
_MIGRATION_STEPS = 64
_MEMORY_PATH = f"/machine/peripheral/{cmdline.MEMORY_DEVICE}"


class QemuMachine:
    """A machine in its directory. :meth:`open` it; :meth:`stop` or :meth:`close` ends that.

    A guest that powers off, reboots or crashes leaves QEMU paused, and so does QEMU when it cannot go on:
    the console is read first, then QEMU is ended, and :meth:`wait` returns.
    """

    def __init__(
        self,
        directory: Path,
        known: record.MachineRecord,
        child: process.Detached | None = None,
        log: ErrorLog | None = None,
    ) -> None:
        self._directory = directory
        self.name = title(directory)
        self._record = known
        self._child = child
        self._log = log or ErrorLog(directory)
        self._monitor: Monitor | None = None
        self._lock = asyncio.Lock()
        self._resizing = asyncio.Lock()
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._tasks = tasks.Tasks()
        self._watch = self._tasks.spawn(self._watch_process(), f"the watch on {self.name}")
        self._looking: asyncio.Task[None] | None = None
        self._going_down: asyncio.Task[None] | None = None
        self._down = asyncio.Event()
        self._why = ""
        self._port_open = asyncio.Event()
        self._resumed = asyncio.Event()
        self._unplugged: dict[str, asyncio.Event] = {}
        self.migration: asyncio.Queue[str] = asyncio.Queue(_MIGRATION_STEPS)

    @property
    def pid(self) -> int:
        """QEMU's process."""
        return self._record.pid

    @property
    def start_time(self) -> int:
        """The start time of that process, which with its pid tells it from any other."""
        return self._record.start_time

    @property
    def directory(self) -> Path:
        """Where its sockets and state files are."""
        return self._directory

    @property
    def agent_socket(self) -> Path:
        """The Unix socket that leads to the agent's port."""
        return self._directory / AGENT_SOCKET

    @property
    def shape(self) -> MachineShape:
        """Its present size."""
        return self._record.shape

    @property
    def confinement(self) -> Confinement | None:
        """See :class:`orlop.hypervisor.base.Machine`."""
        owner = self._record.owner
        return Confinement(share=Path(cmdline.SHARE), owner=owner) if owner else None

    @property
    def share_at(self) -> GuestAddress:
        """See :class:`orlop.hypervisor.base.Machine`."""
        return addresses.SHARE

    @property
    def network_at(self) -> GuestAddress:
        """See :class:`orlop.hypervisor.base.Machine`."""
        return addresses.NETWORK

    @property
    def monitor(self) -> Monitor:
        """The connection to QEMU. Raises Unavailable when there is none."""
        if self._monitor is None or self._ended.done():
            raise Unavailable(f"the machine {self.name} has ended: {self._reason()}")
        return self._monitor

    async def open(self, *, agent_ready: bool) -> None:
        """Connect to QEMU. ``agent_ready`` says that the agent's port was opened before."""
        if agent_ready:
            self._port_open.set()
        try:
            self._monitor = await Monitor.connect(
                self.name, str(self._directory / MONITOR_SOCKET), self._on_event, why=self._known_reason
            )
        except Unavailable as error:
            why = await self._known_reason()
            if not self._ended.done():
                raise
            raise Unavailable(f"the machine {self.name} did not start: {why}") from error

    async def save_record(self) -> None:
        """Write down what is known, for :meth:`Hypervisor.recover`."""
        await threads.call(record.save, self._directory, self._record)

    # Disks

    def stacking(self, layers: int) -> Stacking:
        """See :class:`orlop.hypervisor.base.Machine`.

        The guest need not look for disks in bays. Where it has to, one with partitions is less work."""
        room = bays.left(self._record.bays, self._record.spent, read_only=True)
        return Stacking.APART if layers <= room else Stacking.TOGETHER

    async def attach_disk(self, disk: Disk, *, reversible: bool = False) -> tuple[GuestAddress, ...]:
        """Plug one disk; see :class:`orlop.hypervisor.base.Machine`."""
        async with self._lock:
            size = await threads.call(self._check, disk)
            # What is in a bay has the size that the guest has always known.
            lun, bay = self._assign(disk, size, reversible=reversible or disk.device)
        try:
            async with self._lock:
                await self.save_record()
            if not disk.read_only:
                filesizes.allow(self.pid, size)
            content = await self._content(disk, lun, size)
            if bay is not None:
                await bays.insert(self.monitor, bay, content)
            else:
                await self._plug(content, lun)
        except BaseException:
            await tasks.roll_back(f"disk {disk.id} of {self.name}", self.detach_disk(disk.id))
            raise
        return addresses.disk(lun, len(disk.files), kept=bay is not None)

    async def detach_disk(self, disk_id: str) -> None:
        """Unplug a disk; see :class:`orlop.hypervisor.base.Machine`."""
        lun = dict(self._record.disks).get(disk_id)
        if lun is None or self._ended.done():
            return
        bay = next((bay for bay in self._record.bays if bay.lun == lun), None)
        if bay is not None:
            await bays.empty(self.monitor, bay)
        else:
            await self._unplug(lun)
        await descriptors.take_back(self.monitor, lun)
        async with self._lock:
            await threads.call(stacks.remove, self._directory, disk_id)
            disks = tuple(item for item in self._record.disks if item[0] != disk_id)
            self._record = msgspec.structs.replace(self._record, disks=disks)
            await self.save_record()

    async def resize_disk(self, disk_id: str, size: int) -> None:
        """Have the guest see a size; see :class:`orlop.hypervisor.base.Machine`."""
        lun = dict(self._record.disks).get(disk_id)
        if lun is None:
            raise NotFound(f"the machine {self.name} has no disk {disk_id}")
        await self.monitor.execute("block_resize", {"node-name": f"disk{lun}", "size": size})

    def _check(self, disk: Disk) -> int:
        if disk.id in dict(self._record.disks):
            raise AlreadyExists(f"the machine {self.name} has a disk {disk.id} already")
        for file in disk.files:
            if not Path(file).exists():
                raise NotFound(f"the file {file} of disk {disk.id} does not exist")
        return Path(disk.files[0]).stat().st_size

    async def _content(self, disk: Disk, lun: int, size: int) -> Content:
        """Let QEMU have the disk's files, and say what it calls them."""
        stacked = len(disk.files) > 1
        files = [Path(disk.files[0])]
        if stacked:
            stack = await threads.call(
                stacks.write,
                disk.files,
                self._directory,
                disk.id,
                lambda number: descriptors.name(lun, 1 + number),
            )
            files = [stack.description, stack.table, *stack.files]
        device = await threads.call(_device, disk) if disk.device else None
        await descriptors.give(
            self.monitor, lun, files, read_only=disk.read_only, exclusive=device is not None
        )
        return Content(
            name=descriptors.name(lun, 0),
            size=size,
            read_only=disk.read_only,
            stacked=stacked,
            durable=disk.durable,
            device=device,
        )

    def _assign(self, disk: Disk, size: int, *, reversible: bool) -> tuple[int, Bay | None]:
        used = dict(self._record.disks)
        bay = None
        if not reversible:
            bay = bays.choose(
                self._record.bays,
                self._record.spent,
                size,
                read_only=disk.read_only,
                durable=disk.durable,
            )
        lun, next_lun, spent = self._record.next_lun, self._record.next_lun, self._record.spent
        if bay is not None:
            lun, spent = bay.lun, (*spent, bay.lun)
        else:
            taken = {*used.values(), *(bay.lun for bay in self._record.bays)}
            if len(taken) >= cmdline.MAX_LUN:
                raise ResourceExhausted(f"the machine {self.name} has no slot for another disk")
            # Numbers are not used again soon: the guest may still be forgetting an old disk.
            while lun in taken or not 0 < lun <= cmdline.MAX_LUN:
                lun = lun + 1 if lun < cmdline.MAX_LUN else 1
            next_lun = lun + 1
        used[disk.id] = lun
        self._record = msgspec.structs.replace(
            self._record, disks=tuple(used.items()), next_lun=next_lun, spent=spent
        )
        return lun, bay

    async def _plug(self, content: Content, lun: int) -> None:
        device: dict[str, object] = {
            "driver": "scsi-hd",
            "id": f"lun{lun}",
            "bus": SCSI_BUS,
            "channel": 0,
            "scsi-id": 0,
            "lun": lun,
            "drive": f"disk{lun}",
            "rotation_rate": 1,
            # A full host disk is an I/O error of that container's, not a halt of the whole pod.
            "werror": "report",
            "rerror": "report",
            **content.sectors,
        }
        await self.monitor.execute("blockdev-add", {"node-name": f"disk{lun}", **content.whole_node})
        await self.monitor.execute("device_add", device)

    async def _unplug(self, lun: int) -> None:
        device, node = f"lun{lun}", f"disk{lun}"
        gone = self._unplugged.setdefault(device, asyncio.Event())
        try:
            await self.monitor.execute("device_del", {"id": device})
            async with asyncio.timeout(_UNPLUG_TIMEOUT):
                await gone.wait()
        except CommandFailed as error:
            if error.reason != "DeviceNotFound":
                raise
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"QEMU of {self.name} did not let go of {device} in {_UNPLUG_TIMEOUT:g} seconds"
            ) from error
        finally:
            self._unplugged.pop(device, None)
        await blocks.remove(self.monitor, node)

    # Size

    async def resize(self, shape: MachineShape) -> MachineShape:
        """Grow or shrink; see :class:`orlop.hypervisor.base.Machine`."""
        if shape.memory_mib <= 0 or shape.vcpus <= 0:
            raise InvalidArgument(f"a machine cannot have {shape.memory_mib} MiB and {shape.vcpus} vCPUs")
        async with self._resizing:
            vcpus = await self._add_vcpus(shape.vcpus) if shape.vcpus > self.shape.vcpus else self.shape.vcpus
            memory = self.shape.memory_mib
            if shape.memory_mib != memory:
                memory = await self._resize_memory(shape.memory_mib)
            async with self._lock:
                reached = MachineShape(memory_mib=memory, vcpus=vcpus)
                self._record = msgspec.structs.replace(self._record, shape=reached)
                await self.save_record()
        return reached

    async def _resize_memory(self, memory_mib: int) -> int:
        base = self._record.base_memory_mib
        limit = self._record.max_memory_mib
        if memory_mib > limit:
            raise FailedPrecondition(
                f"the machine {self.name} can have {limit} MiB at most, not {memory_mib} MiB: "
                "raise vm.max_memory_mib"
            )
        if limit <= base:
            return base
        if not (block := await self._get_size("block-size")):
            raise self._nonsense("qom-get")
        wanted = -(-max(0, (memory_mib - base) << 20) // block) * block
        wanted = min(wanted, ((limit - base) << 20) // block * block)
        await self.monitor.execute(
            "qom-set", {"path": _MEMORY_PATH, "property": "requested-size", "value": wanted}
        )
        # The guest gives memory up slowly and perhaps never; it goes on trying.
        patience = _GROW_TIMEOUT if memory_mib > self.shape.memory_mib else _SHRINK_TIMEOUT
        with suppress(TimeoutError):
            async with asyncio.timeout(patience):
                # QEMU tells of it once a second at most: too late to wait for.
                while await self._get_size("size") != wanted:  # noqa: ASYNC110 - there is no event
                    await asyncio.sleep(_SIZE_INTERVAL)
        return base + (await self._get_size("size") >> 20)

    async def _get_size(self, name: str) -> int:
        value = await self.monitor.execute("qom-get", {"path": _MEMORY_PATH, "property": name})
        if not isinstance(value, int) or value < 0:
            raise self._nonsense("qom-get")
        return value

    def _nonsense(self, command: str) -> Unavailable:
        """For an answer that no QEMU gives which is its own master."""
        return Unavailable(f"QEMU of {self.name} answers {command} with what makes no sense")

    async def _add_vcpus(self, wanted: int) -> int:
        answer = await self.monitor.execute("query-hotpluggable-cpus")
        slots = [slot for slot in answer if isinstance(slot, dict)] if isinstance(answer, list) else []
        if not all(isinstance(slot.get("props"), dict) and "type" in slot for slot in slots):
            raise self._nonsense("query-hotpluggable-cpus")
        present = sum(1 for slot in slots if "qom-path" in slot)
        free = [slot for slot in reversed(slots) if "qom-path" not in slot]
        free.sort(key=lambda slot: sorted((name, _number(value)) for name, value in slot["props"].items()))
        for slot in free[: max(0, wanted - present)]:
            number = "-".join(str(value) for _, value in sorted(slot["props"].items()))
            await self.monitor.execute(
                "device_add", {"driver": slot["type"], "id": f"vcpu{number}", **slot["props"]}
            )
            present += 1
        return present

    async def resumed(self) -> None:
        """Wait until it goes on; see :class:`orlop.hypervisor.base.Machine`."""
        await self._resumed.wait()

    async def memory(self) -> MemoryUse:
        """What it costs the host; see :class:`orlop.hypervisor.base.Machine`."""
        if not process.pid_alive(self.pid, self.start_time):
            raise Unavailable(f"the machine {self.name} has ended: {self._reason()}")
        return await threads.call(memuse.of_process, self.pid)

    # Console and end

    async def console_tail(self, limit: int = 4096) -> str:
        """The last bytes of the console; see :class:`orlop.hypervisor.base.Machine`."""
        await self._drain_console()
        path = self._directory / CONSOLE_LOG
        try:
            data = await threads.call(path.read_bytes)
        except OSError:
            return ""
        return data[-limit:].decode(errors="replace")

    async def wait_agent_port(self, timeout: float) -> None:
        """Wait for the agent's port; see :class:`orlop.hypervisor.base.Machine`."""
        async with beside(self._port_open.wait()) as opened:
            await asyncio.wait((opened, self._ended), timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if self._port_open.is_set() and not self._ended.done():
            return
        console = (await self.console_tail(600)).strip()
        said = f"; its console ends with: {console}" if console else ""
        if self._ended.done():
            raise Unavailable(f"the machine {self.name} ended while it booted: {self._reason()}{said}")
        raise DeadlineExceeded(f"the agent of {self.name} did not come up within {timeout:g} seconds{said}")

    async def stop(self, grace: float = 0.0) -> None:
        """End it; see :class:`orlop.hypervisor.base.Machine`."""
        try:
            if grace > 0 and not self._ended.done():
                async with beside(self._down.wait()) as down:
                    await asyncio.wait(
                        (down, self._ended), timeout=grace, return_when=asyncio.FIRST_COMPLETED
                    )
        finally:
            await tasks.uncancelled(self._end())

    async def wait(self) -> str:
        """Wait for the end; see :class:`orlop.hypervisor.base.Machine`."""
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        """Let go of it; see :class:`orlop.hypervisor.base.Machine`."""
        await self._tasks.close()
        if self._monitor is not None:
            await self._monitor.close()
        self._log.close()
        if not self._ended.done():
            self._ended.cancel()

    def _reason(self) -> str:
        if self._ended.done() and not self._ended.cancelled():
            return self._ended.result()
        return self._why or "it is not connected"

    async def _known_reason(self) -> str:
        """Why it ended; its process is seen to end a moment after its monitor."""
        await asyncio.wait((self._ended,), timeout=_QUICK)
        return self._reason()

    async def paused(self) -> bool:
        """Whether somebody stopped it by hand; see :class:`orlop.hypervisor.base.Machine`."""
        if scheduling.is_stopped(self.pid):
            return True
        try:
            return await self._state() == "paused"
        except OrlopError:
            return False

    async def _end(self) -> None:
        if self._going_down is not None:
            await asyncio.wait((self._going_down,))
        self._why = self._why or "it was stopped"
        try:
            # Before its monitor is left: one that hangs would hold that up.
            await process.kill_pid(self.pid, self.start_time)
        finally:
            if self._monitor is not None:
                await self._monitor.close()
        await asyncio.wait((self._ended,))
        await asyncio.wait({self._watch, self._looking or self._watch})

    async def _watch_process(self) -> None:
        await process.wait_pid(self.pid)
        status = ""
        if self._child is not None:
            code = await self._child.wait()
            status = f" with status {code}" if code >= 0 else f" by signal {-code}"
            if code == -signal.SIGSYS:
                status += " over a system call that no QEMU makes (see vm.qemu.seccomp)"
        words = self._log.last_words()
        await threads.call(self._log.save)
        self._log.close()
        if not self._why:
            self._why = f"QEMU ended{status}" + (f": {words}" if words else "")
        if not self._ended.done():
            self._ended.set_result(self._why)

    async def _state(self) -> str:
        answer = await self.monitor.execute("query-status", timeout=_QUICK)
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def _look_why_stopped(self) -> None:
        with suppress(OrlopError):  # then it has ended altogether, which is seen elsewhere
            state = await self._state()
            why = ending.reason(state, self._log.complaint(), await self.console_tail())
            if why:
                self._begin_going_down(why)

    def _begin_going_down(self, why: str) -> None:
        if self._going_down is None:
            self._going_down = self._tasks.spawn(self._go_down(why), f"the end of {self.name}")

    async def _go_down(self, why: str) -> None:
        self._why = self._why or why
        with suppress(OrlopError, OSError):
            await self._drain_console()
        await process.kill_pid(self.pid, self.start_time)

    async def _drain_console(self) -> None:
        """Move what is in QEMU's ring buffer to the log, of which only the end is kept."""
        if self._monitor is None or self._ended.done():
            return
        with suppress(OrlopError):
            answer = await self._monitor.execute(
                "ringbuf-read",
                {"device": cmdline.CONSOLE_ID, "size": cmdline.CONSOLE_BYTES, "format": "base64"},
                timeout=_QUICK,
            )
            try:
                data = base64.b64decode(str(answer))
            except ValueError:
                raise self._nonsense("ringbuf-read") from None
            if data:
                await threads.call(_append_bounded, self._directory / CONSOLE_LOG, data)

    def _on_event(self, name: str, data: dict[str, object]) -> None:
        if name == "DEVICE_DELETED":
            event = self._unplugged.get(str(data.get("device", "")))
            if event is not None:
                event.set()
        elif name == "VSERPORT_CHANGE" and data.get("id") == cmdline.AGENT_PORT_ID:
            if data.get("open"):
                self._port_open.set()
        elif name == "MIGRATION":
            # Whoever waits for one wants the last; nobody does later, when a guest could make QEMU send many.
            with suppress(asyncio.QueueFull):
                self.migration.put_nowait(str(data.get("status", "")))
        elif name == "RESUME":
            # Whoever waits wakes; it is no state that would hold later.
            self._resumed.set()
            self._resumed.clear()
        elif name == "STOP" and (self._looking is None or self._looking.done()):
            with suppress(Unavailable):  # it is being let go of
                self._looking = self._tasks.spawn(self._look_why_stopped(), f"why {self.name} stopped")
        elif name == "SHUTDOWN":
            self._down.set()
            why = {"guest-shutdown": "the guest powered off", "guest-reset": "the guest rebooted or crashed"}
            reason = str(data.get("reason", ""))
            if data.get("guest"):
                self._begin_going_down(why.get(reason, f"the guest ended: {reason}"))


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _device(disk: Disk) -> blockdevices.BlockDevice:
    try:
        found = blockdevices.look(disk.files[0])
    except OSError as error:
        raise FailedPrecondition(f"the device {disk.files[0]} cannot be opened: {error.strerror}") from error
    if found is None:
        raise FailedPrecondition(f"{disk.files[0]} is not a block device")
    return found


def _append_bounded(path: Path, data: bytes) -> None:
    old = path.read_bytes() if path.exists() else b""
    path.write_bytes((old + data)[-cmdline.CONSOLE_BYTES :])
