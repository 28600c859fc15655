"""What the handler ``vm`` says of itself while it gets ready, with a hypervisor that does as it is told."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from orlop.config import Config, NetworkConfig, PoolConfig, VmConfig
from orlop.errors import NotFound, OrlopError, Unavailable
from orlop.hypervisor.base import (
    Accelerator,
    Capabilities,
    GuestFiles,
    Hypervisor,
    Machine,
    Machines,
    MachineShape,
    Progress,
    Settle,
    Template,
)
from orlop.net.network import PodNetwork
from orlop.sandbox.spec import PodSpec
from orlop.sandbox.vm import driver as drivers
from orlop.sandbox.vm.driver import VmDriver
from orlop.sandbox.vm.files import PodFile, PodFiles
from orlop.sandbox.vm.states import Absent, Preparing, Ready
from tests.patience import until

POD = PodSpec(id="p1", name="p", uid="u", namespace="n")
TCG = Accelerator(kind="tcg", reason="for the test")


class Guest:
    kernel = initrd = image = Path("/none")
    digest = "d"


class Told:
    """A hypervisor with no machines; its template is found, or made in steps, or fails."""

    name = "told"
    capabilities = Capabilities(template=True, add_vcpus=False)

    def __init__(self) -> None:
        self.found = True
        self.left = False
        self.failure: OrlopError | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def has_template(self) -> bool:
        return self.left

    async def probe(self) -> Accelerator:
        return TCG

    async def template(self, settle: Settle, *, progress: Progress | None = None) -> Template:
        if self.failure is not None:
            raise self.failure
        if not self.found and progress is not None:
            progress("booting")
        await self.gate.wait()
        return Template(key="k", directory=Path("/none"), shape=MachineShape(memory_mib=64), accelerator=TCG)

    async def recover(self, directory: Path) -> Machine:
        raise NotFound("it runs no more")

    async def discard(self, directory: Path) -> None:
        pass


class World:
    """A driver, and what its guest image and its hypervisor do."""

    def __init__(self, tmp_path: Path) -> None:
        self.hypervisor = Told()
        self.missing: OrlopError | None = None
        self.looks = 0
        config = Config(
            root=str(tmp_path / "root"),
            state=str(tmp_path / "state"),
            vm=VmConfig(pool=PoolConfig(size=0)),
            network=NetworkConfig(conf_dir=str(tmp_path)),
        )
        network = PodNetwork(config.network, config.root_dir / "net")
        self.driver = VmDriver(config, network, cast(Machines, self.hypervisor), self.source)

    async def source(self) -> tuple[Hypervisor, GuestFiles]:
        self.looks += 1
        if self.missing is not None:
            raise self.missing
        return cast(Hypervisor, self.hypervisor), cast(GuestFiles, Guest())

    @property
    def state(self) -> Any:
        return self.driver._state


@asynccontextmanager
async def opened(world: World) -> AsyncIterator[VmDriver]:
    await world.driver.open()
    try:
        yield world.driver
    finally:
        await world.driver.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "_LOOK_AGAIN", 0.02)


async def test_a_template_that_is_found_is_not_said_to_be_made(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hypervisor.gate.clear()
    async with opened(world) as driver:
        await until(lambda: isinstance(world.state, Preparing))
        await asyncio.sleep(0.05)
        assert isinstance(world.state, Preparing)
        assert await driver.ready() == "the accelerator and the VM template are being looked for"
        world.hypervisor.gate.set()
        await until(lambda: isinstance(world.state, Ready))
        assert await driver.ready() == ""
    assert await driver.ready() == "the handler vm is closed"


async def test_a_restart_does_not_make_the_node_unready(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hypervisor.left = True
    world.hypervisor.gate.clear()
    async with opened(world) as driver:
        await until(lambda: isinstance(world.state, Preparing))
        await asyncio.sleep(0.05)
        assert isinstance(world.state, Preparing)
        assert await driver.ready() == ""
        world.hypervisor.gate.set()
        await until(lambda: isinstance(world.state, Ready))


async def test_a_template_that_does_not_fit_any_more_is_said_to_be_made(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hypervisor.left, world.hypervisor.found = True, False
    world.hypervisor.gate.clear()
    async with opened(world) as driver:
        await until(lambda: "made" in world.state.reason)
        assert await driver.ready() == "the VM template is being made: booting"
        world.hypervisor.gate.set()
        await until(lambda: isinstance(world.state, Ready))


async def test_a_template_that_cannot_be_used_any_more_is_told(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hypervisor.left, world.hypervisor.failure = True, Unavailable("QEMU does not start")
    async with opened(world) as driver:
        await until(lambda: isinstance(world.state, Absent))
        assert await driver.ready() == "QEMU does not start"


async def test_a_template_that_is_made_tells_the_step(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hypervisor.found = False
    world.hypervisor.gate.clear()
    async with opened(world) as driver:
        await until(lambda: "made" in world.state.reason)
        assert await driver.ready() == "the VM template is being made: booting"
        world.hypervisor.gate.set()
        await until(lambda: isinstance(world.state, Ready))


async def test_without_a_guest_image_pods_are_refused_with_the_reason(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.missing = NotFound("there is no guest image: build one")
    async with opened(world) as driver:
        assert isinstance(world.state, Absent)
        assert await driver.ready() == "there is no guest image: build one"
        with pytest.raises(Unavailable, match="build one"):
            await driver.run(POD)
        with pytest.raises(NotFound):
            await driver.recover(POD, ())
        await driver.discard(POD.id)
        await until(lambda: world.looks > 2)
        world.missing = None
        await until(lambda: isinstance(world.state, Ready))


async def test_vms_stay_when_it_is_not_known_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    files = PodFiles(tmp_path / "state", POD.id)
    files.write(PodFile(pod_id=POD.id, vm_id="abc"))
    vm = world.driver._clones.directory / "abc"
    vm.mkdir(parents=True)

    def read_bytes(path: Path) -> bytes:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", read_bytes)
        async with opened(world):
            pass
        with pytest.raises(Unavailable, match="cannot be read now"):
            await world.driver.recover(POD, ())
        with pytest.raises(Unavailable, match="cannot be read now"):
            await world.driver.discard(POD.id)
    assert vm.is_dir() and files.read() is not None
    assert "left until the next start" in caplog.text


async def test_after_a_failure_the_reason_stays_until_it_is_over(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hypervisor.failure = Unavailable("QEMU does not start")
    async with opened(world) as driver:
        await until(lambda: isinstance(world.state, Absent))
        reasons = set()
        while world.looks < 4:
            reasons.add(await driver.ready())
            await asyncio.sleep(0.001)
        assert reasons == {"QEMU does not start"}
        world.hypervisor.failure = None
        await until(lambda: isinstance(world.state, Ready))


async def test_closing_in_the_middle_of_the_template(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.hypervisor.gate.clear()
    async with opened(world):
        await asyncio.sleep(0.02)
    assert len(asyncio.all_tasks()) == 1
