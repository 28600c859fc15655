"""The daemon serves before its pods are found again, and no pod keeps another from being found."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path

import pytest

from orlop.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from orlop.pods import recovery
from orlop.pods.records import ContainerPhase, PodPhase
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from tests.patience import PATIENCE
from tests.unit.pods_double import World, make_service, pod_spec


async def _left_behind(root: Path, world: World, *names: str) -> dict[str, tuple[str, str]]:
    """Running pods, each with a running container, whose daemon has ended: their ids."""
    service, _ = make_service(root, world)
    await service.open()
    ids = {}
    for name in names:
        pod_id = await service.run_pod(pod_spec(name))
        request = ContainerRequest(pod_id=pod_id, name="main", image="busybox")
        container_id = await service.create_container(request)
        await service.start_container(container_id)
        ids[name] = (pod_id, container_id)
    await service.close()
    return ids


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "PATIENCE", 0.1)
    monkeypatch.setattr(recovery, "DEADLINE", 1.0)


async def _open(root: Path, world: World) -> PodService:
    service, _ = make_service(root, world)
    async with asyncio.timeout(20 * PATIENCE):
        await service.open()
    return service


async def test_a_pod_that_does_not_answer_has_failed_and_holds_up_nobody(tmp_path: Path) -> None:
    world = World()
    ids = await _left_behind(tmp_path, world, "hostile", "honest")
    world.delays["recover hostile"] = 3600
    service = await _open(tmp_path, world)
    hostile, inside = ids["hostile"]
    assert (await service.exec_sync(ids["honest"][1], ("echo", "x"))).exit_code == 0
    assert {pod.id for pod in service.pods()} == {hostile, ids["honest"][0]}
    assert service.pod_info(hostile)["recovering"] is True
    with pytest.raises(FailedPrecondition, match="exited"):
        await service.exec_sync(inside, ("echo", "x"))
    record = service.pod(hostile)
    assert record.phase is PodPhase.NOTREADY
    assert "did not answer within 1 s" in record.reason
    assert service.container(inside).phase is ContainerPhase.EXITED
    assert service.pod_info(hostile)["recovering"] is False
    await service.recovered()
    assert hostile not in world.pods
    await service.remove_pod(hostile)
    await service.close()


async def test_what_fails_for_a_moment_ends_no_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recovery, "DEADLINE", 30.0)
    monkeypatch.setattr(recovery, "AGAIN", 0.01)
    world = World()
    ids = await _left_behind(tmp_path, world, "short")
    world.passing["recover short"] = [
        OSError(errno.EMFILE, "Too many open files"),
        Unavailable("its agent cannot be reached"),
        DeadlineExceeded("its agent did not answer"),
    ]
    service = await _open(tmp_path, world)
    assert (await service.exec_sync(ids["short"][1], ("echo", "x"))).exit_code == 0
    assert [pod.phase for pod in service.pods()] == [PodPhase.READY]
    assert world.passing["recover short"] == []
    await service.close()


async def test_what_goes_on_failing_is_told(tmp_path: Path) -> None:
    world = World()
    ids = await _left_behind(tmp_path, world, "short")
    world.passing["recover short"] = [OSError(errno.EIO, "bad disk")] * 1000
    service = await _open(tmp_path, world)
    await service.recovered()
    record = service.pod(ids["short"][0])
    assert record.phase is PodPhase.NOTREADY
    assert record.reason.startswith("it did not answer within 1 s") and "bad disk" in record.reason
    await service.close()


async def test_a_call_on_a_pod_waits_for_its_recovery(tmp_path: Path) -> None:
    world = World()
    ids = await _left_behind(tmp_path, world, "slow")
    world.delays["recover slow"] = 0.5
    pod_id, container_id = ids["slow"]
    service = await _open(tmp_path, world)
    assert service.pod_info(pod_id)["recovering"] is True, "the start waits for nobody"
    again = asyncio.ensure_future(service.run_pod(pod_spec("slow")))
    made = asyncio.ensure_future(
        service.create_container(ContainerRequest(pod_id=pod_id, name="second", image="busybox"))
    )
    assert (await service.exec_sync(container_id, ("echo", "x"))).exit_code == 0
    assert await again == pod_id
    assert service.container(await made).phase is ContainerPhase.CREATED
    await service.stop_pod(pod_id[:20])
    assert service.pod(pod_id).phase is PodPhase.NOTREADY
    await service.close()


async def test_the_daemon_ends_while_it_looks_for_pods(tmp_path: Path) -> None:
    world = World()
    await _left_behind(tmp_path, world, "slow")
    world.delays["recover slow"] = 3600
    service = await _open(tmp_path, world)
    async with asyncio.timeout(20):
        await service.close()
    world.delays.clear()
    service, _ = make_service(tmp_path, world)
    await service.open()
    await service.recovered()
    assert [pod.phase for pod in service.pods()] == [PodPhase.READY]
    await service.close()
