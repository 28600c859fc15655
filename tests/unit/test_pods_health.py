"""Health checks of containers: what is asked for, what results mean, who asks and until when."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.images.model import HealthCheck
from orlop.pods import health
from orlop.pods.health import ANNOTATION, SECOND
from orlop.pods.records import (
    ContainerPhase,
    ContainerRecord,
    EventKind,
    HealthResult,
    HealthState,
    HealthStatus,
)
from orlop.pods.requests import ContainerRequest
from orlop.pods.service import PodService
from orlop.sandbox.spec import ContainerSpec
from tests.patience import PATIENCE, until
from tests.unit.pods_double import DoubleConfig, World, make_service, pod_spec

LONG = 3600 * SECOND


def wish(*test: str, **more: Any) -> dict[str, str]:
    return {ANNOTATION: json.dumps({"test": test, **more})}


async def running(service: PodService, annotations: dict[str, str]) -> str:
    pod_id = await service.run_pod(pod_spec())
    request = ContainerRequest(pod_id=pod_id, name="main", image="busybox", annotations=annotations)
    container_id = await service.create_container(request)
    await service.start_container(container_id)
    return container_id


def state(service: PodService, container_id: str) -> HealthState:
    found = service.container(container_id).health
    assert found is not None
    return found


def test_a_wish_is_completed_by_the_image_and_by_defaults() -> None:
    own = HealthCheck(test=("CMD", "own"), interval=5 * SECOND, start_period=7, retries=9)
    image = replace(DoubleConfig(), healthcheck=own)
    assert health.wished({}, image) is None
    found = health.wished({ANNOTATION: "{}"}, image)
    assert found == msgspec.structs.replace(own, timeout=30 * SECOND)
    found = health.wished(wish("CMD-SHELL", "x y", interval=0, retries=1, timeout=2 * SECOND), image)
    assert found is not None and health.command(found) == ("/bin/sh", "-c", "x y")
    assert (found.interval, found.timeout, found.retries, found.start_period) == (0, 2 * SECOND, 1, 7)
    plain = health.wished(wish("CMD", "x", "y"), DoubleConfig())
    assert plain is not None and health.command(plain) == ("x", "y")
    assert (plain.interval, plain.timeout, plain.retries) == (30 * SECOND, 30 * SECOND, 3)
    assert health.wished({ANNOTATION: "{}"}, DoubleConfig()) is None
    assert health.wished(wish("NONE"), image) is None


def test_an_image_does_not_keep_the_daemon_busy_nor_spoil_a_container() -> None:
    busy = replace(DoubleConfig(), healthcheck=HealthCheck(test=("CMD", "x"), interval=1, timeout=1))
    found = health.wished({ANNOTATION: "{}"}, busy)
    assert found is not None and found.interval == found.timeout == SECOND
    for test in (
        ("x",),
        ("CMD",),
        ("CMD-SHELL",),
        ("CMD-SHELL", "a", "b"),
        ("CMD", "a\0"),
        ("CMD", "x" * 40_000),
    ):
        strange = replace(DoubleConfig(), healthcheck=HealthCheck(test=test))
        assert health.wished({ANNOTATION: "{}"}, strange) is None
        with pytest.raises(InvalidArgument, match="CMD-SHELL"):
            health.wished(wish(*test), DoubleConfig())


@pytest.mark.parametrize(
    "text",
    ["", "[]", "x", '{"test": "x"}', '{"more": 1}', '{"test": ["CMD", "x"], "interval": 5}',
     '{"test": ["CMD", "x"], "timeout": 0}', '{"test": ["CMD", "x"], "retries": 0}', "[" * 100_000],
)  # fmt: skip
def test_a_wish_that_cannot_be_understood_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match=ANNOTATION):
        health.wished({ANNOTATION: text}, DoubleConfig())


def test_what_results_mean() -> None:
    check = HealthCheck(test=("CMD", "x"), retries=2, start_period=100)
    record = ContainerRecord(
        spec=ContainerSpec(id="c", pod_id="p", name="n"),
        phase=ContainerPhase.RUNNING,
        created_at=1,
        started_at=1000,
        health=HealthState(),
    )
    told = []
    for at, code in ((1050, 1), (1060, 0), (1070, 1), (1080, 1), (1090, 1), (1200, 0), (1300, 1), (1400, 1)):
        result = HealthResult(started_at=at, finished_at=at, exit_code=code)
        record = msgspec.structs.replace(record, health=health.judged(record, check, result))
        assert record.health is not None
        told.append((str(record.health.status), record.health.failures))
    # One that was well once is not starting any more.
    assert told == [
        ("starting", 0),
        ("healthy", 0),
        ("healthy", 1),
        ("unhealthy", 2),
        ("unhealthy", 3),
        ("healthy", 0),
        ("healthy", 1),
        ("unhealthy", 2),
    ]
    assert record.health is not None and len(record.health.results) == health.KEPT_RESULTS
    assert record.health.results[-1].started_at == 1400


async def test_a_container_is_checked_by_itself_and_its_health_is_told(service: PodService) -> None:
    events = service.events()
    first = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    container_id = await running(service, wish("CMD", "echo", "well", interval=LONG))
    await until(lambda: state(service, container_id).status is HealthStatus.HEALTHY)
    (result,) = state(service, container_id).results
    assert result.exit_code == 0 and result.output == "wellerr"
    found = await service.container_info(container_id)
    assert found["health"]["status"] == "healthy" and found["health"]["log"][0]["exitCode"] == 0  # type: ignore[index]
    event = await first
    async with asyncio.timeout(20 * PATIENCE):
        while event.kind is not EventKind.HEALTH:
            event = await anext(events)
    assert event.container_id == container_id
    await events.aclose()  # type: ignore[attr-defined]


async def test_a_check_that_fails_or_hangs_is_counted(service: PodService) -> None:
    container_id = await running(service, wish("CMD", "fail", interval=0, retries=2))
    assert state(service, container_id) == HealthState()
    assert (await service.check_health(container_id)).exit_code == 3
    assert state(service, container_id).status is HealthStatus.STARTING
    await service.check_health(container_id)
    assert (state(service, container_id).status, state(service, container_id).failures) == ("unhealthy", 2)
    patient = await running_again(service, wish("CMD", "sleep", "1000", interval=0, timeout=SECOND))
    result = await service.check_health(patient)
    assert result.exit_code == health.FAILED and "did not end within 1 s" in result.output


async def running_again(service: PodService, annotations: dict[str, str]) -> str:
    pod_id = service.pods()[0].id
    request = ContainerRequest(pod_id=pod_id, name="other", image="busybox", annotations=annotations)
    container_id = await service.create_container(request)
    await service.start_container(container_id)
    return container_id


async def test_output_is_bounded(service: PodService) -> None:
    container_id = await running(service, wish("CMD", "flood", interval=0))
    result = await service.check_health(container_id)
    assert len(result.output) == health.KEPT_OUTPUT


async def test_checks_of_one_container_are_one(service: PodService, world: World) -> None:
    container_id = await running(service, wish("CMD", "sleep", "0.5", interval=0))
    found = await asyncio.gather(*(service.check_health(container_id) for _ in range(5)))
    assert len({one.started_at for one in found}) == 1 and len(state(service, container_id).results) == 1


async def test_a_container_without_a_check_has_no_health(service: PodService) -> None:
    container_id = await running(service, {})
    assert service.container(container_id).health is None
    assert "health" not in await service.container_info(container_id)
    with pytest.raises(FailedPrecondition, match="no health check"):
        await service.check_health(container_id)
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("health")]


async def test_checks_end_with_their_container(service: PodService, world: World) -> None:
    container_id = await running(service, wish("CMD", "sleep", "1000", interval=LONG))
    checking = asyncio.ensure_future(service.check_health(container_id))
    await until(lambda: [task for task in asyncio.all_tasks() if task.get_name().startswith("health")])
    world.exit(container_id, 0)
    await until(lambda: service.container(container_id).phase is ContainerPhase.EXITED)
    await until(lambda: not [t for t in asyncio.all_tasks() if t.get_name().startswith("health of")])
    checking.cancel()
    assert state(service, container_id) == HealthState()
    with pytest.raises(FailedPrecondition, match="does not run"):
        await service.check_health(container_id)


async def test_a_daemon_that_was_restarted_goes_on(tmp_path: Path, world: World) -> None:
    service, _ = make_service(tmp_path, world)
    await service.open()
    container_id = await running(service, wish("CMD", "echo", interval=LONG))
    await until(lambda: state(service, container_id).results)
    before = state(service, container_id)
    await service.close()
    again, _ = make_service(tmp_path, world)
    await again.open()
    await again.recovered()
    assert state(again, container_id) == before
    # The next one is due in an hour, whoever asks then.
    names = [task.get_name() for task in asyncio.all_tasks()]
    assert f"health of container {container_id[:12]}" in names
    assert (await again.check_health(container_id)).exit_code == 0
    assert len(state(again, container_id).results) == 2
    await again.close()


async def test_one_that_stands_still_is_left_alone(service: PodService) -> None:
    container_id = await running(service, wish("CMD", "fail", interval=0))
    await service.pause_container(container_id)
    with pytest.raises(FailedPrecondition, match="paused"):
        await service.check_health(container_id)
    assert state(service, container_id) == HealthState()
