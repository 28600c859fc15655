"""A clone with nobody but the test to talk to its agent."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orlop.guestos.build import GuestArtifacts
from orlop.hypervisor.base import Disk as HostDisk
from orlop.hypervisor.base import Hypervisor, Machine, Template
from orlop.hypervisor.qemu import backend
from orlop.hypervisor.qemu.machine import QemuMachine
from orlop.sandbox.vm.agent import AgentClient
from orlop.sandbox.vm.streams import Incoming, Outgoing
from orlop.storage import disks
from orlop.wire import messages, values
from orlop.wire.values import Container, Disks, Exit, GuestSecurity, PluggedDisk, Streams
from tests.e2e.vm_environment import ACCELERATOR, busybox_layer
from tests.patience import PATIENCE, vm_config

# "auto" would try KVM first in every test.
CONFIG = vm_config(accelerator="kvm" if ACCELERATOR == "kvm" else "tcg")
CAPABILITIES = (
    "AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD", "NET_BIND_SERVICE",
    "NET_RAW", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
)  # fmt: skip
TIMEOUT = 60.0 * PATIENCE


def security(**changes: Any) -> GuestSecurity:
    """What an ordinary container may do."""
    ordinary: dict[str, Any] = {
        "bounding": CAPABILITIES,
        "effective": CAPABILITIES,
        "masked_paths": ("/proc/kcore", "/proc/acpi", "/sys/firmware"),
        "read_only_paths": ("/proc/sys", "/proc/bus"),
    }
    return GuestSecurity(**(ordinary | changes))


async def settle(machine: Machine) -> None:
    """What is done to a machine before it is saved."""
    agent = await AgentClient.connect(machine.agent_socket, name="template", timeout=TIMEOUT)
    await agent.call(messages.Resume())
    await agent.call(messages.Quiesce(), TIMEOUT)
    await agent.close()


@dataclass
class Finished:
    """A process that has ended."""

    exit: Exit
    out: str
    err: str = ""


@dataclass
class Guest:
    """One clone."""

    machine: QemuMachine
    agent: AgentClient
    place: Path
    events: list[messages.Event] = field(default_factory=list)
    root: PluggedDisk = field(default_factory=lambda: PluggedDisk(id="root"))
    streams: dict[str, tuple[Outgoing | None, Incoming, Incoming | None]] = field(default_factory=dict)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def on_event(self, event: messages.Event) -> None:
        self.events.append(event)
        self.changed.set()

    async def plug(self, *files: Path | str, read_only: bool = True, reversible: bool = False) -> PluggedDisk:
        name = f"d{secrets.token_hex(4)}"
        disk = HostDisk(id=name, files=tuple(str(file) for file in files), read_only=read_only)
        return PluggedDisk(id=name, at=await self.machine.attach_disk(disk, reversible=reversible))

    async def create(self, name: str, *args: str, stdin: bool = False, **changes: Any) -> messages.Created:
        """``root``, ``scratch`` and ``volumes`` are its disks, all else is the container's."""
        parts = {part: changes.pop(part) for part in ("root", "scratch", "volumes") if part in changes}
        if "scratch" not in parts:
            scratch = await disks.scratch_disk(self.place / f"{name}.ext4", 64)
            parts["scratch"] = await self.plug(scratch, read_only=False)
        streams = self._streams(name, stdin=stdin, tty=changes.get("tty", False))
        ordinary: dict[str, Any] = {
            "disks": Disks(**({"root": (self.root,)} | parts)),
            "security": security(),
            "streams": streams,
        }
        container = Container(id=name, args=args, **(ordinary | changes))
        return await self.agent.call(messages.Create(container=container), TIMEOUT)

    async def start(self, name: str) -> None:
        await self.agent.call(messages.Start(id=name), TIMEOUT)

    async def delete(self, name: str) -> None:
        await self.agent.call(messages.Delete(id=name), TIMEOUT)

    async def run(self, name: str, *args: str, **changes: Any) -> Finished:
        """From Create to Delete."""
        await self.create(name, *args, **changes)
        await self.start(name)
        finished = await self.finish(name)
        await self.delete(name)
        return finished

    async def exec(self, container: str, *args: str, tty: bool = False) -> Finished:
        return await self.finish(await self.begin(container, *args, tty=tty))

    async def begin(self, container: str, *args: str, tty: bool = False) -> str:
        """Start an exec; its id."""
        name = f"x{secrets.token_hex(4)}"
        streams = self._streams(name, stdin=False, tty=tty)
        request = messages.Exec(id=name, container_id=container, args=args, tty=tty, streams=streams)
        await self.agent.call(request, TIMEOUT)
        return name

    async def finish(self, name: str) -> Finished:
        _, out, err = self.streams[name]
        texts = [await read_all(stream) if stream else "" for stream in (out, err)]
        return Finished(await self.exit_of(name), *texts)

    async def exit_of(self, name: str) -> Exit:
        kinds = (messages.ContainerExited, messages.ExecExited)
        async with asyncio.timeout(TIMEOUT):
            while True:
                self.changed.clear()
                for event in self.events:
                    if isinstance(event, kinds) and event.id == name:
                        return event.exit
                await self.changed.wait()

    async def reconnect(self) -> None:
        """As a daemon that was killed and started again: nothing but the socket is left."""
        await self.agent.close()
        self.agent = await AgentClient.connect(self.machine.agent_socket, name="again", timeout=TIMEOUT)
        self.agent.on_event = self.on_event

    def _streams(self, name: str, *, stdin: bool, tty: bool) -> Streams:
        into = self.agent.outgoing(self.agent.new_stream()) if stdin else None
        out = self.agent.incoming(self.agent.new_stream())
        err = None if tty else self.agent.incoming(self.agent.new_stream())
        self.streams[name] = (into, out, err)
        return Streams(stdin=into.stream if into else 0, stdout=out.stream, stderr=err.stream if err else 0)


async def read_all(stream: Incoming) -> str:
    data = b""
    async with asyncio.timeout(TIMEOUT):
        while chunk := await stream.read():
            data += chunk
            stream.consumed(len(chunk))
    stream.end_consumed()
    return data.decode(errors="replace")


@asynccontextmanager
async def fresh_guest(
    artifacts: GuestArtifacts, templates: Path, place: Path, **setup: Any
) -> AsyncIterator[Guest]:
    """A clone that was set up, with a root image plugged; ``templates`` keeps the template between tests."""
    hypervisor = backend(CONFIG).booting(artifacts, templates)
    async with guest_of(hypervisor, await hypervisor.template(settle), place, **setup) as guest:
        guest.root = await guest.plug(busybox_layer())
        yield guest


@asynccontextmanager
async def guest_of(
    hypervisor: Hypervisor, template: Template, place: Path, **setup: Any
) -> AsyncIterator[Guest]:
    """A clone of that template that was set up."""
    (place / "share").mkdir(exist_ok=True)
    machine = await hypervisor.restore(template, place / "vm", tap_fd=None, share=place / "share")
    try:
        agent = await AgentClient.connect(machine.agent_socket, name="test", timeout=TIMEOUT)
        guest = Guest(machine, agent, place)
        agent.on_event = guest.on_event
        await agent.call(messages.Resume())
        identity: dict[str, Any] = {
            "hostname": "pod",
            "share": machine.share_at,
            "clock": time.time_ns(),
            "entropy": secrets.token_bytes(64),
            "resolv_conf": "nameserver 192.0.2.53\n",
        }
        await agent.call(messages.Setup(**(identity | setup)), TIMEOUT)
        yield guest
        with suppress(Exception):
            await guest.agent.close()
    finally:
        await machine.stop()
        await hypervisor.discard(machine.directory)


Scenario = Callable[[Guest], Awaitable[None]]

__all__ = ["CAPABILITIES", "Finished", "Guest", "fresh_guest", "read_all", "security", "settle", "values"]
