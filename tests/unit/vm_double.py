"""A host on which VMs are only entries in sets: what a driver makes, takes back and forgets can be counted.

Every effect is a step with a turn of the event loop before and after it, so that a cancellation can fall on
either side; a step whose name is in :attr:`Host.failing` fails. The guest's agent is the real protocol.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.config import Config, PoolConfig, VmConfig
from orlop.errors import NotFound, Unavailable
from orlop.host import netns, threads
from orlop.host.tasks import uncancelled
from orlop.hypervisor.base import (
    Accelerator,
    Capabilities,
    Disk,
    GuestFiles,
    Hypervisor,
    Machine,
    Machines,
    MachineShape,
    MemoryUse,
    Progress,
    Settle,
    Stacking,
    Template,
)
from orlop.net.model import NetworkResult
from orlop.net.network import PodNetwork
from orlop.sandbox.vm import clock as clocks
from orlop.sandbox.vm import clone as clones
from orlop.sandbox.vm import network as networks
from orlop.sandbox.vm import plugs, warm
from orlop.sandbox.vm.driver import VmDriver
from orlop.sandbox.vm.states import Ready
from orlop.storage.share import Share
from orlop.wire.messages import (
    Clock,
    ClockReply,
    Create,
    Created,
    Done,
    Online,
    OnlineReply,
    Request,
    Setup,
    SetupReply,
)
from orlop.wire.values import Interface
from tests.unit.vm_peer import Peer

SHAPE = MachineShape(memory_mib=256)
TCG = Accelerator(kind="tcg", reason="for the test")


class Host:
    """What there is of everything; empty when all was taken back."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.machines: dict[Path, DoubleMachine] = {}
        self.spaces: set[Path] = set()
        self.attached: set[str] = set()
        self.taps: set[int] = set()
        self.failing: set[str] = set()
        self.done: list[str] = []

    async def step(self, name: str) -> None:
        """The point at which ``name`` happens."""
        await asyncio.sleep(0)
        if name in self.failing:
            raise Unavailable(f"{name} fails")
        self.done.append(name)

    @property
    def left(self) -> dict[str, object]:
        """What is there, by kind; nothing when all was taken back."""
        state = self.place / "state"
        files = [str(path.relative_to(state)) for path in sorted(state.rglob("*"))] if state.exists() else []
        found: dict[str, object] = {
            "machines": list(self.machines),
            "spaces": sorted(self.spaces),
            "attached": sorted(self.attached),
            "taps": sorted(self.taps),
            "files": [name for name in files if name not in ("vms", "vm-pods")],
        }
        return {kind: value for kind, value in found.items() if value}


class DoubleMachine:
    """A running machine, with an agent that says yes."""

    pid = 0
    share_at = network_at = "here"
    confinement = None

    def __init__(self, host: Host, directory: Path) -> None:
        self.host = host
        self.directory = directory
        self.shape = SHAPE
        self.disks: set[str] = set()
        self.agent_socket = directory / "a"
        self.peer = Peer(self.agent_socket, self.answer)
        self.ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def answer(self, request: Request[Any]) -> Any:
        if isinstance(request, Setup):
            return SetupReply(kernel="6")
        if isinstance(request, Create):
            return Created(uid=0, gid=0, groups=())
        if isinstance(request, Clock):
            return ClockReply(time=time.time_ns())
        if isinstance(request, Online):
            return OnlineReply(cpus=self.shape.vcpus)
        return Done()

    async def begin(self) -> None:
        self.directory.mkdir(parents=True)
        self.host.machines[self.directory] = self
        await uncancelled(self.peer.__aenter__())

    async def end(self) -> None:
        if self.host.machines.pop(self.directory, None) is not None:
            await self.peer.__aexit__()
        if not self.ended.done():
            self.ended.set_result("it was stopped")

    async def wait(self) -> str:
        return await asyncio.shield(self.ended)

    async def stop(self, grace: float = 0.0) -> None:
        await self.host.step("stop the machine")
        await self.end()

    async def close(self) -> None:
        await self.host.step("close the machine")

    async def resize(self, shape: MachineShape) -> MachineShape:
        await self.host.step("resize")
        self.shape = shape
        return shape

    async def resumed(self) -> None:
        await asyncio.Event().wait()

    async def memory(self) -> MemoryUse:
        await self.host.step("measure")
        return MemoryUse(pss=1, private=1, shared=0)

    async def console_tail(self, limit: int = 4096) -> str:
        return ""

    async def wait_agent_port(self, timeout: float) -> None:
        await self.host.step("boot")

    def stacking(self, layers: int) -> Stacking:
        return Stacking.APART

    async def attach_disk(self, disk: Disk, *, reversible: bool = False) -> tuple[str, ...]:
        await self.host.step("attach a disk")
        self.disks.add(disk.id)
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            self.disks.discard(disk.id)
            raise
        return tuple("there" for _ in disk.files)

    async def detach_disk(self, disk_id: str) -> None:
        await self.host.step("detach a disk")
        self.disks.discard(disk_id)


class DoubleHypervisor:
    name = "double"
    capabilities = Capabilities(template=True, add_vcpus=False)

    def __init__(self, host: Host) -> None:
        self.host = host

    async def probe(self) -> Accelerator:
        return TCG

    async def has_template(self) -> bool:
        return False

    async def template(self, settle: Settle, *, progress: Progress | None = None) -> Template:
        await self.host.step("make the template")
        return Template(key="k", directory=Path("/none"), shape=SHAPE, accelerator=TCG)

    async def restore(
        self, template: Template, directory: Path, *, tap_fd: int | None, share: Path
    ) -> Machine:
        await self.host.step("restore")
        machine = DoubleMachine(self.host, directory)
        try:
            await machine.begin()
            await self.host.step("restored")
        except BaseException:
            await machine.end()
            raise
        return cast(Machine, machine)

    async def recover(self, directory: Path) -> Machine:
        await self.host.step("recover")
        if directory not in self.host.machines:
            raise NotFound("it runs no more")
        return cast(Machine, self.host.machines[directory])

    async def discard(self, directory: Path) -> None:
        await self.host.step("discard the machine")
        if directory in self.host.machines:
            await self.host.machines[directory].end()
        await asyncio.sleep(0)
        shutil.rmtree(directory, ignore_errors=True)


class DoubleNetwork:
    def __init__(self, host: Host) -> None:
        self.host = host

    async def attach(self, pod_id: str, netns: Path, /, **unused: object) -> NetworkResult:
        await self.host.step("attach to the network")
        self.host.attached.add(pod_id)
        await asyncio.sleep(0)
        return NetworkResult()

    async def detach(self, pod_id: str, netns: Path) -> None:
        await self.host.step("detach from the network")
        self.host.attached.discard(pod_id)
        await asyncio.sleep(0)

    def result(self, pod_id: str) -> NetworkResult | None:
        return None


class Guest:
    kernel = initrd = image = Path("/none")
    digest = "d"


def install(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let everything that would touch this machine happen on ``host``."""

    async def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(*args, **kwargs)

    async def create(path: Path) -> None:
        await host.step("make the namespace")
        host.spaces.add(path)
        await asyncio.sleep(0)

    async def delete(path: Path) -> None:
        await host.step("remove the namespace")
        host.spaces.discard(path)

    async def create_tap(path: Path, name: str) -> int:
        await host.step("make the tap")
        return os.open("/dev/null", os.O_RDONLY)

    async def join_tap(path: Path, interface: str, *, tap: str) -> None:
        await host.step("join the tap")

    async def described(path: Path, interface: str, at: str) -> Interface:
        await host.step("look at the interface")
        mac = "02:00:00:00:00:01"
        return Interface(at=at, name=interface, mac=mac, mtu=1500, addresses=("10.0.0.2/24",))

    async def release_all(share: Share) -> None:
        await host.step("release the share")

    async def exercise(*args: object, **kwargs: object) -> None:
        await host.step("warm up")

    async def scratch_disk(path: Path, size_mib: int) -> Path:
        await host.step("make the writable layer")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        return path

    async def check_layers(layers: object) -> None:
        await host.step("check the layers")

    # A look at a clock would be one more turn at a moment of its own.
    monkeypatch.setattr(clocks, "OFTEN", 3600.0)
    monkeypatch.setattr(clocks, "SELDOM", 3600.0)
    # Threads would make the number of turns that a step takes a matter of luck.
    monkeypatch.setattr(threads, "call", call)
    monkeypatch.setattr(netns, "create", create)
    monkeypatch.setattr(netns, "delete", delete)
    monkeypatch.setattr(clones, "create_tap", create_tap)
    monkeypatch.setattr(networks, "described", described)
    monkeypatch.setattr(networks, "join_tap", join_tap)
    monkeypatch.setattr(Share, "release_all", release_all)
    monkeypatch.setattr(warm, "rehearse", exercise)
    monkeypatch.setattr(warm, "exercise", exercise)
    monkeypatch.setattr(plugs, "scratch_disk", scratch_disk)
    monkeypatch.setattr(plugs, "check_layers", check_layers)


@asynccontextmanager
async def host_of(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    """An empty host, in a directory whose name leaves room for the sockets below it."""
    with tempfile.TemporaryDirectory(prefix="orlop-", dir="/tmp") as place:
        host = Host(Path(place))
        install(host, monkeypatch)
        yield host


@asynccontextmanager
async def driver_of(host: Host, *, pool: int = 0, **vm: Any) -> AsyncIterator[VmDriver]:
    """A driver that is ready, with a pool of that many clones; ``vm`` are keys of ``[vm]``."""
    config = Config(
        root=str(host.place / "root"),
        state=str(host.place / "state"),
        vm=VmConfig(pool=PoolConfig(size=pool, max_size=0), default_memory_mib=256, **vm),
    )

    async def source() -> tuple[Hypervisor, GuestFiles]:
        return cast(Hypervisor, hypervisor), cast(GuestFiles, Guest())

    hypervisor = DoubleHypervisor(host)
    network = cast(PodNetwork, DoubleNetwork(host))
    driver = VmDriver(config, network, cast(Machines, hypervisor), source)
    await driver.open()
    try:
        while not isinstance(driver._state, Ready):  # noqa: ASYNC110
            await asyncio.sleep(0)
        yield driver
    finally:
        await driver.close()
