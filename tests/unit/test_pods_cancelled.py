"""A daemon that is told to stop at any moment leaves only what its journal names, and nothing half-made."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

from orlop.errors import Unavailable
from orlop.host.tasks import beside
from orlop.pods.records import ContainerPhase
from orlop.pods.service import PodService
from tests.unit.pods_double import World, make_service, pod_spec
from tests.unit.test_pods_crash import check, settled
from tests.unit.test_pods_service import request

Work = Callable[[PodService], Awaitable[object]]
MANY = 400
"""More turns than any of this takes."""


async def run(service: PodService) -> None:
    await service.run_pod(pod_spec())


async def create(service: PodService) -> None:
    pod_id = await service.run_pod(pod_spec())
    await service.create_container(request(pod_id))


async def remove(service: PodService) -> None:
    pod_id = await service.run_pod(pod_spec())
    await service.start_container(await service.create_container(request(pod_id)))
    await service.remove_pod(pod_id)


def half_made(service: PodService, world: World) -> list[str]:
    """Pods and containers that are there and of which the records do not say that they are made."""
    pods = {record.id for record in service.ledger.all_pods() if record.ready}
    made = {
        record.id
        for record in service.ledger.all_containers()
        if record.phase in (ContainerPhase.CREATED, ContainerPhase.RUNNING)
    }
    members = {key for pod in world.pods.values() for key in pod.containers}
    return sorted((world.pods.keys() - pods) | (members - made))


async def stopped_at_every_turn(root: Path, work: Work, *, undone: bool) -> None:
    """Stop the daemon after each turn of the event loop that ``work`` takes, with what it has begun.

    What is ``undone`` is gone when the daemon has stopped; the rest is carried on by the next one.
    """
    before = asyncio.all_tasks()
    for turns in range(0, MANY, 2):
        world = World()
        place = root / str(turns)
        service, _ = make_service(place, world)
        await service.open()
        await service.recovered()
        async with beside(_quietly(work, service)) as calling:
            for _ in range(turns):
                await asyncio.sleep(0)
                await asyncio.sleep(0.0002)  # the journal's thread has its turn as well
            ended = calling.done()
            await service.close()
            await asyncio.wait((calling,), timeout=5)
            assert calling.done(), f"stopped after {turns} turns"
        assert asyncio.all_tasks() == before, f"stopped after {turns} turns"
        if undone:
            assert half_made(service, world) == [], f"stopped after {turns} turns"
        service, images = make_service(place, world)
        await service.open()
        await service.recovered()
        await settled(service, world, images)
        try:
            check(service, world, set(images.used))
            for pod in service.pods():
                await service.remove_pod(pod.id)
            assert (world.pods, images.used) == ({}, {}), f"stopped after {turns} turns"
        finally:
            await service.close()
        if ended:
            return
    raise AssertionError(f"it has not ended after {MANY} turns")


async def _quietly(work: Work, service: PodService) -> None:
    try:
        await work(service)
    except Unavailable as error:
        assert "stopping" in str(error)


async def test_a_run(tmp_path: Path) -> None:
    await stopped_at_every_turn(tmp_path, run, undone=True)


async def test_a_create(tmp_path: Path) -> None:
    await stopped_at_every_turn(tmp_path, create, undone=True)


async def test_a_removal(tmp_path: Path) -> None:
    await stopped_at_every_turn(tmp_path, remove, undone=False)
