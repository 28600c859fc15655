"""Containers that are to run again, as the tests of the daemon's rules have them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from orlop.client.restarts import parse
from orlop.pods import restarts
from orlop.pods.names import OWN
from orlop.pods.records import ContainerPhase
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from tests.patience import until
from tests.unit.pods_double import World, make_service, pod_spec


async def running(service: PodService, policy: str, **changes: object) -> tuple[str, str]:
    """A container of our own clients that runs, in a pod of its own: the ids of pod and container."""
    pod_id = await service.run_pod(pod_spec("web", labels={OWN: "web"}))
    annotations = {restarts.ANNOTATION: parse(policy).wish()}
    request = ContainerRequest(
        pod_id=pod_id, name="web", image="busybox", labels={OWN: "web"}, annotations=annotations
    )
    container_id = await service.create_container(msgspec.structs.replace(request, **changes))
    await service.start_container(container_id)
    return pod_id, container_id


async def runs_again(service: PodService, container_id: str, times: int) -> None:
    """It runs, and has been run again so often."""

    def again() -> bool:
        record = service.ledger.container(container_id)
        return record.running and record.restarts == times

    await until(again)


async def ended_for_good(service: PodService, world: World, container_id: str) -> None:
    """It has ended, and nobody is about to run it again."""
    await until(lambda: service.container(container_id).phase is ContainerPhase.EXITED)
    made = world.steps.count("before create")
    await asyncio.sleep(0.1)
    assert service.container(container_id).phase is ContainerPhase.EXITED
    assert world.steps.count("before create") == made


async def died_at_each_step(place: Path, end: Callable[[World, str, str], None]) -> int:
    """Have daemons die at one step after the other from the ``end`` of something to the next run, and
    see that those after them go on: how many steps there are."""
    for step in range(200):
        root = place / str(step)
        root.mkdir()
        if not await _died_and_followed(root, step, end):
            return step
    raise AssertionError("it has no end")


async def _died_and_followed(root: Path, step: int, end: Callable[[World, str, str], None]) -> bool:
    """A daemon that dies at ``step``, and the next one; False if it had done all by then."""
    world = World()
    service, _ = make_service(root, world)
    await service.open()
    pod_id, container_id = await running(service, "always")
    world.crash_at(step)
    end(world, pod_id, container_id)
    await until(lambda: world.dead or service.container(container_id).restarts == 1)
    await until(lambda: world.dead or service.container(container_id).running)
    died = world.dead
    await service.close()
    world.crash_at(-1)
    again, _ = make_service(root, world)
    await again.open()
    await until(lambda: again.container(container_id).running and again.pod(pod_id).ready)
    assert again.container(container_id).restarts >= 1
    assert list(world.pods) == [pod_id]
    assert [one.state for one in world.pods[pod_id].containers.values()] == ["running"]
    await again.remove_pod(pod_id)
    assert not world.pods
    await again.close()
    return died
