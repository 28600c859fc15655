"""Containers that go when they have ended: whoever asks besides, and whatever dies in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from orlop.errors import InvalidArgument, NotFound, Unavailable
from orlop.pods.disposal import ANNOTATION
from orlop.pods.names import OWN
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from orlop.sandbox.spec import PodSpec
from tests.patience import until
from tests.unit.pods_double import World, make_service, pod_spec

WISH = {ANNOTATION: "true"}


def own(name: str, logs: Path) -> PodSpec:
    spec = pod_spec(name)
    directory = logs / f"{name}_{spec.uid}"
    return msgspec.structs.replace(spec, labels={OWN: name}, log_directory=str(directory))


def request(pod_id: str, name: str, *, alone: bool = True) -> ContainerRequest:
    labels = {OWN: name} if alone else {}
    return ContainerRequest(pod_id=pod_id, name=name, image="busybox", labels=labels, annotations=WISH)


async def running(service: PodService, logs: Path, name: str = "web") -> tuple[str, str]:
    pod_id = await service.run_pod(own(name, logs))
    container_id = await service.create_container(request(pod_id, name))
    await service.start_container(container_id)
    return pod_id, container_id


def gone(service: PodService, pod_id: str) -> Callable[[], bool]:
    return lambda: service.ledger.find_pod(pod_id) is None


async def test_it_goes_with_its_pod_and_logs_and_its_exit_code_stays_known(
    service: PodService, world: World, tmp_path: Path
) -> None:
    pod_id, container_id = await running(service, tmp_path)
    (tmp_path / "web_uid-web" / "web.log").write_text("words")
    waiting = asyncio.ensure_future(service.wait_container(container_id))
    world.exit(container_id, 7)
    await until(gone(service, pod_id))
    assert await waiting == 7
    assert await service.wait_container(container_id) == 7, "also for who asks too late"
    assert not world.pods and not (tmp_path / "web_uid-web").exists()
    with pytest.raises(NotFound):
        service.container(container_id)
    with pytest.raises(NotFound, match="does not exist"):
        await service.wait_container("f" * 64)


async def test_in_a_pod_for_several_it_goes_alone(service: PodService, world: World, tmp_path: Path) -> None:
    pod_id = await service.run_pod(own("shop", tmp_path))
    first = await service.create_container(request(pod_id, "first", alone=False))
    await service.start_container(first)
    world.exit(first, 0)
    await until(lambda: service.ledger.find_container(first) is None)
    assert service.pod(pod_id).ready and (tmp_path / "shop_uid-shop").is_dir()


async def test_logs_elsewhere_are_somebody_elses(service: PodService, world: World, tmp_path: Path) -> None:
    spec = msgspec.structs.replace(own("web", tmp_path), log_directory=str(tmp_path / "others"))
    pod_id = await service.run_pod(spec)
    container_id = await service.create_container(request(pod_id, "web"))
    await service.start_container(container_id)
    world.exit(container_id, 0)
    await until(gone(service, pod_id))
    assert (tmp_path / "others").is_dir()


@pytest.mark.parametrize("verb", ["stop", "remove", "stop_pod", "remove_pod"])
async def test_who_ends_it_by_hand_does_not_fail(
    service: PodService, world: World, tmp_path: Path, verb: str
) -> None:
    pod_id, container_id = await running(service, tmp_path)
    waiting = asyncio.ensure_future(service.wait_container(container_id))
    await asyncio.sleep(0)
    if verb == "stop":
        await service.stop_container(container_id, 1)
    elif verb == "remove":
        await service.remove_container(container_id)
    elif verb == "stop_pod":
        await service.stop_pod(pod_id)
    else:
        await service.remove_pod(pod_id)
    if verb != "remove":  # who removes the container alone leaves its pod to himself
        await until(gone(service, pod_id))
    assert await waiting > 0
    await service.stop_container(container_id, 1)
    await service.remove_pod(pod_id)
    assert not world.pods


async def test_one_that_cannot_be_started_goes_as_well(
    service: PodService, world: World, tmp_path: Path
) -> None:
    pod_id = await service.run_pod(own("web", tmp_path))
    container_id = await service.create_container(request(pod_id, "web"))
    world.failures["start"] = Unavailable("not now")
    with pytest.raises(Unavailable):
        await service.start_container(container_id)
    await until(gone(service, pod_id))
    assert not world.pods


async def test_a_wish_is_checked(service: PodService, tmp_path: Path) -> None:
    kubelets = await service.run_pod(pod_spec())
    with pytest.raises(InvalidArgument, match="for pods of Orlop's own clients"):
        await service.create_container(request(kubelets, "web"))
    pod_id = await service.run_pod(own("mine", tmp_path))
    for text in ("", "yes", "1"):
        wrong = msgspec.structs.replace(request(pod_id, "mine"), annotations={ANNOTATION: text})
        with pytest.raises(InvalidArgument, match='is "true" or left out'):
            await service.create_container(wrong)


async def ended(world: World, service: PodService, pod_id: str) -> bool:
    """Whether the pod has gone before the daemon died."""
    await until(lambda: world.dead or gone(service, pod_id)())
    return not world.dead


async def test_a_daemon_that_dies_in_between_leaves_it_to_the_next(tmp_path: Path) -> None:
    """Whichever step it dies at, from the exit to the last trace."""
    for step in range(200):
        world = World()
        root = tmp_path / str(step)
        root.mkdir()
        service, _ = make_service(root, world)
        await service.open()
        pod_id, container_id = await running(service, root)
        world.crash_at(step)
        world.exit(container_id, 3)
        whole = await ended(world, service, pod_id)
        await service.close()
        world.crash_at(-1)
        again, _ = make_service(root, world)
        await again.open()
        await until(gone(again, pod_id))
        assert not world.pods and not (root / "web_uid-web").exists()
        await again.close()
        if whole:
            assert step > 3
            return
    raise AssertionError("it has no end")
