"""A daemon that dies at any step leaves nothing that the next one cannot put right."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import pytest

from orlop.errors import NotUndone
from orlop.pods.records import SHOWN_CONTAINERS, SHOWN_PODS, ContainerPhase
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from tests.patience import PATIENCE
from tests.unit.pods_double import Crash, DoubleImages, World, make_service, pod_spec


async def opened(service: PodService) -> None:
    """Open it, and wait until what an earlier daemon left is found or removed."""
    await service.open()
    await service.recovered()


async def life(service: PodService) -> None:
    """Everything that can be asked of a pod, once."""
    pod_id = await service.run_pod(pod_spec())
    first = await service.create_container(ContainerRequest(pod_id=pod_id, name="first", image="busybox"))
    await service.start_container(first)
    await service.stop_container(first, 1)
    second = await service.create_container(ContainerRequest(pod_id=pod_id, name="second", image="busybox"))
    await service.remove_container(first)
    await service.start_container(second)
    await service.stop_pod(pod_id)
    await service.remove_pod(pod_id)


async def killed_at(
    root: Path, world: World, step: int, work: Callable[[PodService], Awaitable[None]]
) -> bool:
    """Run ``work`` in a daemon that dies at ``step``; whether it came to that."""
    service, _ = make_service(root, world)
    await opened(service)
    world.crash_at(step)
    with suppress(Crash, NotUndone):
        await work(service)
    died = world.dead
    world.dead = True
    with suppress(Crash, NotUndone):
        await service.close()
    world.crash_at(-1)
    return died


def check(service: PodService, world: World, used: set[str]) -> None:
    """What is recorded, what runs, and what is held agree."""
    pods = {record.id: record for record in service.ledger.all_pods()}
    assert {record.phase for record in pods.values()} <= SHOWN_PODS
    assert {record.phase for record in service.ledger.all_containers()} <= SHOWN_CONTAINERS
    ready = {pod_id for pod_id, record in pods.items() if record.ready}
    assert ready == {pod_id for pod_id, pod in world.pods.items() if pod.running}
    assert set(world.pods) <= set(pods)
    assert used == {record.id for record in service.ledger.all_containers()}
    for record in service.ledger.all_containers():
        if record.pod_id in ready:
            container = world.pods[record.pod_id].containers[record.id]
            assert (record.phase is ContainerPhase.RUNNING) == (container.state == "running")
            assert (record.phase is ContainerPhase.CREATED) == (container.state == "created")
        else:
            assert record.phase is not ContainerPhase.RUNNING
    for pod in world.pods.values():
        if not pod.running:
            continue
        assert {item.id for item in service.ledger.members(pod.spec.id)} == set(pod.containers)


async def settled(service: PodService, world: World, images: DoubleImages) -> None:
    """Let watchers see the exits that came while nobody looked, and check what comes of that."""
    for _ in range(20):
        await asyncio.sleep(0.001)
    limit = asyncio.get_running_loop().time() + 20 * PATIENCE
    while True:
        try:
            check(service, world, set(images.used))
        except AssertionError:
            if asyncio.get_running_loop().time() > limit:
                raise
            await asyncio.sleep(0.01)
        else:
            return


async def count_steps(root: Path) -> int:
    world = World()
    service, _ = make_service(root, world)
    await opened(service)
    world.crash_at(-1)
    await life(service)
    await service.close()
    return len(world.steps)


async def test_at_every_step(tmp_path: Path) -> None:
    steps = await count_steps(tmp_path / "count")
    assert steps > 40
    for step in range(steps):
        root = tmp_path / str(step)
        world = World()
        assert await killed_at(root, world, step, life), step
        service, images = make_service(root, world)
        await opened(service)
        try:
            await settled(service, world, images)
            for pod in service.pods():
                await service.stop_pod(pod.id)
                await service.remove_pod(pod.id)
            assert (world.pods, images.used) == ({}, {})
            await life(service)
            assert (world.pods, service.ledger.all_pods(), service.ledger.all_containers()) == ({}, [], [])
        except AssertionError as error:
            error.add_note(f"step {step}: {world.steps[:1]}")
            raise
        finally:
            await service.close()


async def test_at_every_step_of_the_recovery(tmp_path: Path) -> None:
    """The daemon dies in RunPodSandbox or CreateContainer, and the next one while it recovers."""
    for first in range(0, 14, 3):
        for second in range(0, 12, 2):
            root = tmp_path / f"{first}-{second}"
            world = World()
            await killed_at(root, world, first, life)
            service, _ = make_service(root, world)
            world.crash_at(second)
            with suppress(Crash, NotUndone):
                await opened(service)
            world.dead = True
            with suppress(Crash, NotUndone):
                await service.close()
            world.crash_at(-1)
            service, images = make_service(root, world)
            await opened(service)
            try:
                await settled(service, world, images)
            finally:
                await service.close()


async def test_pods_of_a_lost_journal_are_removed(tmp_path: Path) -> None:
    world = World()
    service, _ = make_service(tmp_path, world)
    await opened(service)
    await service.run_pod(pod_spec())
    await service.close()
    (tmp_path / "journal.db").write_bytes(b"not a database" * 1000)
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"journal.db{suffix}").unlink(missing_ok=True)
    service, _ = make_service(tmp_path, world)
    await opened(service)
    assert (world.pods, service.pods()) == ({}, [])
    assert list(tmp_path.glob("journal.db.damaged-*"))
    await service.close()


@pytest.mark.parametrize("running", [True, False])
async def test_a_pod_that_ended_meanwhile(tmp_path: Path, running: bool) -> None:
    world = World()
    service, _ = make_service(tmp_path, world)
    await opened(service)
    pod_id = await service.run_pod(pod_spec())
    container_id = await service.create_container(
        ContainerRequest(pod_id=pod_id, name="main", image="busybox")
    )
    await service.start_container(container_id)
    await service.close()
    if running:
        world.exit(container_id, 5)
    else:
        world.kill_pod(pod_id)
    service, images = make_service(tmp_path, world)
    await opened(service)
    await settled(service, world, images)
    record = service.container(container_id)
    assert record.phase is ContainerPhase.EXITED
    assert record.exit_code == (5 if running else 137)
    assert service.pod(pod_id).ready is running
    await service.close()
