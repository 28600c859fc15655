"""The verbs on pods and containers, over a driver in memory."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orlop.config import VmConfig
from orlop.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from orlop.linux.usage import Usage
from orlop.pods.execs import OUTPUT_LIMIT
from orlop.pods.meter import SECOND, Meter
from orlop.pods.records import ContainerFilter, ContainerPhase, EventKind, PodFilter, PodPhase
from orlop.pods.requests import ContainerRequest, MountRequest, SecurityRequest
from orlop.pods.service import PodService
from orlop.sandbox.figures import Detail, PodStats
from orlop.sandbox.spec import NamespaceMode, Namespaces, Resources, Rlimit, Root, Sink, Tmpfs, UserIds
from tests.unit.pods_double import DoubleImages, DoubleIO, World, make_service, pod_spec


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
async def service(tmp_path: Path, world: World) -> AsyncIterator[PodService]:
    service, images = make_service(tmp_path, world)
    await service.open()
    service.test_images = images  # type: ignore[attr-defined]
    yield service
    await service.close()


def images_of(service: PodService) -> DoubleImages:
    return service.test_images  # type: ignore[attr-defined,no-any-return]


def request(pod_id: str, name: str = "main", **changes: Any) -> ContainerRequest:
    return ContainerRequest(**({"pod_id": pod_id, "name": name, "image": "busybox"} | changes))


async def running(service: PodService, **changes: Any) -> tuple[str, str]:
    pod_id = await service.run_pod(pod_spec())
    container_id = await service.create_container(request(pod_id, **changes))
    await service.start_container(container_id)
    return pod_id, container_id


async def exited(service: PodService, container_id: str) -> None:
    async with asyncio.timeout(20):
        while service.container(container_id).phase is not ContainerPhase.EXITED:  # noqa: ASYNC110
            await asyncio.sleep(0.001)


async def test_a_pod_lives_and_goes(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service)
    pod = service.pod(pod_id[:10])
    assert (pod.ready, pod.handler, pod.addresses) == (True, "vm", ("10.1.2.3",))
    assert service.container(container_id[:13]).running
    assert images_of(service).used.keys() == {container_id}
    world.exit(container_id, 7)
    await exited(service, container_id)
    record = service.container(container_id)
    assert (record.exit_code, record.reason) == (7, "Error")
    await service.stop_pod(pod_id)
    assert not service.pod(pod_id).ready
    assert [item.id for item in service.pods(PodFilter(ready=False))] == [pod_id]
    await service.stop_pod(pod_id)
    await service.remove_pod(pod_id)
    assert (world.pods, service.pods(), service.containers(), images_of(service).used) == ({}, [], [], {})
    with pytest.raises(NotFound):
        service.pod(pod_id)


async def test_what_does_not_exist_is_stopped_and_removed_already(service: PodService) -> None:
    for ref in ("0" * 64, "abc"):
        await service.stop_pod(ref)
        await service.remove_pod(ref)
        await service.stop_container(ref, 1)
        await service.remove_container(ref)
        with pytest.raises(NotFound):
            await service.start_container(ref)


async def test_retries_join(service: PodService, world: World) -> None:
    world.delays["run"] = 0.05
    world.delays["create"] = 0.05
    first = asyncio.create_task(service.run_pod(pod_spec()))
    await asyncio.sleep(0.01)
    first.cancel()
    pods = await asyncio.gather(*(service.run_pod(pod_spec()) for _ in range(3)))
    pods.append(await service.run_pod(pod_spec()))
    assert len(set(pods)) == 1 == len(world.pods)
    with pytest.raises(AlreadyExists):
        await service.run_pod(pod_spec(hostname="other"))
    made = await asyncio.gather(*(service.create_container(request(pods[0])) for _ in range(3)))
    assert len({*made, await service.create_container(request(pods[0]))}) == 1
    with pytest.raises(AlreadyExists):
        await service.create_container(request(pods[0], command=("other",)))
    assert await service.create_container(request(pods[0], attempt=1)) != made[0]


@pytest.mark.parametrize("point", ["run", "create", "start"])
async def test_a_failure_leaves_nothing(service: PodService, world: World, point: str) -> None:
    world.failures[point] = FailedPrecondition("no memory")
    with pytest.raises(FailedPrecondition, match="no memory"):
        await running(service)
    if point == "run":
        assert (world.pods, service.ledger.all_pods()) == ({}, [])
    elif point == "create":
        assert (service.ledger.all_containers(), images_of(service).used) == ([], {})
    else:
        (record,) = service.containers()
        assert (record.phase, record.exit_code, record.reason) == (ContainerPhase.EXITED, 128, "StartError")
        assert record.message == "no memory"
    world.failures.clear()
    await service.run_pod(pod_spec("again"))


async def test_a_pod_that_was_not_made_has_no_logs(service: PodService, world: World, tmp_path: Path) -> None:
    world.failures["run"] = FailedPrecondition("no memory")
    logs = tmp_path / "logs"
    there = logs / "made by the caller"
    there.mkdir(parents=True)
    for directory in (there, logs / "made for it"):
        with pytest.raises(FailedPrecondition):
            await service.run_pod(pod_spec(log_directory=str(directory)))
    assert list(logs.iterdir()) == [there]


async def test_what_cannot_be_removed_is_tried_again(service: PodService, world: World) -> None:
    pod_id, _ = await running(service)
    world.failures["discard"] = FailedPrecondition("busy")
    with pytest.raises(FailedPrecondition):
        await service.remove_pod(pod_id)
    assert service.pods() == [] and len(world.pods) == 1
    await service._recovery.sweep()
    assert len(world.pods) == 1
    world.failures.clear()
    await service._recovery.sweep()
    assert (world.pods, service.ledger.all_pods(), service.ledger.all_containers()) == ({}, [], [])


async def test_the_stop_ladder(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service)
    container = world.pods[pod_id].containers[container_id]
    await service.stop_container(container_id, 5)
    assert container.signals == [signal.SIGUSR1]
    assert service.container(container_id).exit_code == 128 + signal.SIGUSR1
    await service.stop_container(container_id, 5)
    world.ignore_term = True
    second = await service.create_container(request(pod_id, "second", stop_signal="SIGTERM"))
    await service.stop_container(second, 1)
    await service.start_container(second)
    await service.stop_container(second, 0.01)
    assert world.pods[pod_id].containers[second].signals == [signal.SIGTERM, signal.SIGKILL]
    assert service.container(second).exit_code == 137
    third = await service.create_container(request(pod_id, "third"))
    await service.start_container(third)
    slow = asyncio.create_task(service.stop_container(third, 60))
    await asyncio.sleep(0.01)
    await service.stop_container(third, 0)
    await slow
    assert service.container(third).exit_code == 137


async def test_a_paused_container_runs_nothing_and_can_be_stopped(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service)
    container = world.pods[pod_id].containers[container_id]
    with pytest.raises(FailedPrecondition, match="is not paused"):
        await service.resume_container(container_id)
    # Of two at once, one pauses it.
    both = (service.pause_container(container_id), service.pause_container(container_id))
    answers = await asyncio.gather(*both, return_exceptions=True)
    assert [str(one) for one in answers if one is not None] == [
        f"container main ({container_id[:12]}) is paused already"
    ]
    assert container.frozen and service.container(container_id).paused
    with pytest.raises(FailedPrecondition, match="is paused; resume it"):
        await service.exec_sync(container_id, ("true",))
    await service.resume_container(container_id)
    assert not container.frozen and not service.container(container_id).paused
    await service.pause_container(container_id)
    await service.stop_container(container_id, 5)
    assert (container.frozen, container.signals) == (False, [signal.SIGUSR1])
    await exited(service, container_id)
    assert not service.container(container_id).paused
    with pytest.raises(FailedPrecondition, match="does not run"):
        await service.pause_container(container_id)


async def test_a_pause_that_fails_is_taken_back(service: PodService, world: World) -> None:
    _, container_id = await running(service)
    world.failures["freeze"] = Unavailable("a process waits for a disk")
    with pytest.raises(Unavailable):
        await service.pause_container(container_id)
    assert not service.container(container_id).paused
    # What cannot be taken back can be resumed later.
    world.failures["thaw"] = Unavailable("nobody listens")
    with pytest.raises(Unavailable):
        await service.pause_container(container_id)
    assert service.container(container_id).paused
    world.failures.clear()
    await service.resume_container(container_id)
    assert not service.container(container_id).paused


async def test_a_pause_that_was_begun_is_carried_on(tmp_path: Path, world: World) -> None:
    """The journal knows of it before anything stands still."""
    service, _ = make_service(tmp_path, world)
    await service.open()
    pod_id, container_id = await running(service)
    await service.pause_container(container_id)
    await service.close()
    container = world.pods[pod_id].containers[container_id]
    container.frozen = False
    service, _ = make_service(tmp_path, world)
    await service.open()
    await service.recovered()
    assert container.frozen and service.container(container_id).paused
    await service.close()


async def test_a_dead_sandbox_takes_its_containers(service: PodService, world: World) -> None:
    pod_id, container_id = await running(service)
    world.kill_pod(pod_id)
    await asyncio.sleep(0.01)
    await exited(service, container_id)
    record = service.container(container_id)
    assert (record.exit_code, record.reason) == (137, "SandboxLost")
    assert service.pod(pod_id).reason == "the VM crashed"
    with pytest.raises(FailedPrecondition, match="the VM crashed"):
        await service.create_container(request(pod_id, "second"))
    await service.stop_pod(pod_id)
    await service.remove_pod(pod_id)
    assert world.pods == {}


async def test_oom_and_success_are_told_apart(service: PodService, world: World) -> None:
    pod_id, first = await running(service)
    world.exit(first, 137, oom=True)
    await exited(service, first)
    assert service.container(first).reason == "OOMKilled"
    second = await service.create_container(request(pod_id, "second"))
    await service.start_container(second)
    world.exit(second, 0)
    await exited(service, second)
    assert service.container(second).reason == "Completed"
    with pytest.raises(FailedPrecondition):
        await service.start_container(second)
    with pytest.raises(FailedPrecondition):
        await service.exec_sync(second, ("true",))


async def test_events(service: PodService, world: World) -> None:
    events = service.events()
    got: list[tuple[EventKind, str, bool, int]] = []

    async def listen() -> None:
        async for event in events:
            got.append((event.kind, event.container_id, event.pod.ready, len(event.containers)))

    listener = asyncio.create_task(listen())
    await asyncio.sleep(0)
    pod_id, container_id = await running(service)
    await service.stop_container(container_id, 1)
    await service.remove_container(container_id)
    await service.remove_pod(pod_id)
    async with asyncio.timeout(20):
        while len(got) < 8:  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(0.001)
    listener.cancel()
    await asyncio.gather(listener, return_exceptions=True)
    assert got == [
        (EventKind.CREATED, pod_id, True, 0),
        (EventKind.STARTED, pod_id, True, 0),
        (EventKind.CREATED, container_id, True, 1),
        (EventKind.STARTED, container_id, True, 1),
        (EventKind.STOPPED, container_id, True, 1),
        (EventKind.DELETED, container_id, True, 0),
        (EventKind.STOPPED, pod_id, False, 0),
        (EventKind.DELETED, pod_id, False, 0),
    ]
    assert not service._node.events._subscribers


async def test_a_slow_listener_is_cut_off(service: PodService) -> None:
    events = service.events()
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0)
    pod_id = await service.run_pod(pod_spec())
    await waiting
    for _ in range(1100):
        service._node.events.publish(EventKind.STOPPED, pod_id, pod_id)
    with pytest.raises(ResourceExhausted):
        async for _ in events:
            pass


async def test_exec_sync(service: PodService) -> None:
    _, container_id = await running(service)
    result = await service.exec_sync(container_id, ("fail", "a", "b"))
    assert (result.stdout, result.stderr, result.exit_code) == (b"a b", b"err", 3)
    assert len((await service.exec_sync(container_id, ("flood",))).stdout) == OUTPUT_LIMIT
    with pytest.raises(DeadlineExceeded):
        await service.exec_sync(container_id, ("sleep", "60"), 0.01)
    (sandbox,) = service._node.sandboxes.values()
    async with asyncio.timeout(20):
        while not all(process.closed for process in sandbox.execs):  # type: ignore[attr-defined] # noqa: ASYNC110
            await asyncio.sleep(0.01)
    with pytest.raises(InvalidArgument):
        await service.exec_sync(container_id, ())
    with pytest.raises(FailedPrecondition, match="without stdin"):
        await service.attach(container_id, stdin=True)


async def test_which_handler(tmp_path: Path, service: PodService) -> None:
    host = Namespaces(network=NamespaceMode.NODE)
    for name, changes, handler in (
        ("plain", {}, "vm"),
        ("host", {"namespaces": host}, "process"),
        ("ipc", {"namespaces": Namespaces(ipc=NamespaceMode.NODE)}, "process"),
        ("privileged", {"privileged": True}, "process"),
        ("named", {"handler": "vm", "privileged": True}, "vm"),
        ("process", {"handler": "process"}, "process"),
    ):
        pod_id = await service.run_pod(pod_spec(name, **changes))
        assert service.pod(pod_id).handler == handler
        assert service.pod(pod_id).runtime_handler == changes.get("handler", "")
        assert service.pod_info(pod_id)["handlerReason"]
    with pytest.raises(InvalidArgument, match="host network"):
        await service.run_pod(pod_spec("refused", handler="vm", namespaces=host))
    with pytest.raises(InvalidArgument, match="runc"):
        await service.run_pod(pod_spec("unknown", handler="runc"))
    assert [handler.name for handler in await service.handlers()] == ["process", "vm"]
    assert await service.runtime_reason() == ""


async def test_a_handler_is_asked_for_by_its_further_names_too(tmp_path: Path, world: World) -> None:
    service, _ = make_service(tmp_path, world, vm=VmConfig(names=("kata",)))
    await service.open()
    pod_id = await service.run_pod(pod_spec("web", handler="kata"))
    assert (service.pod(pod_id).handler, service.pod(pod_id).runtime_handler) == ("vm", "kata")
    assert [handler.name for handler in await service.handlers()] == ["kata", "process", "vm"]
    await service.close()


async def test_resources(service: PodService) -> None:
    pod_id, container_id = await running(service, resources=Resources(cpu_shares=2, memory_limit=100))
    await service.update_container(container_id, Resources(memory_limit=200))
    assert service.container(container_id).resources == Resources(cpu_shares=2, memory_limit=200)
    await service.update_pod_resources(pod_id, Resources(), Resources(memory_limit=300))
    assert service.pod(pod_id).spec.resources.memory_limit == 300


def test_a_rate_is_not_of_the_moment_between_two_questions() -> None:
    meter = Meter(None)  # type: ignore[arg-type]
    assert meter._rate("c", Usage(timestamp=0, cpu_ns=0)) is None
    assert meter._rate("c", Usage(timestamp=SECOND, cpu_ns=SECOND // 4)) == SECOND // 4
    assert meter._rate("c", Usage(timestamp=SECOND * 6 // 5, cpu_ns=SECOND // 4)) == SECOND // 4
    assert meter._rate("c", Usage(timestamp=2 * SECOND, cpu_ns=SECOND // 2)) == SECOND // 4


async def test_statistics(service: PodService, world: World, caplog: pytest.LogCaptureFixture) -> None:
    pod_id, container_id = await running(service)
    assert (await service.container_stats(container_id)).stats.nano_cores is None
    assert (await service.container_stats(container_id)).stats.nano_cores == 500_000_000
    (use,) = await service.list_container_stats(ContainerFilter(pod_id=pod_id))
    assert use.record.id == container_id
    (pod,) = await service.list_pod_stats()
    assert [item.id for item in pod.containers] == [container_id]
    world.failures["stats"] = FailedPrecondition("the VM does not answer")
    assert await service.list_pod_stats() == []
    assert await service.list_container_stats() == []
    with pytest.raises(FailedPrecondition):
        await service.pod_stats(pod_id)
    # A pod that goes while it is asked is no fault: who asked hears of it.
    assert not [one for one in caplog.records if one.levelname == "WARNING"]


async def test_a_container_is_resolved(service: PodService, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    pod_id = await service.run_pod(pod_spec(log_directory=str(tmp_path / "logs")))
    container_id = await service.create_container(
        request(
            pod_id,
            args=("-c", "true"),
            env=(("B", b"\xff"),),
            log_path="main/0.log",
            mounts=(
                MountRequest(container_path="/v", host_path=str(tmp_path / "link")),
                MountRequest(container_path="/i", image="busybox", image_sub_path="bin"),
            ),
            security=SecurityRequest(user_id=1, group_id=2, supplemental_groups=(3,), strict_groups=True),
        )
    )
    record = service.container(container_id)
    spec = record.spec
    assert spec.args == ("-c", "true")
    assert dict(spec.env)["A"] == b"image" and dict(spec.env)["B"] == b"\xff"
    assert (spec.cwd, spec.stop_signal, record.stop_signal) == ("/srv", 10, "SIGUSR1")
    assert spec.sink.log == str(tmp_path / "logs/main/0.log") and (tmp_path / "logs").is_dir()
    assert spec.mounts[0].host_path == str(tmp_path / "real")
    assert spec.mounts[1].image is not None and spec.mounts[1].image.sub_path == "bin"
    assert record.user == UserIds(uid=1, gid=2, groups=(2, 3))
    for bad, error in (
        ({"image": "nothing"}, NotFound),
        (
            {"mounts": (MountRequest(container_path="/v", host_path="/proc/none"),)},
            FailedPrecondition,
        ),
        ({"mounts": (MountRequest(container_path="v", host_path="/"),)}, InvalidArgument),
        (
            {"mounts": (MountRequest(container_path="/v", image="busybox", image_sub_path="../x"),)},
            InvalidArgument,
        ),
        ({"log_path": "../../x"}, InvalidArgument),
        ({"stop_signal": "SIGWHAT"}, InvalidArgument),
        ({"env": (("A=B", b""),)}, InvalidArgument),
        ({"cdi_devices": ("nothing",)}, InvalidArgument),
        ({"cdi_devices": ("vendor.example/class=none",)}, NotFound),
    ):
        with pytest.raises(error):
            await service.create_container(request(pod_id, "bad", **bad))
    assert len(service.ledger.all_containers()) == 1 == len(images_of(service).used)


async def test_a_container_without_an_image_is_resolved(service: PodService, tmp_path: Path) -> None:
    pod_id = await service.run_pod(pod_spec(netns="/run/netns/x", log_directory=str(tmp_path)))
    assert service.pod(pod_id).spec.netns == "/run/netns/x"
    wanted = request(
        pod_id,
        image="",
        directory="/srv/root",
        command=("init",),
        sink=Sink(stdout="/run/out"),
        rlimits=(Rlimit(name="NOFILE", soft=1, hard=2),),
        mounts=(MountRequest(container_path="/t", tmpfs=Tmpfs(size=9), read_only=True),),
    )
    record = service.container(await service.create_container(wanted))
    spec = record.spec
    assert spec.root == Root(directory="/srv/root") and not images_of(service).used
    assert (spec.image_id, record.image, record.image_ref) == ("", "", "")
    assert spec.args == ("init",) and spec.cwd == "/" and spec.stop_signal == 15
    assert spec.sink.stdout == "/run/out" and spec.rlimits == wanted.rlimits
    assert spec.mounts[0].tmpfs == Tmpfs(size=9) and spec.mounts[0].read_only
    for bad in ({"image": "busybox"}, {"command": ()}, {"log_path": "0.log"}):
        with pytest.raises(InvalidArgument):
            await service.create_container(msgspec.structs.replace(wanted, name="bad", **bad))


async def test_a_stop_that_was_begun_is_carried_on(tmp_path: Path, world: World) -> None:
    """The journal knows of it before anything is stopped."""
    service, _ = make_service(tmp_path, world)
    await service.open()
    pod_id = await service.run_pod(pod_spec())
    world.failures["stop"] = Unavailable("the VM does not end")
    with pytest.raises(Unavailable):
        await service.stop_pod(pod_id)
    await service.close()
    del world.failures["stop"]
    service, _ = make_service(tmp_path, world)
    await service.open()
    await service.recovered()
    async with asyncio.timeout(20):
        while service.pod(pod_id).ready:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert not world.pods or not world.pods[pod_id].running
    await service.close()


async def test_a_stop_of_the_daemon_undoes_what_is_half_made(tmp_path: Path, world: World) -> None:
    service, _ = make_service(tmp_path, world)
    await service.open()
    keep = await service.run_pod(pod_spec("keep"))
    world.delays["run"] = 60
    waiting = asyncio.create_task(service.run_pod(pod_spec("half")))
    await asyncio.sleep(0.02)
    await service.close()
    with pytest.raises(Exception, match="stopping"):
        await waiting
    assert list(world.pods) == [keep]
    again, _ = make_service(tmp_path, world)
    await again.open()
    assert [pod.phase for pod in again.ledger.all_pods()] == [PodPhase.READY]
    await again.close()


async def test_a_late_pod_does_not_hold_up_the_others(
    service: PodService, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orlop.pods.meter.ANSWER_TIME", 0.1)
    late, _ = await running(service)
    prompt = await service.run_pod(pod_spec("prompt"))
    await service.start_container(await service.create_container(request(prompt)))
    gate = asyncio.Event()
    asked = 0
    sandbox = service._node.sandbox(late)
    answers = sandbox.stats

    async def stats(detail: Detail = Detail.POD) -> PodStats:
        nonlocal asked
        asked += 1
        await gate.wait()
        return await answers(detail)

    monkeypatch.setattr(sandbox, "stats", stats)
    async with asyncio.timeout(20):
        assert [use.record.id for use in await service.list_pod_stats()] == [prompt]
        assert {use.record.pod_id for use in await service.list_container_stats()} == {prompt}
        with pytest.raises(DeadlineExceeded):
            await service.pod_stats(late)
        await service.list_pod_stats()
    assert asked == 2, "once for its containers, once for all of it, until it has answered"
    gate.set()
    assert {use.record.id for use in await service.list_pod_stats()} == {late, prompt}
    # Late again: its last figures count.
    gate.clear()
    async with asyncio.timeout(20):
        assert {use.record.id for use in await service.list_pod_stats()} == {late, prompt}
    gate.set()


async def test_a_container_that_runs_never_uses_nothing(
    service: PodService, monkeypatch: pytest.MonkeyPatch
) -> None:
    pod_id, container_id = await running(service)
    silent = PodStats()

    async def stats(detail: Detail = Detail.POD) -> PodStats:
        return silent

    monkeypatch.setattr(service._node.sandbox(pod_id), "stats", stats)
    with pytest.raises(Unavailable, match="cannot tell"):
        await service.container_stats(container_id)
    await service.stop_container(container_id, 0)
    assert (await service.container_stats(container_id)).stats.usage.cpu_ns == 0


async def test_time_limits_hold_when_a_guest_is_silent(
    service: PodService, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, container_id = await running(service)
    (sandbox,) = service._node.sandboxes.values()

    async def silence(*_: object) -> None:
        await asyncio.sleep(600)
        raise DeadlineExceeded("the agent did not answer")

    monkeypatch.setattr(DoubleIO, "close", silence)
    begun = time.monotonic()
    with pytest.raises(DeadlineExceeded):
        await service.exec_sync(container_id, ("sleep", "60"), 0.2)
    assert time.monotonic() - begun < 30
    signals: list[int] = []
    answered = sandbox.signal

    async def deaf_but_to_kill(container: str, number: int) -> None:
        signals.append(number)
        if number != 9:
            await silence()
        await answered(container, number)

    monkeypatch.setattr(sandbox, "signal", deaf_but_to_kill)
    begun = time.monotonic()
    await service.stop_container(container_id, 0.2)
    assert time.monotonic() - begun < 30
    assert signals[-1] == 9
    assert service.container(container_id).phase is ContainerPhase.EXITED


async def begun(service: PodService, world: World) -> tuple[str, asyncio.Task[None]]:
    """A container whose start is under way."""
    world.delays["start"] = 0.1
    pod_id = await service.run_pod(pod_spec())
    container_id = await service.create_container(request(pod_id))
    starting = asyncio.create_task(service.start_container(container_id))
    async with asyncio.timeout(20):
        while "before start" not in world.steps:  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(0.001)
    return container_id, starting


async def test_a_signal_waits_for_a_start_that_is_under_way(service: PodService, world: World) -> None:
    container_id, starting = await begun(service, world)
    await service.signal_container(container_id, signal.SIGTERM)
    assert starting.done()
    await exited(service, container_id)
    assert service.container(container_id).exit_code == 128 + signal.SIGTERM
    await starting


async def test_what_is_being_started_has_not_ended_though_nobody_waits_for_that(
    service: PodService, world: World
) -> None:
    container_id, starting = await begun(service, world)
    starting.cancel()
    ended = asyncio.create_task(service.ended_container(container_id))
    async with asyncio.timeout(20):
        while service.container(container_id).phase is not ContainerPhase.RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    assert not ended.done()
    world.exit(container_id, 4)
    record = await asyncio.wait_for(ended, 20)
    assert record is not None and record.exit_code == 4
