"""A disk that takes no records: what happened is told all the same, and what is to go can go."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from orlop.errors import DeadlineExceeded, Internal, NotUndone, OrlopError, ResourceExhausted
from orlop.pods.journal import Journal
from orlop.pods.records import ContainerPhase, PodPhase
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from tests.patience import PATIENCE
from tests.unit.pods_double import DoubleIO, DoubleSandbox, World, make_service, pod_spec


class Disk:
    """Where the journal is."""

    def __init__(self) -> None:
        self.full = False


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    disk, write = Disk(), Journal._write

    async def guarded(self: Journal, statement: str, *values: str | bytes) -> None:
        if disk.full:
            raise ResourceExhausted("the journal cannot be written: the disk is full")
        await write(self, statement, *values)

    monkeypatch.setattr(Journal, "_write", guarded)
    return disk


@pytest.fixture
async def service(tmp_path: Path, world: World, disk: Disk) -> AsyncIterator[PodService]:
    service, _ = make_service(tmp_path, world)
    await service.open()
    yield service
    await service.close()


async def running(service: PodService) -> tuple[str, str]:
    pod_id = await service.run_pod(pod_spec())
    container_id = await service.create_container(ContainerRequest(pod_id=pod_id, name="c", image="busybox"))
    await service.start_container(container_id)
    return pod_id, container_id


async def until_exited(service: PodService, container_id: str) -> None:
    async with asyncio.timeout(10 * PATIENCE):
        while service.container(container_id).phase is not ContainerPhase.EXITED:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_an_exit_is_told_and_recorded_later(
    service: PodService, world: World, disk: Disk, tmp_path: Path
) -> None:
    _, container_id = await running(service)
    disk.full = True
    world.exit(container_id, 3)
    await until_exited(service, container_id)
    assert service.container(container_id).exit_code == 3
    await service._recovery.sweep()
    disk.full = False
    await service._recovery.sweep()
    await service.close()
    journal = Journal(tmp_path / "journal.db")
    (found,) = (await journal.open()).containers
    await journal.close()
    assert (found.phase, found.exit_code) == (ContainerPhase.EXITED, 3)


async def test_the_death_of_a_pod_is_told(service: PodService, world: World, disk: Disk) -> None:
    pod_id, container_id = await running(service)
    disk.full = True
    world.kill_pod(pod_id)
    await until_exited(service, container_id)
    assert service.pod(pod_id).phase is PodPhase.NOTREADY


async def test_a_start_that_was_recorded_too_late_is_a_start(
    service: PodService, world: World, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process runs: to say that it could not be started would make the caller start another."""
    pod_id = await service.run_pod(pod_spec())
    container_id = await service.create_container(ContainerRequest(pod_id=pod_id, name="c", image="busybox"))
    start = DoubleSandbox.start

    async def filling(self: DoubleSandbox, container_id: str) -> int:
        started_at = await start(self, container_id)
        disk.full = True
        return started_at

    monkeypatch.setattr(DoubleSandbox, "start", filling)
    await service.start_container(container_id)
    assert service.container(container_id).phase is ContainerPhase.RUNNING
    world.exit(container_id, 0)
    await until_exited(service, container_id)


async def test_a_pod_can_be_stopped_and_gives_back_what_it_has(
    service: PodService, world: World, disk: Disk
) -> None:
    """What it wrote may be what the disk is full of."""
    pod_id, container_id = await running(service)
    disk.full = True
    await service.stop_pod(pod_id)
    assert service.pod(pod_id).phase is PodPhase.NOTREADY
    assert service.container(container_id).phase is ContainerPhase.EXITED
    with pytest.raises(NotUndone, match="the disk is full"):
        await service.remove_pod(pod_id)
    assert world.pods == {}, "only its record is left"
    disk.full = False
    await service.remove_pod(pod_id)
    assert service.pods() == [] and service.containers() == []


async def test_a_start_whose_answer_is_lost_leaves_nothing_running(
    service: PodService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller will make another container in its place."""
    pod_id = await service.run_pod(pod_spec())
    container_id = await service.create_container(ContainerRequest(pod_id=pod_id, name="c", image="busybox"))
    start = DoubleSandbox.start

    async def unheard(self: DoubleSandbox, container_id: str) -> int:
        await start(self, container_id)
        raise DeadlineExceeded("the agent did not answer")

    monkeypatch.setattr(DoubleSandbox, "start", unheard)
    with pytest.raises(DeadlineExceeded):
        await service.start_container(container_id)
    assert service.container(container_id).phase is ContainerPhase.EXITED
    assert world.pods[pod_id].containers[container_id].state == "exited"


async def test_an_error_of_the_system_in_an_exec_names_the_command(
    service: PodService, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, container_id = await running(service)

    async def lost(self: DoubleIO) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(DoubleIO, "wait", lost)
    with pytest.raises(Internal, match=f"command 'true' in container {container_id[:12]}: .*Input/output"):
        await service.exec_sync(container_id, ("true",), 5)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, ResourceExhausted), (errno.ENOMEM, ResourceExhausted), (errno.EIO, Internal)],
)
@pytest.mark.parametrize("step", ["run", "create", "start"])
async def test_an_error_of_the_system_names_what_it_is_about(
    service: PodService, world: World, step: str, number: int, kind: type[OrlopError]
) -> None:
    world.failures[step] = OSError(number, os.strerror(number))
    with pytest.raises(
        kind, match=f"(pod default/web|container c) .*cannot be (made|started): .*{os.strerror(number)}"
    ):
        await running(service)
    world.failures.clear()
    if step == "run":
        await running(service)
