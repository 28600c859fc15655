"""containerd's tasks over pods in memory: calls against each other, and what fails on the way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message

from orlop.bundle import output
from orlop.errors import FailedPrecondition, Internal, InvalidArgument, NotFound, NotUndone
from orlop.pods.records import ContainerPhase, PodFilter, PodRecord
from orlop.pods.service import PodService
from orlop.sandbox.rules import OutsideVm
from orlop.sandbox.spec import PodSpec
from orlop.shim import expected, places
from orlop.shim.api import door_pb2, events_pb2, forward_pb2
from orlop.shim.api import task_v2_pb2 as pb
from orlop.shim.door import ShimDoor
from orlop.shim.model import Key
from orlop.shim.service import DoorCalls, TaskCalls
from orlop.shim.stdio import Stdio
from orlop.shim.tasks import MOST_EXECS, ShimTasks
from orlop.ttrpc import frames, link
from orlop.ttrpc.client import Client
from orlop.ttrpc.frames import FrameType, LinkLost, TtrpcFrame
from orlop.ttrpc.messages_pb2 import Request, Response
from tests.patience import PATIENCE, until
from tests.unit.pods_double import World, make_service, pod_spec

SHELL = {"cwd": "/", "args": ["sh"]}
COMMAND = json.dumps({"cwd": "/", "args": ["sleep", "600"]}).encode()
KINDS = ("network", "pid", "ipc", "mount")


@dataclass
class Node:
    """A daemon that containerd has tasks of."""

    world: World
    pods: PodService
    tasks: ShimTasks
    root: Path

    def bundle(self, name: str, **more: object) -> str:
        place = self.root / name
        place.mkdir(exist_ok=True)
        namespaces = [{"type": kind, "path": "/ns" if kind == "network" else ""} for kind in KINDS]
        config = {
            "ociVersion": "1.0.2",
            "process": SHELL,
            "root": {"path": "rootfs"},
            "linux": {"namespaces": namespaces},
            **more,
        }
        (place / "config.json").write_text(json.dumps(config))
        return str(place)

    async def create(self, name: str = "one", **more: object) -> Key:
        key = ("test", name)
        await self.tasks.create(key, self.bundle(name, **more), (), Stdio())
        return key

    async def running(self, name: str = "one") -> Key:
        key = await self.create(name)
        await self.tasks.start(key, "")
        return key

    def container_id(self) -> str:
        (only,) = self.world.pods.values()
        return next(iter(only.containers))


@contextlib.asynccontextmanager
async def node(root: Path, world: World | None = None) -> AsyncIterator[Node]:
    world = world or World()
    pods, _ = make_service(root, world)
    await pods.open()
    tasks = ShimTasks(pods, root)
    tasks.open()
    try:
        yield Node(world, pods, tasks, root)
    finally:
        await tasks.close()
        await pods.close()


async def test_an_end_is_told_though_processes_are_deleted_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "DRAIN_TIME", 0.5)
    async with node(tmp_path) as one:
        key = await one.running()
        for name in ("a", "b"):
            await one.tasks.exec(key, name, COMMAND, Stdio())
            await one.tasks.start(key, name)
        for number in range(10):
            await one.tasks.exec(key, f"c{number}", COMMAND, Stdio())
        waiting = asyncio.create_task(one.tasks.wait(key, ""))
        one.world.exit(one.container_id(), 7)
        await until(lambda: one.pods.container(one.container_id()).phase is ContainerPhase.EXITED)
        # The end is told when those that run have had time to write what they have left.
        for number in range(10):
            await one.tasks.delete(key, f"c{number}")
            await asyncio.sleep(0.02)
        assert (await asyncio.wait_for(waiting, 30 * PATIENCE)).code == 7


async def test_tasks_are_found_again_beside_what_cannot_be_removed(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        key = await one.running()
        (tmp_path / "shim-netns" / "left" / "something").mkdir(parents=True)
        later = ShimTasks(one.pods, tmp_path)
        later.open()
        try:
            task, process = await later.state(key, "")
            assert later.standing(task, process).name == "RUNNING"
        finally:
            await later.close()


async def test_a_vm_whose_daemon_ended_before_its_task_was_made_is_removed(tmp_path: Path) -> None:
    world = World()
    pods, _ = make_service(tmp_path, world)
    await pods.open()
    await pods.run_pod(pod_spec(front=places.FRONT))
    await pods.close()
    async with node(tmp_path, world) as one:
        with pytest.raises(NotFound):
            await one.tasks.state(("test", "one"), "")
        assert not world.pods


async def test_each_process_of_a_task_can_be_waited_for_at_once(tmp_path: Path) -> None:
    pods, _ = make_service(tmp_path, World())
    await pods.open()
    door = ShimDoor(tmp_path, pods)
    await door.start()
    client = Client(await link.connect(tmp_path / places.DAEMON_SOCKET), "orlopd")
    metadata = ((places.NAMESPACE, "test"),)

    async def call(method: str, request: Message, reply: type[Message] = Empty) -> Message:
        return await client.call("containerd.task.v2.Task", method, request, reply, metadata=metadata)

    try:
        bundle = Node(World(), pods, ShimTasks(pods, tmp_path), tmp_path).bundle("one")
        await call("Create", pb.CreateTaskRequest(id="one", bundle=bundle), pb.CreateTaskResponse)
        await call("Start", pb.StartRequest(id="one"), pb.StartResponse)
        command = Any(type_url="types.containerd.io/opencontainers/runtime-spec/1/Process", value=COMMAND)
        names = ["", *(f"exec-{number}" for number in range(MOST_EXECS))]
        for name in names[1:]:
            await call("Exec", pb.ExecProcessRequest(id="one", exec_id=name, spec=command))
        async with asyncio.TaskGroup() as group:
            waiting = [
                group.create_task(call("Wait", pb.WaitRequest(id="one", exec_id=name), pb.WaitResponse))
                for name in names
            ]
            await asyncio.sleep(0)
            for name in names[1:]:
                await call("Delete", pb.DeleteRequest(id="one", exec_id=name), pb.DeleteResponse)
            await call("Kill", pb.KillRequest(id="one", signal=9))
        assert all(one.result() for one in waiting)
    finally:
        await client.close()
        await door.stop()
        await pods.close()


async def test_paths_from_containerd_are_bounded(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        long = "/" + "a" * 5000
        with pytest.raises(InvalidArgument, match="address"):
            await DoorCalls(one.tasks).register(
                door_pb2.RegisterRequest(namespace="test", id="one", events=long)
            )
        for bundle in (long, "relative", "/with\0nothing"):
            with pytest.raises(InvalidArgument, match="bundle"):
                await TaskCalls(one.tasks).create(pb.CreateTaskRequest(id="one", bundle=bundle))


async def test_tasks_are_found_again_beside_a_pod_that_somebody_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path) as one:
        sandbox = {"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}
        await one.create("sandbox", **sandbox)
        key = await one.running("alone")
        later = ShimTasks(one.pods, tmp_path)
        shown = one.pods.pod

        def removed(pod_id: str) -> PodRecord:
            if shown(pod_id).spec.name == "sandbox":
                raise NotFound("it was removed")
            return shown(pod_id)

        monkeypatch.setattr(one.pods, "pod", removed)
        later.open()
        try:
            task, process = await later.state(key, "")
            assert later.standing(task, process).name == "RUNNING"
        finally:
            await later.close()


class Listening:
    """A containerd that hears of events."""

    def __init__(self) -> None:
        self.ends: list[tuple[str, int]] = []

    async def serve(self, connection: link.SocketLink) -> None:
        with contextlib.suppress(LinkLost):
            while True:
                frame = await frames.read(connection)
                request = Request.FromString(frame.data)
                event = forward_pb2.ForwardRequest.FromString(request.payload).envelope.event
                if event.type_url.endswith("TaskExit"):
                    said = events_pb2.TaskExit.FromString(event.value)
                    self.ends.append((said.container_id, said.exit_status))
                answer = TtrpcFrame(frame.stream, FrameType.RESPONSE, Response().SerializeToString())
                await connection.write(answer.encode())


@contextlib.asynccontextmanager
async def listening(path: Path) -> AsyncIterator[Listening]:
    there = Listening()
    listener = link.Listener(path, there.serve)
    await listener.start()
    try:
        yield there
    finally:
        await listener.stop()


async def test_a_task_that_was_announced_to_an_earlier_daemon_tells_its_end(tmp_path: Path) -> None:
    async with listening(tmp_path / "c.sock") as containerd:
        async with node(tmp_path) as one:
            await one.tasks.register(("test", "one"), str(tmp_path / "c.sock"))
        async with node(tmp_path, one.world) as later:
            await later.running()
            later.world.exit(later.container_id(), 7)
            await until(lambda: bool(containerd.ends))
            assert containerd.ends == [("one", 7)]
            assert not later.tasks.expected.names and not list((tmp_path / expected.PLACE).iterdir())


async def test_what_was_announced_and_given_up_is_forgotten(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await one.tasks.register(("test", "one"), "/c.sock")
        await one.tasks.clear(("test", "one"))
    (tmp_path / expected.PLACE / "torn.json").write_bytes(b'{"namespace": "te')
    async with node(tmp_path, one.world) as later:
        await later.tasks.known()
        assert not later.tasks.expected.names and not list((tmp_path / expected.PLACE).iterdir())


async def test_what_was_announced_and_is_shut_down_is_forgotten_too(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        for name in ("one", "other"):
            await one.tasks.register(("test", name), "")
        await one.tasks.give_up(await one.create("one"))
        await one.tasks.give_up(("test", "other"))
        assert not one.tasks.expected.names
        assert (await one.tasks.state(("test", "one"), ""))[0].name == "task one", "it was made: it stays"


async def test_who_hears_no_events_looks_for_them(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        key = await one.running()
        one.world.exit(one.container_id(), 137, oom=True)
        assert (await asyncio.wait_for(one.tasks.wait(key, ""), 30 * PATIENCE)).code == 137
        assert (tmp_path / "one" / "oom").exists(), "it looks as soon as it knows of the end"
        # It did not know of that end when it asked for one.
        await one.tasks.kill(key, "", signal.SIGTERM)
        with pytest.raises(NotFound):
            await one.tasks.kill(key, "", signal.SIGUSR1)


async def test_who_hears_events_is_told_of_what_has_ended(tmp_path: Path) -> None:
    async with listening(tmp_path / "c.sock"), node(tmp_path) as one:
        await one.tasks.register(("test", "one"), str(tmp_path / "c.sock"))
        key = await one.running()
        one.world.exit(one.container_id(), 137, oom=True)
        await asyncio.wait_for(one.tasks.wait(key, ""), 30 * PATIENCE)
        assert not (tmp_path / "one" / "oom").exists()
        with pytest.raises(NotFound, match="already finished"):
            await one.tasks.kill(key, "", signal.SIGTERM)


async def test_so_many_tasks_are_expected_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expected, "MOST", 2)
    async with node(tmp_path) as one:
        for name in "abc":
            await one.tasks.register(("test", name), "/c.sock")
        assert one.tasks.expected.names == [("test", "b"), ("test", "c")]
        assert len(list((tmp_path / expected.PLACE).iterdir())) == 2


SANDBOX = {"annotations": {"io.kubernetes.cri.container-type": "sandbox"}}


async def test_a_vm_that_ends_before_its_task_is_known_was_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path) as one:
        run = one.pods.run_pod

        async def ends_at_once(spec: PodSpec) -> str:
            pod_id = await run(spec)
            one.world.kill_pod(pod_id, "QEMU crashed")
            await until(lambda: not one.pods.pod(pod_id).ready)
            return pod_id

        monkeypatch.setattr(one.pods, "run_pod", ends_at_once)
        with pytest.raises(FailedPrecondition, match="its VM has ended already: QEMU crashed"):
            await one.create("sandbox", **SANDBOX)
        assert not one.world.pods and not one.pods.pods(PodFilter(front=places.FRONT))
        with pytest.raises(NotFound):
            await one.tasks.state(("test", "sandbox"), "")
        monkeypatch.undo()
        await one.create("sandbox", **SANDBOX)


async def test_a_vm_that_ends_before_it_is_started_is_waited_for_told_and_not_started(tmp_path: Path) -> None:
    async with listening(tmp_path / "c.sock") as containerd, node(tmp_path) as one:
        await one.tasks.register(("test", "sandbox"), str(tmp_path / "c.sock"))
        key = await one.create("sandbox", **SANDBOX)
        one.world.kill_pod(next(iter(one.world.pods)))
        async with asyncio.timeout(30 * PATIENCE):
            assert (await one.tasks.wait(key, "")).code == output.CODE_LOST
        await until(lambda: bool(containerd.ends))
        with pytest.raises(FailedPrecondition, match=r"it is stopped \(its VM has ended\)"):
            await one.tasks.start(key, "")
        await one.tasks.delete(key, "")
        assert not one.world.pods


async def test_a_vm_that_ended_while_no_daemon_ran_is_told_to_who_has_it_still(tmp_path: Path) -> None:
    async with listening(tmp_path / "c.sock") as containerd:
        async with node(tmp_path) as one:
            for name in ("kept", "given-up"):
                await one.tasks.register(("test", name), str(tmp_path / "c.sock"))
                await one.create(name, **SANDBOX)
        for pod_id in one.world.pods:
            one.world.kill_pod(pod_id)
        # containerd could not tell that it has given this one up: nobody was there.
        (tmp_path / "given-up" / "config.json").unlink()
        (tmp_path / "given-up").rmdir()
        async with node(tmp_path, one.world) as later:
            await until(lambda: ("kept", output.CODE_LOST) in containerd.ends)
            await until(lambda: later.tasks.find(("test", "given-up")) is None)
            assert later.tasks.find(("test", "kept")) is not None
            assert [pod.spec.name for pod in later.pods.pods(PodFilter(front=places.FRONT))] == ["kept"]


@pytest.mark.parametrize(("kind", "file"), [("network", "net"), ("ipc", "ipc"), ("pid", "pid")])
@pytest.mark.parametrize("more", [{}, SANDBOX], ids=["alone", "sandbox"])
async def test_a_namespace_of_the_hosts_is_none_for_a_vm_by_whatever_path(
    tmp_path: Path, kind: str, file: str, more: dict[str, object]
) -> None:
    pinned = tmp_path / "pinned"
    pinned.symlink_to(f"/proc/self/ns/{file}")
    others = [{"type": one, "path": "/ns" if one == "network" else ""} for one in KINDS if one != kind]
    namespaces = [*others, {"type": kind, "path": str(pinned)}]
    async with node(tmp_path) as one:
        with pytest.raises(FailedPrecondition, match=f"task one asks for the host's {kind} namespace"):
            await one.create("one", linux={"namespaces": namespaces}, **more)
        assert not one.world.pods


async def test_what_is_the_hosts_is_refused_in_containerds_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path) as one:

        async def refused(_request: object) -> str:
            raise OutsideVm("container one: mount /m asks for Bidirectional propagation")

        monkeypatch.setattr(one.pods, "create_container", refused)
        with pytest.raises(FailedPrecondition) as caught:
            await one.create()
        assert str(caught.value) == (
            "container one: mount /m asks for Bidirectional propagation; "
            "another runtime of containerd's or CRI-O's can serve it, as runc's"
        )
        assert not one.world.pods


@pytest.mark.parametrize("more", [SANDBOX, {}], ids=["sandbox", "alone"])
async def test_what_containerd_does_not_wait_for_is_taken_away(
    tmp_path: Path, more: dict[str, object]
) -> None:
    async with node(tmp_path) as one:
        one.world.delays["run"] = 0.2
        making = asyncio.create_task(one.create(**more))
        await until(lambda: "before run" in one.world.steps)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await until(lambda: "after run" in one.world.steps)
        assert not one.world.pods and not one.pods.pods(PodFilter(front=places.FRONT))
        assert one.tasks.find(("test", "one")) is None
        one.world.delays.clear()
        await one.create(**more)


async def test_a_container_that_containerd_does_not_wait_for_leaves_its_sandbox_alone(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await one.create("sandbox", **SANDBOX)
        kind, of = "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id"
        one.world.delays["create"] = 0.2
        making = asyncio.create_task(one.create(annotations={kind: "container", of: "sandbox"}))
        await until(lambda: "before create" in one.world.steps)
        making.cancel()
        with pytest.raises(asyncio.CancelledError):
            await making
        await until(lambda: "after create" in one.world.steps)
        (pod,) = one.world.pods.values()
        assert pod.running and not pod.containers


async def test_a_logging_program_that_stays_hides_nothing_of_a_deletion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path) as one:
        key = await one.running()
        one.world.exit(one.container_id(), 0)
        await one.tasks.wait(key, "")

        async def fail(key: Key, exec_id: str) -> None:
            raise OSError("the logging program stays")

        one.world.failures["discard"] = OSError("the VM stays")
        with monkeypatch.context() as patch:
            patch.setattr(one.tasks.maker.loggers, "end", fail)
            with pytest.raises(NotUndone, match=r"the VM stays.*the logging program stays"):
                await one.tasks.delete(key, "")
        assert one.tasks.find(key) is not None
        one.world.failures.clear()
        await one.tasks.delete(key, "")
        assert not one.world.pods and one.tasks.find(key) is None


async def test_what_was_not_made_is_taken_away_beside_a_logging_program_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path) as one:

        async def fail(key: Key, exec_id: str) -> None:
            raise OSError("the logging program stays")

        monkeypatch.setattr(one.tasks.maker.loggers, "kill", fail)
        one.world.failures["create"] = OSError("no")
        with pytest.raises(Internal, match="cannot be made: no"):
            await one.create()
        assert not one.world.pods and not one.pods.pods(PodFilter(front=places.FRONT))


async def test_programs_of_the_host_run_when_a_task_was_started_and_when_it_is_gone(tmp_path: Path) -> None:
    hook, notes = tmp_path / "hook", tmp_path / "notes"
    hook.write_text(f"#!/bin/sh\n{{ echo $1; cat; echo; }} >> {notes}\n")
    hook.chmod(0o755)
    missing = {"path": "/nosuchprogram"}
    hooks = {
        "poststart": [missing, {"path": str(hook), "args": ["hook", "begun"]}],
        "poststop": [{"path": str(hook), "args": ["hook", "over"]}],
    }
    async with node(tmp_path) as one:
        key = await one.create(hooks=hooks, annotations={"mark": "here"})
        assert not notes.exists()
        await one.tasks.start(key, "")
    async with node(tmp_path, one.world) as later:
        later.world.exit(later.container_id(), 0)
        await later.tasks.wait(key, "")
        await later.tasks.delete(key, "")
    begun, first, over, second = notes.read_text().splitlines()
    assert (begun, over) == ("begun", "over")
    told = json.loads(second)
    assert told == {
        "ociVersion": "1.0.2",
        "id": "one",
        "pid": 0,
        "status": "stopped",
        "bundle": str(tmp_path / "one"),
        "annotations": {"mark": "here"},
    }
    assert json.loads(first) == {**told, "status": "running", "pid": json.loads(first)["pid"]}


@pytest.mark.parametrize("kind", ["network", "pid"])
async def test_a_task_alone_is_not_in_the_namespaces_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    async with node(tmp_path) as one:
        monkeypatch.setattr(one.pods, "pod_info", lambda _: {"pid": 999_999_999})
        await one.create("first")
        file = {"network": "net"}.get(kind, kind)
        paths = {"network": "/ns", kind: f"/proc/999999999/ns/{file}"}
        namespaces = [{"type": name, "path": paths.get(name, "")} for name in KINDS]
        with pytest.raises(
            FailedPrecondition, match=f"the {kind} namespace of process 999999999, which is the VM"
        ):
            await one.create("second", linux={"namespaces": namespaces})
