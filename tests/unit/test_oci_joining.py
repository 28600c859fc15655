"""Which VM a container goes into, by what its caller says of its pod: calls against each other."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orlop.bundle import document
from orlop.bundle.ports import PodPorts
from orlop.bundle.roles import Role, role
from orlop.errors import FailedPrecondition, NotUndone, Unavailable
from orlop.oci import companion as companions
from orlop.oci import questions
from orlop.oci.bundles import Bundles
from orlop.oci.command import templates
from orlop.oci.companion import Companion
from orlop.oci.protocol import FRONT
from orlop.pods.records import ContainerFilter
from orlop.pods.service import PodService
from tests.patience import until
from tests.unit.pods_double import World, make_service, pod_spec
from tests.unit.test_oci_bundles import node, standing

ALL = ContainerFilter(front=FRONT)
CRIO = ("io.kubernetes.cri-o.ContainerType", "io.kubernetes.cri-o.SandboxID")
CONTAINERD = ("io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id")


def config(**changes: Any) -> document.OciConfig:
    return document.config(json.dumps(templates.CONFIG | changes).encode())


@pytest.mark.parametrize("keys", [CRIO, CONTAINERD])
def test_callers_say_what_a_container_is_in_its_pod(keys: tuple[str, str]) -> None:
    kind, sandbox = keys
    assert role(config()) == (Role.ALONE, "")
    assert role(config(annotations={kind: "sandbox", sandbox: "x"})) == (Role.SANDBOX, "x")
    assert role(config(annotations={kind: "container", sandbox: "x"})) == (Role.MEMBER, "x")
    assert role(config(annotations={kind: "container"})) == (Role.MEMBER, "")
    assert role(config(annotations={kind: "other", sandbox: "x"})) == (Role.ALONE, "")


class Caller:
    """Who makes containers, each of whose stand-ins is in a network namespace that the test names."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch, stack: contextlib.ExitStack) -> None:
        self._root = root
        self._stack = stack
        self._networks = {"/proc/self/ns/net": "the host's"}
        self.companions: dict[str, Companion] = {}
        self.opened: list[str] = []
        monkeypatch.setattr(companions, "network_at", self._networks.__getitem__)
        # The stand-ins are really in the namespace of the tests, whose loopback is nobody's to take.
        monkeypatch.setattr(PodPorts, "open", lambda _self, pod_id, *_: self.opened.append(pod_id))

    def create(
        self,
        name: str,
        kind: str = "container",
        *,
        sandbox: str = "x",
        network: str = "net",
        root: str = "/r",
        beside: str = "",
    ) -> questions.ToCreate:
        """The question; ``beside`` is the container whose IPC namespace is asked for by its process."""
        companion = self._stack.enter_context(standing())
        self.companions[name] = companion
        self._networks[companion.netns] = network
        document_ = json.loads(json.dumps(templates.CONFIG))
        if kind:
            document_["annotations"] = dict(zip(CRIO, (kind, sandbox), strict=True))
        document_["process"]["terminal"] = False
        if beside:
            path = f"/proc/{self.companions[beside].pid}/ns/ipc"
            namespaces = [one for one in document_["linux"]["namespaces"] if one["type"] != "ipc"]
            document_["linux"]["namespaces"] = [*namespaces, {"type": "ipc", "path": path}]
        return questions.ToCreate(
            root=root,
            id=name,
            bundle=str(self._root),
            config=json.dumps(document_),
            stand_in=questions.StandIn(pid=companion.pid, since=companion.since),
        )


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Caller]:
    with contextlib.ExitStack() as stack:
        yield Caller(tmp_path, monkeypatch, stack)


def start(name: str, root: str = "/r") -> questions.ToStart:
    return questions.ToStart(root=root, id=name)


def delete(name: str, root: str = "/r") -> questions.ToDelete:
    return questions.ToDelete(root=root, id=name, force=True)


def status(bundles: Bundles, name: str) -> str:
    return str(bundles.state(questions.ToState(root="/r", id=name))["status"])


def pods_of(pods: PodService, *names: str) -> list[str]:
    """The VM of each container."""
    found = {record.name: record.pod_id for record in pods.containers(ALL)}
    return [found[name] for name in names]


async def test_a_member_is_in_the_vm_of_the_sandbox_that_it_names(tmp_path: Path, caller: Caller) -> None:
    async with node(tmp_path, World()) as (pods, bundles):
        await bundles.create(caller.create("x", "sandbox", network="one"))
        await bundles.create(caller.create("member", network="two"))
        await bundles.create(caller.create("elsewhere", root="/other", network="three"))
        await bundles.create(caller.create("another's", sandbox="y", network="four"))
        await bundles.create(caller.create("alone", "", network="five"))
        await bundles.create(caller.create("same network", sandbox="", network="one"))
        sandbox, *others = pods_of(pods, "x", "member", "same network", "elsewhere", "another's", "alone")
        assert others[:2] == [sandbox, sandbox]
        assert len({sandbox, *others[2:]}) == 4


async def test_of_two_members_made_at_once_without_a_sandbox_container_one_makes_the_vm(
    tmp_path: Path, caller: Caller
) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        world.delays["run"] = 0.05
        await asyncio.gather(*(bundles.create(caller.create(name)) for name in ("one", "two", "three")))
        assert len(world.pods) == 1 and len(set(pods_of(pods, "one", "two", "three"))) == 1
        await bundles.start(start("two"))
        await bundles.delete(delete("one"))
        assert len(world.pods) == 1 and status(bundles, "two") == "running"
        await bundles.delete(delete("two"))
        await bundles.delete(delete("three"))
        assert not world.pods


async def test_after_the_last_of_them_has_ended_the_next_makes_a_vm(tmp_path: Path, caller: Caller) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        await bundles.create(caller.create("first"))
        await bundles.start(start("first"))
        (vm,) = world.pods.values()
        world.delays["stop"] = 0.05
        world.exit(next(iter(vm.containers)), 0)
        await until(lambda: status(bundles, "first") == "stopped")
        await bundles.create(caller.create("next"))
        # Whether it came before the end of the VM or after it: one that runs has it.
        before, after = pods_of(pods, "first", "next")
        assert world.pods[after].running
        assert before == after or not world.pods[before].running


async def test_the_end_of_the_sandbox_ends_the_vm_and_leaves_the_others_to_be_deleted(
    tmp_path: Path, caller: Caller
) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        await bundles.create(caller.create("x", "sandbox"))
        for name in ("runs", "waits"):
            await bundles.create(caller.create(name))
        for name in ("x", "runs"):
            await bundles.start(start(name))
        (vm,) = world.pods.values()
        ids = {record.name: record.id for record in pods.containers(ALL)}
        world.exit(ids["x"], 0)
        await until(lambda: not vm.running)
        await until(lambda: not caller.companions["waits"].alive)
        await until(lambda: status(bundles, "runs") == "stopped")
        assert status(bundles, "waits") == "stopped"
        with pytest.raises(FailedPrecondition, match="its sandbox x does not run"):
            await bundles.create(caller.create("late"))
        for name in ("x", "runs", "waits"):
            await bundles.delete(delete(name))
        assert not world.pods


async def test_a_stand_in_that_stays_does_not_keep_the_others(
    tmp_path: Path, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with node(tmp_path, World()) as (_, bundles):
        await bundles.create(caller.create("x", "sandbox"))
        for name in ("first", "second"):
            await bundles.create(caller.create(name))
        await bundles.start(start("x"))
        kill, stays = Companion.kill, caller.companions["first"].pid

        async def some(self: Companion) -> None:
            if self.pid == stays:
                raise Unavailable("it stays")
            await kill(self)

        with monkeypatch.context() as patch:
            patch.setattr(Companion, "kill", some)
            with pytest.raises(NotUndone, match="the stand-in of first: it stays"):
                await bundles.delete(delete("x"))
            assert not caller.companions["second"].alive
        for name in ("x", "first", "second"):
            await bundles.delete(delete(name))


@pytest.mark.parametrize("lead", [0.0, 0.01, 0.03, 0.06])
async def test_a_sandbox_is_deleted_beside_the_making_of_a_member(
    tmp_path: Path, caller: Caller, lead: float
) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        await bundles.create(caller.create("x", "sandbox"))
        await bundles.start(start("x"))
        (first,) = world.pods
        world.delays |= {"create": 0.02, "stop": 0.02, "delete": 0.02, "discard": 0.02}
        making = asyncio.ensure_future(bundles.create(caller.create("member")))
        await asyncio.sleep(lead)
        gone, made = await asyncio.gather(bundles.delete(delete("x")), making, return_exceptions=True)
        assert gone is None and isinstance(made, FailedPrecondition | None)
        if made is None:
            (vm,) = pods_of(pods, "member")
            # In the sandbox's VM, which has ended with that, or in one that was made after it.
            assert world.pods[vm].running == (vm != first)
            assert (status(bundles, "member") == "created") == (vm != first)
        await bundles.delete(delete("member"))
        assert not world.pods


async def test_a_sandbox_and_its_members_are_deleted_at_once(tmp_path: Path, caller: Caller) -> None:
    world = World()
    async with node(tmp_path, world) as (_, bundles):
        await bundles.create(caller.create("x", "sandbox"))
        for name in ("one", "two"):
            await bundles.create(caller.create(name))
            await bundles.start(start(name))
        world.delays |= {"delete": 0.01, "stop": 0.01, "discard": 0.01}
        names = ("one", "x", "two", "x", "one")
        await asyncio.gather(*(bundles.delete(delete(name)) for name in names))
        assert not world.pods


async def test_a_member_that_cannot_be_made_leaves_the_vm_to_the_others_only(
    tmp_path: Path, caller: Caller
) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        world.failures["create"] = FailedPrecondition("no")
        with pytest.raises(FailedPrecondition, match="no"):
            await bundles.create(caller.create("first"))
        assert not world.pods and not bundles.states(questions.ToList(root="/r"))
        del world.failures["create"]
        await bundles.create(caller.create("first"))
        world.failures["create"] = FailedPrecondition("no")
        with pytest.raises(FailedPrecondition, match="no"):
            await bundles.create(caller.create("second"))
        (vm,) = world.pods.values()
        assert vm.running and pods_of(pods, "first") == list(world.pods)
        assert len(pods.containers(ALL)) == 1


async def test_a_caller_that_hangs_up_while_the_vm_is_made_leaves_it_to_who_waits(
    tmp_path: Path, caller: Caller
) -> None:
    world = World()
    async with node(tmp_path, world) as (pods, bundles):
        world.delays["run"] = 0.05
        first = asyncio.ensure_future(bundles.create(caller.create("first")))
        second = asyncio.ensure_future(bundles.create(caller.create("second")))
        await until(lambda: "before run" in world.steps)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        await second
        assert list(world.pods) == pods_of(pods, "second")


async def test_what_a_create_left_that_was_cut_short_is_away_before_the_next(
    tmp_path: Path, caller: Caller
) -> None:
    world = World()
    pods, _ = make_service(tmp_path, world)
    await pods.open()
    await pods.run_pod(pod_spec("first", front=FRONT))
    await pods.close()
    world.delays["stop"] = 0.05
    async with node(tmp_path, world) as (_, bundles):
        world.steps.clear()
        await bundles.create(caller.create("second"))
        assert world.steps.index("after discard") < world.steps.index("before run")
        assert len(world.pods) == 1


async def test_after_a_restart_members_are_where_they_were_and_others_come_to_them(
    tmp_path: Path, caller: Caller
) -> None:
    world = World()
    async with node(tmp_path, world) as (_, bundles):
        await bundles.create(caller.create("one"))
        await bundles.start(start("one"))
    async with node(tmp_path, world) as (pods, bundles):
        await bundles.create(caller.create("two"))
        assert len(world.pods) == 1 and len(set(pods_of(pods, "one", "two"))) == 1
        await bundles.delete(delete("one"))
        await bundles.delete(delete("two"))
        assert not world.pods


async def test_namespaces_of_two_vms_are_refused(tmp_path: Path, caller: Caller) -> None:
    async with node(tmp_path, World()) as (_, bundles):
        await bundles.create(caller.create("one", "", network="one"))
        await bundles.create(caller.create("two", "", network="two"))
        with pytest.raises(FailedPrecondition, match="in several VMs"):
            await bundles.create(caller.create("both", "", network="one", beside="two"))
        with pytest.raises(FailedPrecondition, match="the host's network"):
            await bundles.create(caller.create("host's", network="the host's"))
