"""A world in memory in which pods run: the double of a sandbox driver, and a daemon that can die.

The :class:`World` outlives a daemon, like VMs do. Every effect and every write of the journal
is a step of the world; :meth:`World.crash_at` makes the daemon die just before or just after one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orlop.config import Config
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.images.model import HealthCheck
from orlop.linux.usage import Usage
from orlop.pods.journal import Journal
from orlop.pods.ports import NamedVolumes
from orlop.pods.service import PodService
from orlop.sandbox.base import Features
from orlop.sandbox.figures import ContainerStats, Detail, LayerUse, PodStats
from orlop.sandbox.spec import (
    ContainerSpec,
    ExecSpec,
    ExitStatus,
    NamespaceMode,
    PodSpec,
    Resources,
)
from orlop.volumes.records import VolumeUse


class Crash(Exception):
    """The daemon is dead: whatever it still tries has no effect."""


@dataclass
class WorldContainer:
    spec: ContainerSpec
    state: str = "created"
    exit: ExitStatus | None = None
    exited: asyncio.Event = field(default_factory=asyncio.Event)
    frozen: bool = False
    signals: list[int] = field(default_factory=list)


@dataclass
class WorldPod:
    spec: PodSpec
    running: bool = True
    died: str = ""
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    containers: dict[str, WorldContainer] = field(default_factory=dict)
    volumes: dict[str, VolumeUse] = field(default_factory=dict)


class World:
    def __init__(self) -> None:
        self.pods: dict[str, WorldPod] = {}
        self.steps: list[str] = []
        self.crash_step = -1
        self.dead = False
        self.failures: dict[str, Exception] = {}
        self.delays: dict[str, float] = {}
        self.passing: dict[str, list[Exception]] = {}
        self.ignore_term = False
        self.images = DoubleImages()

    def crash_at(self, step: int) -> None:
        self.steps.clear()
        self.crash_step = step
        self.dead = False

    def step(self, name: str) -> None:
        """One point at which the daemon may die."""
        if self.dead:
            raise Crash
        self.steps.append(name)
        if len(self.steps) - 1 == self.crash_step:
            self.dead = True
            raise Crash

    async def effect(self, name: str) -> None:
        self.step(f"before {name}")
        if delay := self.delays.get(name):
            await asyncio.sleep(delay)
        if (failure := self.failures.get(name)) is not None:
            raise failure

    def exit(self, container_id: str, code: int, *, oom: bool = False) -> None:
        for pod in self.pods.values():
            container = pod.containers.get(container_id)
            if container is not None and container.state == "running":
                container.state = "exited"
                container.exit = ExitStatus(code=code, finished_at=time.time_ns(), oom_killed=oom)
                container.exited.set()

    def kill_pod(self, pod_id: str, reason: str = "the VM crashed") -> None:
        pod = self.pods[pod_id]
        pod.running, pod.died = False, reason
        pod.ended.set()


class DoubleIO:
    def __init__(self, args: tuple[str, ...]) -> None:
        self.args = args
        self.closed = False

    async def output(self) -> AsyncIterator[tuple[int, bytes]]:
        if self.args[0] == "sleep":
            await asyncio.sleep(float(self.args[1]))
        elif self.args[0] == "flood":
            for _ in range(10):
                yield 1, b"x" * (1 << 20)
        else:
            yield 1, " ".join(self.args[1:]).encode()
            yield 2, b"err"

    async def write(self, data: bytes) -> None: ...
    async def close_stdin(self) -> None: ...
    async def resize(self, width: int, height: int) -> None: ...
    async def signal(self, number: int) -> None: ...

    async def wait(self) -> ExitStatus:
        return ExitStatus(code=3 if self.args[0] == "fail" else 0, finished_at=1)

    async def close(self) -> None:
        self.closed = True


class DoubleSandbox:
    def __init__(self, world: World, pod: WorldPod) -> None:
        self.world = world
        self.pod = pod
        self.execs: list[DoubleIO] = []
        self.addresses = () if pod.spec.namespaces.network is NamespaceMode.NODE else ("10.1.2.3",)
        self.netns = "/run/netns/x"
        self.cpu = 0

    @property
    def pod_id(self) -> str:
        return self.pod.spec.id

    @property
    def info(self) -> dict[str, object]:
        return {"accelerator": "none"}

    async def console(self) -> str:
        return "kernel"

    async def volume_usage(self, path: str) -> VolumeUse | None:
        return self.pod.volumes.get(path)

    def _container(self, container_id: str) -> WorldContainer:
        if (container := self.pod.containers.get(container_id)) is None:
            raise NotFound(f"container {container_id} does not exist")
        return container

    async def wait(self) -> str:
        await self.pod.ended.wait()
        return self.pod.died

    async def check(self, spec: ContainerSpec) -> None:
        if "impossible" in spec.args:
            raise FailedPrecondition("the double cannot make an impossible container")

    async def create(self, spec: ContainerSpec) -> None:
        await self.world.effect("create")
        if not self.pod.running:
            raise FailedPrecondition("its pod was stopped")
        if spec.id in self.pod.containers:
            raise AlreadyExists("it exists")
        self.pod.containers[spec.id] = WorldContainer(spec)
        self.world.step("after create")

    async def start(self, container_id: str) -> int:
        await self.world.effect("start")
        if not self.pod.running:
            raise FailedPrecondition("its pod was stopped")
        container = self._container(container_id)
        if container.state != "created":
            raise FailedPrecondition("it was started already")
        container.state = "running"
        self.world.step("after start")
        return time.time_ns()

    async def wait_container(self, container_id: str) -> ExitStatus:
        container = self._container(container_id)
        await container.exited.wait()
        assert container.exit is not None
        return container.exit

    async def container_info(self, container_id: str) -> dict[str, object]:
        self._container(container_id)
        return {"pid": 42}

    async def signal(self, container_id: str, signal: int) -> None:
        await self.world.effect("signal")
        self._container(container_id).signals.append(signal)
        if signal == 9 or not self.world.ignore_term:
            self.world.exit(container_id, 128 + signal)

    async def delete(self, container_id: str) -> None:
        await self.world.effect("delete")
        self.world.exit(container_id, 137)
        self.pod.containers.pop(container_id, None)
        self.world.step("after delete")

    async def freeze(self, container_id: str, *, frozen: bool) -> None:
        await self.world.effect("freeze" if frozen else "thaw")
        self._container(container_id).frozen = frozen
        self.world.step("after freeze" if frozen else "after thaw")

    async def update(self, container_id: str, resources: Resources) -> None:
        self._container(container_id)

    async def resize(self, overhead: Resources, resources: Resources) -> Resources:
        await self.world.effect("resize")
        return resources

    async def reopen_log(self, container_id: str) -> None: ...

    async def exec(self, container_id: str, spec: ExecSpec) -> DoubleIO:
        self.execs.append(DoubleIO(spec.args))
        return self.execs[-1]

    async def attach(self, container_id: str, *, stdin: bool) -> DoubleIO:
        return DoubleIO(("attach",))

    async def connect(self, port: int) -> object:
        raise FailedPrecondition(f"nothing listens on {port}")

    async def stats(self, detail: Detail = Detail.POD) -> PodStats:
        await self.world.effect("stats")
        self.cpu += 500_000_000
        used = Usage(timestamp=self.cpu * 2, cpu_ns=self.cpu)
        return PodStats(
            usage=used,
            containers=tuple(
                ContainerStats(container_id=container_id, usage=used) for container_id in self.pod.containers
            ),
        )

    async def stop(self) -> None:
        await self.world.effect("stop")
        for container_id in self.pod.containers:
            self.world.exit(container_id, 137)
        self.pod.running = False
        self.pod.ended.set()
        self.world.step("after stop")


class DoubleDriver:
    def __init__(self, world: World, name: str = "vm") -> None:
        self.world = world
        self.name = name
        self.features = Features(recursive_read_only_mounts=True)
        self.reason = ""

    def check(self, spec: PodSpec) -> None:
        if self.name == "vm" and spec.namespaces.network is NamespaceMode.NODE:
            raise InvalidArgument("host network")

    async def open(self) -> None: ...
    async def close(self) -> None: ...

    async def ready(self) -> str:
        return self.reason

    async def run(self, spec: PodSpec) -> DoubleSandbox:
        await self.world.effect("run")
        self.world.pods[spec.id] = pod = WorldPod(spec)
        self.world.step("after run")
        return DoubleSandbox(self.world, pod)

    async def recover(self, spec: PodSpec, containers: tuple[ContainerSpec, ...]) -> DoubleSandbox:
        if delay := self.world.delays.get(f"recover {spec.name}"):
            await asyncio.sleep(delay)
        if passing := self.world.passing.get(f"recover {spec.name}"):
            raise passing.pop()
        pod = self.world.pods.get(spec.id)
        if pod is None or not pod.running:
            raise NotFound(f"pod {spec.id} does not run")
        return DoubleSandbox(self.world, pod)

    async def discard(self, pod_id: str) -> None:
        await self.world.effect("discard")
        self.world.pods.pop(pod_id, None)
        self.world.step("after discard")

    async def layers(self) -> LayerUse:
        return LayerUse(timestamp=1, mountpoint="/", used=3, inodes=1)

    async def traces(self) -> list[str]:
        return list(self.world.pods)


@dataclass(frozen=True)
class DoubleConfig:
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ("sh",)
    env: tuple[str, ...] = ("A=image", "B=image")
    working_dir: str = "/srv"
    user: str = "daemon"
    stop_signal: str = "SIGUSR1"
    healthcheck: HealthCheck | None = None


@dataclass(frozen=True)
class DoubleImage:
    id: str = "sha256:" + "1" * 64
    repo_digests: tuple[str, ...] = ("localhost/busybox@sha256:" + "2" * 64,)
    layers: tuple[str, ...] = ("/layers/1", "/layers/2")
    config: DoubleConfig = DoubleConfig()


class DoubleImages:
    def __init__(self) -> None:
        self.images = {"busybox": DoubleImage()}
        self.used: dict[str, set[str]] = {}

    def status(self, reference: str) -> DoubleImage | None:
        return self.images.get(reference)

    async def use(self, image_id: str, owner: str) -> DoubleImage:
        self.used.setdefault(owner, set()).add(image_id)
        return DoubleImage()

    async def release(self, owner: str) -> None:
        self.used.pop(owner, None)

    async def reconcile(self, owners: Collection[str]) -> None:
        for owner in set(self.used) - set(owners):
            del self.used[owner]


class MortalJournal(Journal):
    """A journal whose daemon may die around each write."""

    def __init__(self, path: Path, world: World) -> None:
        super().__init__(path)
        self._world = world

    async def _write(self, *statements: tuple[str, tuple[str | bytes, ...]]) -> None:
        what = " ".join(statements[0][0].split()[:4])
        self._world.step(f"before {what}")
        await super()._write(*statements)
        self._world.step(f"after {what}")


def make_service(
    root: Path, world: World, default: str = "auto", volumes: NamedVolumes | None = None, **sections: Any
) -> tuple[PodService, DoubleImages]:
    config = Config(root=str(root), state=str(root), default_handler=default, **sections)  # type: ignore[arg-type]
    images = world.images
    drivers = {"vm": DoubleDriver(world, "vm"), "process": DoubleDriver(world, "process")}
    service = PodService(config, images, drivers, volumes=volumes)  # type: ignore[arg-type]
    service.ledger._journal = MortalJournal(root / "journal.db", world)
    return service, images


def pod_spec(name: str = "web", **changes: object) -> PodSpec:
    fields: dict[str, object] = {
        "id": "",
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "handler": "",
    }
    return PodSpec(**(fields | changes))  # type: ignore[arg-type]
