"""containerd's tasks over pods in memory: calls against each other, and what fails on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from orlop.errors import NotFound
from orlop.pods.records import ContainerPhase
from orlop.pods.service import PodService
from orlop.shim import running
from orlop.shim.model import Key
from orlop.shim.places import FRONT
from orlop.shim.stdio import Stdio
from orlop.shim.tasks import ShimTasks
from tests.patience import PATIENCE
from tests.unit.pods_double import World, make_service, pod_spec

SHELL = {"cwd": "/", "args": ["sh"]}
COMMAND = json.dumps({"cwd": "/", "args": ["sleep", "600"]}).encode()
KINDS = ("network", "pid", "ipc", "mount")


@dataclass
class Node:
    """A daemon that containerd has tasks of."""

    world: World
    pods: PodService
    tasks: ShimTasks
    root: Path

    def bundle(self, name: str) -> str:
        place = self.root / name
        place.mkdir(exist_ok=True)
        namespaces = [{"type": kind, "path": "/ns" if kind == "network" else ""} for kind in KINDS]
        config = {
            "ociVersion": "1.0.2",
            "process": SHELL,
            "root": {"path": "rootfs"},
            "linux": {"namespaces": namespaces},
        }
        (place / "config.json").write_text(json.dumps(config))
        return str(place)

    async def create(self, name: str = "one") -> Key:
        key = ("test", name)
        await self.tasks.create(key, self.bundle(name), (), Stdio())
        return key

    async def running(self, name: str = "one") -> Key:
        key = await self.create(name)
        await self.tasks.start(key, "")
        return key

    def container_id(self) -> str:
        (only,) = self.world.pods.values()
        return next(iter(only.containers))


@contextlib.asynccontextmanager
async def node(root: Path, world: World | None = None) -> AsyncIterator[Node]:
    world = world or World()
    pods, _ = make_service(root, world)
    await pods.open()
    tasks = ShimTasks(pods, root)
    tasks.open()
    try:
        yield Node(world, pods, tasks, root)
    finally:
        await tasks.close()
        await pods.close()


async def until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(30 * PATIENCE):
        while not true():  # noqa: ASYNC110 - what is waited for sets no event
            await asyncio.sleep(0.01)


async def test_an_end_is_told_though_processes_are_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "DRAIN_TIME", 0.5)
    async with node(tmp_path) as one:
        key = await one.running()
        for name in ("a", "b"):
            await one.tasks.exec(key, name, COMMAND, Stdio())
            await one.tasks.start(key, name)
        for number in range(10):
            await one.tasks.exec(key, f"c{number}", COMMAND, Stdio())
        waiting = asyncio.create_task(one.tasks.wait(key, ""))
        one.world.exit(one.container_id(), 7)
        await until(lambda: one.pods.container(one.container_id()).phase is ContainerPhase.EXITED)
        # The end is told when those that run have had time to write what they have left.
        for number in range(10):
            await one.tasks.delete(key, f"c{number}")
            await asyncio.sleep(0.02)
        assert (await asyncio.wait_for(waiting, 30 * PATIENCE)).code == 7


async def test_tasks_are_found_again_beside_what_cannot_be_removed(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        key = await one.running()
        (tmp_path / "shim-netns" / "left" / "something").mkdir(parents=True)
        later = ShimTasks(one.pods, tmp_path)
        later.open()
        try:
            task, process = await later.state(key, "")
            assert later.standing(task, process).name == "RUNNING"
        finally:
            await later.close()


async def test_a_vm_whose_daemon_ended_before_its_task_was_made_is_removed(tmp_path: Path) -> None:
    world = World()
    pods, _ = make_service(tmp_path, world)
    await pods.open()
    await pods.run_pod(pod_spec(front=FRONT))
    await pods.close()
    async with node(tmp_path, world) as one:
        with pytest.raises(NotFound):
            await one.tasks.state(("test", "one"), "")
        assert not world.pods
