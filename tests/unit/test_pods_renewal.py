"""Pods that get another sandbox for a container that is to run again: their VM or the machine has ended."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from orlop.errors import FailedPrecondition, OrlopError, Unavailable
from orlop.pods import restarts, sandboxes
from orlop.pods.names import OWN
from orlop.pods.observer import Observer
from orlop.pods.records import CODE_KILLED, ContainerPhase, EventKind, PodRecord
from orlop.pods.requests import ContainerRequest, MountRequest
from orlop.pods.service import PodService
from tests.patience import until
from tests.unit.pods_double import World, make_service
from tests.unit.restarting import died_at_each_step, ended_for_good, running, runs_again


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(restarts, "LONGEST_PAUSE", 0.01)
    # What died with its VM has no exit of its own in this world.
    monkeypatch.setattr(sandboxes, "DEAD_GRACE", 0.01)


def look_again(service: PodService) -> None:
    """What failed is tried again at the next end of any container, or after half a minute."""
    service._node.ends.note("another", 0)


async def gone_for_good(service: PodService, world: World, pod_id: str, container_id: str) -> None:
    """The pod has ended with its container, and nothing of it is left."""
    await ended_for_good(service, world, container_id)
    await until(lambda: pod_id not in world.pods or not world.pods[pod_id].running)
    assert not service.pod(pod_id).ready


async def test_it_runs_again_in_the_same_pod(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service, "always")
    seen: list[tuple[EventKind, str]] = []

    async def listen() -> None:
        async for event in service.events():
            seen.append((event.kind, event.container_id))

    listening = asyncio.ensure_future(listen())
    await asyncio.sleep(0)
    waiting = asyncio.ensure_future(service.wait_container(container_id))
    await asyncio.sleep(0)
    world.kill_pod(pod_id)
    assert await waiting == CODE_KILLED
    await runs_again(service, container_id, 1)
    pod = service.pod(pod_id)
    assert pod.ready and not pod.reason and pod.addresses
    assert world.pods[pod_id].running
    assert [one.state for one in world.pods[pod_id].containers.values()] == ["running"]
    await until(lambda: (EventKind.STARTED, container_id) in seen)
    ends, starts = EventKind.STOPPED, EventKind.STARTED
    assert seen == [(ends, container_id), (ends, pod_id), (starts, pod_id), (starts, container_id)]
    listening.cancel()
    world.kill_pod(pod_id)
    await runs_again(service, container_id, 2)
    world.exit(container_id, 1)
    await runs_again(service, container_id, 3)


async def test_each_lost_sandbox_counts(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service, "on-failure:2")
    for times in (1, 2):
        world.kill_pod(pod_id)
        await runs_again(service, container_id, times)
    world.kill_pod(pod_id)
    await gone_for_good(service, world, pod_id, container_id)
    assert service.container(container_id).exit_code == CODE_KILLED
    assert world.steps.count("before run") == 3


async def test_nobody_makes_a_pod_anew_for_what_has_succeeded(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service, "on-failure")
    world.exit(container_id, 0)
    await until(lambda: service.container(container_id).phase is ContainerPhase.EXITED)
    world.kill_pod(pod_id)
    await until(lambda: not service.pod(pod_id).ready)
    await gone_for_good(service, world, pod_id, container_id)
    assert world.steps.count("before run") == 1


async def test_others_in_the_pod(service: PodService, world: World) -> None:
    """Those with a wish run again; one that was not started can be, and the others have ended."""
    pod_id, container_id = await running(service, "always")

    async def made(name: str, **more: object) -> str:
        return await service.create_container(
            ContainerRequest(pod_id=pod_id, name=name, image="busybox", **more)  # type: ignore[arg-type]
        )

    wishes = service.container(container_id).annotations
    second, plain, waits = await made("second", annotations=wishes), await made("plain"), await made("waits")
    for one in (second, plain):
        await service.start_container(one)
    world.kill_pod(pod_id)
    await runs_again(service, container_id, 1)
    await runs_again(service, second, 1)
    assert service.container(plain).phase is ContainerPhase.EXITED
    await service.start_container(waits)
    states = {one.spec.name: one.state for one in world.pods[pod_id].containers.values()}
    assert states == dict.fromkeys(("web", "second", "waits"), "running")
    assert world.steps.count("before run") == 2


Verb = Callable[[PodService, str, str], Awaitable[None]]
VERBS: dict[str, Verb] = {
    "stop": lambda service, _, container_id: service.stop_container(container_id, 1),
    "stop_pod": lambda service, pod_id, _: service.stop_pod(pod_id),
    "remove": lambda service, _, container_id: service.remove_container(container_id),
    "remove_pod": lambda service, pod_id, _: service.remove_pod(pod_id),
}


async def check_ended(service: PodService, world: World, pod_id: str, container_id: str, verb: str) -> None:
    await asyncio.sleep(0.1)
    await until(lambda: not service._aftermath._going)
    if verb == "remove_pod":
        assert not world.pods and not service.ledger.all_pods()
        return
    if verb == "remove":
        assert service.ledger.find_container(container_id) is None
    else:
        assert service.container(container_id).phase is ContainerPhase.EXITED
    assert not service.pod(pod_id).ready
    assert not any(pod.running for pod in world.pods.values())
    look_again(service)
    await asyncio.sleep(0.05)
    assert not service.pod(pod_id).ready
    await service.remove_pod(pod_id)
    assert not world.pods


@pytest.mark.parametrize("verb", [*VERBS])
async def test_who_ends_it_in_the_pause_means_it(
    service: PodService, world: World, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.2)
    pod_id, container_id = await running(service, "always")
    world.kill_pod(pod_id)
    await until(lambda: service.container(container_id).phase is ContainerPhase.EXITED)
    await VERBS[verb](service, pod_id, container_id)
    await check_ended(service, world, pod_id, container_id, verb)
    assert world.steps.count("before run") == 1


@pytest.mark.parametrize("verb", [*VERBS])
@pytest.mark.parametrize("step", ["discard", "run"])
async def test_who_ends_it_while_the_sandbox_is_made_means_it(
    service: PodService, world: World, verb: str, step: str
) -> None:
    pod_id, container_id = await running(service, "always")
    world.steps.clear()
    world.delays[step] = 0.2
    world.kill_pod(pod_id)
    await until(lambda: f"before {step}" in world.steps)
    await VERBS[verb](service, pod_id, container_id)
    await check_ended(service, world, pod_id, container_id, verb)


async def test_a_kill_comes_too_late_but_is_heeded(
    service: PodService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(restarts, "FIRST_PAUSE", 0.2)
    pod_id, container_id = await running(service, "always")
    world.kill_pod(pod_id)
    await until(lambda: service.container(container_id).phase is ContainerPhase.EXITED)
    with pytest.raises(FailedPrecondition, match="does not run"):
        await service.signal_container(container_id, signal.SIGKILL)
    await check_ended(service, world, pod_id, container_id, "stop")


async def test_a_name_is_given_meanwhile(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service, "always")
    world.steps.clear()
    world.delays["run"] = 0.2
    world.kill_pod(pod_id)
    await until(lambda: "before run" in world.steps)
    await service.rename_container(container_id, "other")
    await runs_again(service, container_id, 1)
    assert service.pod(pod_id).spec.labels[OWN] == service.container(container_id).labels[OWN] == "other"


@pytest.mark.parametrize("step", ["run", "discard"])
async def test_a_sandbox_that_cannot_be_made_is_tried_again(
    service: PodService, world: World, step: str, caplog: pytest.LogCaptureFixture
) -> None:
    pod_id, container_id = await running(service, "always")
    world.failures[step] = Unavailable("no memory is left")
    world.kill_pod(pod_id)
    await until(lambda: "does not run again yet: no memory is left" in caplog.text)
    assert not service.pod(pod_id).ready and service.pod(pod_id).reason == "the VM crashed"
    del world.failures[step]
    await until(lambda: not service._aftermath._going)
    look_again(service)
    await runs_again(service, container_id, 1)


class Refusing(Observer):
    def __init__(self) -> None:
        self.heard: list[str] = []
        self.refuses = 1

    @property
    def listens(self) -> bool:
        return True

    async def run_pod(self, pod: PodRecord) -> None:
        self.heard.append("run")
        if self.refuses:
            self.refuses -= 1
            raise FailedPrecondition("a plug-in does not want it")

    async def pod_ready(self, pod: PodRecord) -> None:
        self.heard.append("ready")

    async def pod_stopped(self, pod: PodRecord) -> None:
        self.heard.append("stopped")


async def test_the_observer_may_refuse_a_sandbox(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service, "always")
    observer = Refusing()
    service.observe(observer)
    world.kill_pod(pod_id)
    await until(lambda: len(observer.heard) == 3)
    await until(lambda: pod_id not in world.pods and not service._aftermath._going)
    assert not service.pod(pod_id).ready
    look_again(service)
    await runs_again(service, container_id, 1)
    assert observer.heard == ["stopped", "run", "stopped", "run", "ready"]


class Volumes:
    """Named volumes that are gone after a restart of the machine."""

    def __init__(self) -> None:
        self.mounted = True
        self.removed = ""
        self.asked: list[list[str]] = []

    def again(self, paths: Collection[str]) -> AbstractAsyncContextManager[None]:
        return self._again(list(paths))

    @asynccontextmanager
    async def _again(self, paths: list[str]) -> AsyncIterator[None]:
        self.asked.append(paths)
        if self.removed in paths:
            raise FailedPrecondition(f"volume {self.removed} was removed")
        self.mounted = True
        yield


async def test_its_volumes_are_there_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also those of a container that was not started yet, which learns so when it is."""
    world, volumes = World(), Volumes()
    service, _ = make_service(tmp_path, world, volumes=volumes)
    await service.open()
    mine, others = tmp_path / "mine", tmp_path / "others"
    mounts = (MountRequest(container_path="/data", host_path=str(mine)),)
    pod_id, container_id = await running(service, "always", mounts=mounts)
    mounts = (MountRequest(container_path="/data", host_path=str(others)),)
    waits = await service.create_container(
        ContainerRequest(pod_id=pod_id, name="waits", image="busybox", mounts=mounts)
    )
    volumes.mounted, volumes.removed = False, str(others)
    world.kill_pod(pod_id)
    await runs_again(service, container_id, 1)
    assert volumes.mounted and volumes.asked == [[str(others)], [str(mine)]]
    with pytest.raises(OrlopError, match="others was removed"):
        await service.start_container(waits)
    volumes.removed = str(mine)
    world.exit(container_id, 1)
    await until(lambda: "mine was removed" in caplog.text)
    assert service.container(container_id).restarts == 1
    await service.close()


async def test_it_runs_again_after_a_restart_of_the_machine(tmp_path: Path) -> None:
    world = World()
    service, _ = make_service(tmp_path, world)
    await service.open()
    pod_id, container_id = await running(service, "on-failure:2")
    await service.close()
    for times in (1, 2):
        world.pods.clear()
        service, _ = make_service(tmp_path, world)
        await service.open()
        await runs_again(service, container_id, times)
        await service.close()
    world.pods.clear()
    service, _ = make_service(tmp_path, world)
    await service.open()
    await gone_for_good(service, world, pod_id, container_id)
    await service.close()


async def test_a_daemon_that_dies_in_between_leaves_it_to_the_next(tmp_path: Path) -> None:
    """Whichever step it dies at, from the end of the VM to the next run: one runs then, and only one."""
    assert await died_at_each_step(tmp_path, lambda world, pod_id, _: world.kill_pod(pod_id)) > 10
