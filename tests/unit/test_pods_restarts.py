"""Containers that run again when they have ended: who ends them besides, and whatever dies in between."""

from __future__ import annotations

import asyncio
import json
import signal
from pathlib import Path

import pytest

from orlop.client.restarts import parse
from orlop.errors import InvalidArgument, Unavailable
from orlop.pods import disposal, restarts
from orlop.pods.names import OWN
from orlop.pods.records import ContainerPhase
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from tests.patience import until
from tests.unit.pods_double import World, pod_spec
from tests.unit.restarting import died_at_each_step, ended_for_good, running, runs_again


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(restarts, "LONGEST_PAUSE", 0.01)


async def test_it_is_the_same_one_that_runs_again(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service, "always")
    for times, code in enumerate((0, 7), 1):
        waiting = asyncio.ensure_future(service.wait_container(container_id))
        await asyncio.sleep(0)
        world.exit(container_id, code)
        assert await waiting == code, "who waits hears of each end"
        await runs_again(service, container_id, times)
    record = service.container(container_id)
    assert (record.exit_code, record.finished_at, record.reason) == (0, 0, "")
    assert (await service.container_info(container_id))["restarts"] == 2
    assert list(world.pods[pod_id].containers) == [container_id]


async def test_no_more_often_than_was_wished(service: PodService, world: World) -> None:
    _, container_id = await running(service, "on-failure:2")
    for times in (1, 2):
        world.exit(container_id, 5)
        await runs_again(service, container_id, times)
    world.exit(container_id, 5)
    await ended_for_good(service, world, container_id)
    assert service.container(container_id).exit_code == 5


async def test_success_is_no_failure(service: PodService, world: World) -> None:
    _, container_id = await running(service, "on-failure")
    world.exit(container_id, 0)
    await ended_for_good(service, world, container_id)


@pytest.mark.parametrize("verb", ["stop", "kill", "stop signal", "stop_pod"])
async def test_who_ends_it_means_it(service: PodService, world: World, verb: str) -> None:
    pod_id, container_id = await running(service, "always")
    if verb == "stop":
        await service.stop_container(container_id, 1)
    elif verb == "kill":
        await service.signal_container(container_id, signal.SIGKILL)
    elif verb == "stop signal":
        await service.signal_container(container_id, service.container(container_id).spec.stop_signal)
    else:
        await service.stop_pod(pod_id)
    await ended_for_good(service, world, container_id)
    await service.remove_pod(pod_id)
    assert not world.pods


async def test_another_signal_does_not_say_so(service: PodService, world: World) -> None:
    _, container_id = await running(service, "always")
    await service.signal_container(container_id, signal.SIGHUP)
    await runs_again(service, container_id, 1)


async def test_a_stop_comes_between_two_runs(
    service: PodService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.2)
    _, container_id = await running(service, "always")
    world.exit(container_id, 1)
    await until(lambda: service.container(container_id).phase is ContainerPhase.EXITED)
    await service.stop_container(container_id, 1)
    await asyncio.sleep(0.3)
    assert service.container(container_id).phase is ContainerPhase.EXITED
    assert service.container(container_id).restarts == 0


@pytest.mark.parametrize("step", ["create", "start", "delete"])
async def test_a_stop_comes_into_a_run_that_begins(service: PodService, world: World, step: str) -> None:
    _, container_id = await running(service, "always")
    world.steps.clear()
    world.delays[step] = 0.2
    world.exit(container_id, 1)
    await until(lambda: f"before {step}" in world.steps)
    await service.stop_container(container_id, 1)
    await ended_for_good(service, world, container_id)
    assert service.container(container_id).restarts == 1


@pytest.mark.parametrize("step", ["create", "start"])
async def test_a_name_is_given_while_it_begins_to_run(service: PodService, world: World, step: str) -> None:
    _, container_id = await running(service, "always")
    world.steps.clear()
    world.delays[step] = 0.2
    world.exit(container_id, 1)
    await until(lambda: f"before {step}" in world.steps)
    await service.rename_container(container_id, "other")
    await runs_again(service, container_id, 1)
    assert service.container(container_id).labels[OWN] == "other"


@pytest.mark.parametrize("verb", ["remove", "remove_pod"])
@pytest.mark.parametrize("step", ["create", "start"])
async def test_a_removal_comes_into_a_run_that_begins(
    service: PodService, world: World, verb: str, step: str
) -> None:
    pod_id, container_id = await running(service, "always")
    world.steps.clear()
    world.delays[step] = 0.2
    world.exit(container_id, 1)
    await until(lambda: f"before {step}" in world.steps)
    if verb == "remove":
        await service.remove_container(container_id)
        assert not world.pods[pod_id].containers
    else:
        await service.remove_pod(pod_id)
        assert not world.pods
    await asyncio.sleep(0.3)
    assert service.ledger.find_container(container_id) is None
    assert container_id not in world.images.used


async def test_one_that_cannot_run_again_is_tried_again(service: PodService, world: World) -> None:
    _, container_id = await running(service, "always")
    world.failures["start"] = Unavailable("not now")
    world.exit(container_id, 1)
    await until(lambda: service.container(container_id).restarts > 2)
    del world.failures["start"]
    await until(lambda: service.container(container_id).running)


async def test_what_never_ran_is_its_makers(service: PodService, world: World) -> None:
    world.failures["start"] = Unavailable("not now")
    with pytest.raises(Unavailable):
        await running(service, "always")
    (record,) = service.containers()
    await ended_for_good(service, world, record.id)


async def test_a_wish_is_checked(service: PodService) -> None:
    pod_id = await service.run_pod(pod_spec("mine", labels={OWN: "mine"}))
    kubelets = await service.run_pod(pod_spec())
    wish = {restarts.ANNOTATION: parse("always").wish()}

    async def refused(pod: str, annotations: dict[str, str], words: str) -> None:
        request = ContainerRequest(pod_id=pod, name="web", image="busybox", annotations=annotations)
        with pytest.raises(InvalidArgument, match=words):
            await service.create_container(request)

    await refused(kubelets, wish, "for pods of Orlop's own clients")
    await refused(pod_id, {**wish, disposal.ANNOTATION: "true"}, "exclude each other")
    for text in ("", "always", "[]", json.dumps({"before": True}), json.dumps({"most": "3"})):
        await refused(pod_id, {restarts.ANNOTATION: text}, "cannot be understood")
    await refused(pod_id, {restarts.ANNOTATION: json.dumps({"most": -1})}, "-1 times")


async def test_a_daemon_that_dies_in_between_leaves_it_to_the_next(tmp_path: Path) -> None:
    """Whichever step it dies at, from the exit to the next run: one container runs then, and only one."""
    assert await died_at_each_step(tmp_path, lambda world, _, container_id: world.exit(container_id, 3)) > 3
