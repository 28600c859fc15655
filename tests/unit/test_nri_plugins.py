"""Plug-ins that connect, hang, lie and vanish. Real ones are in the end-to-end tests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.config import NriConfig
from orlop.errors import FailedPrecondition, OrlopError
from orlop.host.tasks import beside
from orlop.nri import mux
from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.nri.mux import Mux
from orlop.nri.server import NriServer, installed, settings_of
from orlop.pods.service import PodService
from orlop.sandbox.spec import Resources
from orlop.ttrpc import server
from orlop.ttrpc.client import Client
from orlop.ttrpc.frames import MAX_MESSAGE, LinkLost
from orlop.ttrpc.link import connect
from orlop.ttrpc.server import Services
from tests.unit.pods_double import World, pod_spec
from tests.unit.test_pods_service import request
from tests.unit.ttrpc_double import Echo, Streaming, links

RUNTIME = "nri.pkg.api.v1alpha1.Runtime"


async def test_two_connections_share_a_socket_whatever_the_size() -> None:
    here, there = await links()
    ours, theirs = Mux(here), Mux(there)
    name = "ttrpc.integration.streaming.Streaming"
    async with (
        beside(ours.run()),
        beside(theirs.run()),
        beside(server.serve(theirs.plugin, Streaming().services())),
        beside(server.serve(ours.runtime, Streaming().services())),
    ):
        down, up = Client(ours.plugin, "down"), Client(theirs.runtime, "up")
        for client in (down, up):
            for size in (0, 4000, 4086, 4087, 8192, 100_000, 3 << 20):
                reply = await client.call(name, "Echo", Echo(seq=size, msg="x" * size), Echo)
                assert (reply.seq, len(reply.msg)) == (size + 1, size)
        await down.close()
        await up.close()
    await here.close()
    await there.close()


async def ended(*sent: bytes) -> str:
    here, there = await links()
    await there.write(b"".join(sent))
    there.writer.write_eof()
    async with asyncio.timeout(30):
        reason = await Mux(here).run()
    await here.close()
    await there.close()
    return reason


async def test_what_nobody_reads_is_bounded() -> None:
    part = mux.HEADER.pack(mux.PLUGIN, MAX_MESSAGE) + bytes(MAX_MESSAGE)
    here, there = await links()
    async with beside(there.write(part * 3)):
        assert "nobody could read" in await Mux(here).run()
    await here.close()
    await there.close()


@given(st.lists(st.one_of(st.binary(max_size=40), st.builds(
    lambda number, data: mux.HEADER.pack(number, len(data)) + data,
    st.integers(0, 4), st.binary(max_size=40),
)), max_size=8))  # fmt: skip
def test_any_bytes_end_the_connection_at_most(sent: list[bytes]) -> None:
    assert asyncio.run(ended(*sent))


class Double:
    """A plug-in: notes what it hears, and answers what the test puts into ``answers``."""

    def __init__(self, name: str, index: str = "10") -> None:
        self.name = name
        self.index = index
        self.heard: list[str] = []
        self.answers: dict[str, Callable[[Any], Any]] = {}
        self.came = asyncio.Condition()
        self.client: Client | None = None

    def services(self) -> Services:
        service = pb.DESCRIPTOR.services_by_name["Plugin"]
        services = Services()
        services.add(service, {method.name: self._method(method.name) for method in service.methods})
        return services

    def _method(self, name: str) -> Any:
        replies = {"Configure": pb.ConfigureResponse, "StateChange": pb.Empty, "Shutdown": pb.Empty}
        reply = replies.get(name) or getattr(pb, f"{name}Response")

        async def answer(message: Any) -> Any:
            async with self.came:
                self.heard.append(name)
                self.came.notify_all()
            found = self.answers.get(name, lambda _: reply())(message)
            return await found if asyncio.iscoroutine(found) else found

        return answer

    async def wait_for(self, event: str) -> None:
        async with asyncio.timeout(60), self.came:
            await self.came.wait_for(lambda: event in self.heard)

    @asynccontextmanager
    async def connected(self, path: Path, *, wait: bool = True) -> AsyncIterator[None]:
        link = await connect(path)
        both = Mux(link)
        async with beside(both.run()), beside(server.serve(both.plugin, self.services())):
            self.client = Client(both.runtime, "the node")
            try:
                asked = pb.RegisterPluginRequest(plugin_name=self.name, plugin_idx=self.index)
                await self.client.call(RUNTIME, "RegisterPlugin", asked, pb.Empty)
                if wait:
                    await self.wait_for("Synchronize")
                yield
            finally:
                await self.client.close()
                await link.close()


@pytest.fixture
def patience() -> float:
    """Seconds for a plug-in to register and to answer: long, but where the test is about that."""
    return 60.0


IMPATIENT = pytest.mark.parametrize("patience", [2.0])


@pytest.fixture
async def nri(tmp_path: Path, service: PodService, patience: float) -> AsyncIterator[NriServer]:
    config = NriConfig(
        socket=str(tmp_path / "nri.sock"),
        plugin_dir=str(tmp_path / "plugins"),
        request_timeout=patience,
        registration_timeout=patience,
    )
    one = NriServer(config, service)
    await one.start()
    yield one
    await one.stop()


@pytest.fixture
def path(tmp_path: Path, nri: NriServer) -> Path:
    return tmp_path / "nri.sock"


async def gone(nri: NriServer, name: str) -> None:
    async with asyncio.timeout(60):
        while name in nri.adaptation.plugins:  # noqa: ASYNC110 - nothing would set an event
            await asyncio.sleep(0.01)


async def test_plugins_are_asked_in_the_order_of_their_index(service: PodService, path: Path) -> None:
    order: list[str] = []
    one, other = Double("one", "20"), Double("other", "10")
    for double in (one, other):
        double.answers["CreateContainer"] = lambda _, name=double.name: (
            order.append(name) or pb.CreateContainerResponse()  # type: ignore[func-returns-value]
        )
    async with one.connected(path), other.connected(path):
        await service.create_container(request(await service.run_pod(pod_spec())))
    assert order == ["other", "one"]


async def test_a_container_that_cannot_be_is_the_plugins_fault(
    service: PodService, world: World, path: Path
) -> None:
    double = Double("it")
    adjust = pb.ContainerAdjustment(args=["impossible"])
    double.answers["CreateContainer"] = lambda _: pb.CreateContainerResponse(adjust=adjust)
    async with double.connected(path):
        pod = await service.run_pod(pod_spec())
        with pytest.raises(FailedPrecondition, match="plug-in 10-it: the double cannot"):
            await service.create_container(request(pod))
        assert not service.containers()
        assert double.heard[-2:] == ["StopContainer", "RemoveContainer"]
        # Nor is it blamed for what cannot be anyway.
        with pytest.raises(FailedPrecondition) as refused:
            await service.create_container(request(pod, command=("impossible",)))
        assert "10-it" not in str(refused.value)


@IMPATIENT
async def test_one_that_hangs_is_dropped_and_holds_nobody(
    service: PodService, nri: NriServer, path: Path
) -> None:
    double = Double("slow")
    double.answers["CreateContainer"] = lambda _: asyncio.sleep(3600)
    async with double.connected(path):
        pod = await service.run_pod(pod_spec())
        calls = [service.create_container(request(pod, name)) for name in "abc"]
        async with beside(asyncio.wait_for(asyncio.gather(*calls), 60)) as making:
            await double.wait_for("CreateContainer")
            assert service.containers() == []
            await service.run_pod(pod_spec("other"))
            await making
        assert double.heard.count("CreateContainer") == 1
        await gone(nri, "10-slow")


@IMPATIENT
@pytest.mark.parametrize(
    ("policy", "kept"), [({"fail_request": True}, False), ({"keep_connected": True}, True)]
)
async def test_its_policy(
    service: PodService, nri: NriServer, path: Path, policy: dict[str, bool], kept: bool
) -> None:
    double = Double("strict")
    double.answers["Configure"] = lambda _: pb.ConfigureResponse(failure_policy=pb.FailurePolicy(**policy))
    double.answers["CreateContainer"] = lambda _: asyncio.sleep(3600)
    async with double.connected(path):
        pod = await service.run_pod(pod_spec())
        if kept:
            await service.create_container(request(pod))
        else:
            with pytest.raises(OrlopError, match="plug-in 10-strict failed at CreateContainer"):
                await service.create_container(request(pod))
        assert ("10-strict" in nri.adaptation.plugins) == kept


@IMPATIENT
@pytest.mark.parametrize(
    ("name", "index", "answers"),
    [
        ("a/b", "10", {}),
        ("it", "1", {}),
        ("it", "10", {"Configure": lambda _: pb.ConfigureResponse(events=1 << 20)}),
        ("it", "10", {"Synchronize": lambda _: asyncio.sleep(3600)}),
    ],
)
async def test_one_that_does_not_behave_is_not_admitted(
    service: PodService, nri: NriServer, path: Path, name: str, index: str, answers: dict[str, Any]
) -> None:
    double = Double(name, index)
    double.answers |= answers
    with pytest.raises(OrlopError):
        async with double.connected(path, wait=False):
            assert double.client is not None
            await double.client.wait_closed()
            raise LinkLost("as expected")
    await gone(nri, f"{index}-{name}")
    await service.run_pod(pod_spec())


@IMPATIENT
async def test_one_that_never_registers_is_dropped(nri: NriServer, path: Path) -> None:
    link = await connect(path)
    async with asyncio.timeout(60):
        with pytest.raises(LinkLost):
            await link.read(1)
    await link.close()


async def test_a_list_of_any_length_is_told(service: PodService, path: Path) -> None:
    pod = await service.run_pod(pod_spec())
    big = "x" * 300_000
    for number in range(20):
        await service.create_container(request(pod, f"c{number}", annotations={"big": big}))
    double = Double("it")
    told: list[str] = []
    finished = asyncio.Event()

    def synchronize(message: pb.SynchronizeRequest) -> pb.SynchronizeResponse:
        told.extend(one.name for one in message.containers)
        if not message.more:
            finished.set()
        return pb.SynchronizeResponse(more=message.more)

    double.answers["Synchronize"] = synchronize
    async with double.connected(path):
        async with asyncio.timeout(60):
            await finished.wait()
    assert sorted(told) == sorted(f"c{number}" for number in range(20))


async def test_one_that_comes_while_things_are_made_misses_nothing(
    service: PodService, world: World, path: Path
) -> None:
    """It is told of each pod and container in the list or by an event, and of what is gone by neither."""
    world.delays["create"] = 0.01
    first, late = Double("first"), Double("late")
    known: set[str] = set()

    def synchronize(message: pb.SynchronizeRequest) -> pb.SynchronizeResponse:
        known.update(one.id for one in (*message.pods, *message.containers))
        return pb.SynchronizeResponse()

    def create(message: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        assert message.pod.id in known
        known.add(message.container.id)
        return pb.CreateContainerResponse()

    def run(message: pb.RunPodSandboxRequest) -> pb.RunPodSandboxResponse:
        known.add(message.pod.id)
        return pb.RunPodSandboxResponse()

    late.answers |= {"Synchronize": synchronize, "CreateContainer": create, "RunPodSandbox": run}

    async def pods(start: int) -> None:
        for number in range(start, start + 10):
            pod = await service.run_pod(pod_spec(f"p{number}"))
            container = await service.create_container(request(pod))
            if number % 3 == 0:
                await service.remove_container(container)
                await service.remove_pod(pod)

    async with first.connected(path), beside(_all(*(pods(start) for start in (0, 10, 20)))) as making:
        await first.wait_for("PostCreateContainer")
        async with late.connected(path):
            await making
    there = {one.id for one in (*service.pods(), *service.containers())}
    assert len(there) == 40
    assert there <= known


async def _all(*work: Coroutine[Any, Any, None]) -> None:
    await asyncio.gather(*work)


async def test_older_ones_hear_of_the_state(service: PodService, path: Path) -> None:
    from orlop.errors import Unimplemented

    def refuse(_: Any) -> Any:
        raise Unimplemented("an older one")

    double = Double("old")
    events: list[int] = []
    double.answers |= dict.fromkeys(("RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"), refuse)
    double.answers["StateChange"] = lambda one: events.append(one.event) or pb.Empty()  # type: ignore[func-returns-value]
    async with double.connected(path):
        pod = await service.run_pod(pod_spec())
        await service.remove_pod(pod)
    assert events == [pb.RUN_POD_SANDBOX, pb.STOP_POD_SANDBOX, pb.REMOVE_POD_SANDBOX]


async def test_a_refused_pod_leaves_nothing(service: PodService, world: World, path: Path) -> None:
    def refuse(_: Any) -> Any:
        raise FailedPrecondition("not today")

    double = Double("no")
    double.answers["RunPodSandbox"] = refuse
    async with double.connected(path):
        with pytest.raises(FailedPrecondition, match="plug-in 10-no refuses RunPodSandbox: not today"):
            await service.run_pod(pod_spec())
        assert not service.pods()
        assert not world.pods


async def test_updates_of_two_containers_that_want_each_other_do_not_lock(
    service: PodService, path: Path
) -> None:
    pod = await service.run_pod(pod_spec())
    one, other = [await service.create_container(request(pod, name)) for name in ("one", "other")]
    double = Double("it")

    def cross(message: pb.UpdateContainerRequest) -> pb.UpdateContainerResponse:
        wanted = other if message.container.id == one else one
        update = pb.ContainerUpdate(container_id=wanted)
        update.linux.resources.cpu.shares.value = 77
        return pb.UpdateContainerResponse(update=[update])

    double.answers["UpdateContainer"] = cross
    async with double.connected(path), asyncio.timeout(60):
        limits = Resources(memory_limit=5)
        await asyncio.gather(*(service.update_container(each, limits) for each in (one, other)))
    for each in (one, other):
        assert service.container(each).resources.cpu_shares == 77


async def test_one_that_changes_what_it_may_not(service: PodService, path: Path) -> None:
    double = Double("it")

    def itself(message: pb.CreateContainerRequest) -> pb.CreateContainerResponse:
        return pb.CreateContainerResponse(update=[pb.ContainerUpdate(container_id=message.container.id)])

    double.answers["CreateContainer"] = itself
    async with double.connected(path):
        pod = await service.run_pod(pod_spec())
        with pytest.raises(FailedPrecondition, match="10-it wants a container updated that is being made"):
            await service.create_container(request(pod))
        assert double.client is not None
        asked = pb.UpdateContainersRequest(
            update=[
                pb.ContainerUpdate(container_id="none"),
                pb.ContainerUpdate(container_id="none2", ignore_failure=True),
            ]
        )
        reply = pb.UpdateContainersResponse
        failed = (await double.client.call(RUNTIME, "UpdateContainers", asked, reply)).failed
        assert [one.container_id for one in failed] == ["none"]


def test_which_programs_are_plugins(tmp_path: Path) -> None:
    assert installed(tmp_path / "none") == []
    for name, mode in (
        ("20-b", 0o755), ("10-a", 0o755), ("a", 0o755), ("30-c", 0o644), ("40-d", 0o777), ("50-", 0o755),
    ):  # fmt: skip
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(mode)
    (tmp_path / "60-directory").mkdir()
    assert [one.name for one in installed(tmp_path)] == ["10-a", "20-b"]
    tmp_path.chmod(0o777)
    assert installed(tmp_path) == []


def test_settings(tmp_path: Path) -> None:
    assert settings_of(tmp_path, "10", "a") == ""
    (tmp_path / "a.conf").write_text("general")
    assert settings_of(tmp_path, "10", "a") == "general"
    (tmp_path / "10-a.conf").write_text("own")
    assert settings_of(tmp_path, "10", "a") == "own"
    (tmp_path / "10-a.conf").write_bytes(b"\xff")
    with pytest.raises(FailedPrecondition):
        settings_of(tmp_path, "10", "a")
