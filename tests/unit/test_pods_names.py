"""Names that people give: each once, changed as a whole, kept over restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from orlop.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    OrlopError,
    ResourceExhausted,
)
from orlop.pods.journal import Journal
from orlop.pods.names import GIVEN, OWN
from orlop.pods.records import ContainerRecord, PodRecord
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from orlop.sandbox.spec import PodSpec
from tests.unit.pods_double import World, make_service, pod_spec


def named(name: str, uid: str = "") -> PodSpec:
    return msgspec.structs.replace(
        pod_spec(), name=name, uid=uid or f"uid-of-{name}", namespace="orlop", labels={OWN: name, "own": "x"}
    )


def request(pod_id: str, name: str, *, alone: bool = False) -> ContainerRequest:
    labels = {OWN: name} if alone else {}
    return ContainerRequest(pod_id=pod_id, name=name, image="busybox", labels=labels)


async def alone(service: PodService, name: str) -> tuple[str, str]:
    pod_id = await service.run_pod(named(name))
    return pod_id, await service.create_container(request(pod_id, name, alone=True))


async def test_a_container_and_the_pod_that_is_its_own_are_renamed(service: PodService) -> None:
    pod_id, container_id = await alone(service, "web")
    await service.rename_container(container_id, "site.1")
    pod, container = service.pod(pod_id), service.container(container_id)
    assert pod.spec.labels == {OWN: "site.1", "own": "x"} and container.labels == {OWN: "site.1"}
    assert (pod.spec.name, container.name) == ("web", "web"), "what paths are called by stays"
    # The old name is free, the new one is not.
    with pytest.raises(AlreadyExists, match=f"site.1 is taken by pod {pod_id[:12]}"):
        await service.run_pod(named("site.1", "another"))
    again = await service.run_pod(named("web", "another"))
    assert service.pod(again).ready
    await service.remove_pod(pod_id)
    await service.run_pod(named("site.1", "another"))
    with pytest.raises(NotFound):
        await service.rename_container(container_id, "late")


async def test_containers_of_one_pod_are_renamed_alone(service: PodService) -> None:
    pod_id = await service.run_pod(named("shop"))
    first = await service.create_container(request(pod_id, "first"))
    second = await service.create_container(request(pod_id, "second"))
    await service.rename_container(first, "till")
    assert (
        service.container(first).labels == {GIVEN: "till"} and service.pod(pod_id).spec.labels[OWN] == "shop"
    )
    for taken in ("till", "shop"):
        with pytest.raises(AlreadyExists, match="taken"):
            await service.rename_container(second, taken)
        with pytest.raises(AlreadyExists, match="taken"):
            await service.create_container(request(pod_id, taken))
    elsewhere = await service.run_pod(named("market"))
    with pytest.raises(AlreadyExists, match="taken"):
        await service.create_container(request(elsewhere, "second"))
    # The next attempt of a container is that container.
    after = msgspec.structs.replace(request(pod_id, "second"), attempt=1)
    assert await service.create_container(after)


async def test_what_cannot_be_renamed(service: PodService) -> None:
    _, container_id = await alone(service, "web")
    for wrong in ("", "-a", "a b", "a/b", "ä", "a" * 300, "a\n"):
        with pytest.raises(InvalidArgument, match="is no name"):
            await service.rename_container(container_id, wrong)
    with pytest.raises(AlreadyExists, match="that name already"):
        await service.rename_container(container_id, "web")
    pod_id = await service.run_pod(pod_spec())
    kubelets = await service.create_container(request(pod_id, "main"))
    with pytest.raises(FailedPrecondition, match="kubelet"):
        await service.rename_container(kubelets, "mine")
    # What a kubelet makes is called what it likes.
    await service.create_container(request(pod_id, "web"))


async def test_of_two_for_one_name_one_gets_it(service: PodService) -> None:
    made = [(await alone(service, f"n{number}"))[1] for number in range(4)]
    calls = [service.rename_container(one, "wanted") for one in made]
    calls += [service.run_pod(named("wanted", "u1")), service.run_pod(named("wanted", "u2"))]  # type: ignore[list-item]
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(not isinstance(one, Exception) for one in done) == 1
    assert all(isinstance(one, AlreadyExists) for one in done if isinstance(one, Exception))
    shown = [pod.spec.labels[OWN] for pod in service.pods()]
    assert len(shown) == len(set(shown)) and "wanted" in shown


async def test_a_new_name_outlives_the_daemon(tmp_path: Path, world: World) -> None:
    service, _ = make_service(tmp_path, world)
    await service.open()
    pod_id, container_id = await alone(service, "web")
    await service.rename_container(container_id, "site")
    await service.close()
    again, _ = make_service(tmp_path, world)
    await again.open()
    await again.recovered()
    assert again.pod(pod_id).spec.labels[OWN] == again.container(container_id).labels[OWN] == "site"
    with pytest.raises(AlreadyExists):
        await again.run_pod(named("site", "another"))
    await again.close()


async def test_what_cannot_be_recorded_did_not_happen(
    service: PodService, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod_id, container_id = await alone(service, "web")

    async def full(self: Journal, pod: PodRecord, container: ContainerRecord) -> None:
        raise ResourceExhausted("no space")

    monkeypatch.setattr(Journal, "put_together", full)
    with pytest.raises(OrlopError, match="no space"):
        await service.rename_container(container_id, "site")
    assert service.pod(pod_id).spec.labels[OWN] == service.container(container_id).labels[OWN] == "web"
    await alone(service, "site")
