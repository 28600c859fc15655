"""Sandboxes that containerd has the shim make itself, over pods in memory."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from google.protobuf.any_pb2 import Any
from google.protobuf.message import Message

from orlop.bundle import output
from orlop.cri.api import runtime_v1_pb2 as cri
from orlop.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from orlop.pods.records import PodFilter
from orlop.sandbox.spec import Dns
from orlop.shim import expected, places, podspec
from orlop.shim.api import metrics_pb2, task_v2_pb2, types_pb2
from orlop.shim.api import sandbox_pb2 as pb
from orlop.shim.sandbox_service import NOT_READY, READY, SandboxCalls
from orlop.shim.sandboxes import Sandboxes
from orlop.shim.service import TaskCalls, services
from orlop.ttrpc.server import METADATA
from tests.patience import PATIENCE
from tests.unit.test_shim_tasks import Node, listening, node, until

POD = "pod"
NETNS = "/var/run/netns/cni-1"


def described(**changes: object) -> cri.PodSandboxConfig:
    linux = cri.LinuxPodSandboxConfig(
        cgroup_parent="/kubepods/besteffort/pod1",
        sysctls={"net.core.somaxconn": "200"},
        resources=cri.LinuxContainerResources(
            cpu_quota=-1, cpu_period=100_000, memory_limit_in_bytes=64 << 20
        ),
    )
    config = cri.PodSandboxConfig(
        metadata=cri.PodSandboxMetadata(name="web", namespace="default", uid="u"),
        hostname="web",
        dns_config=cri.DNSConfig(servers=["10.0.0.10"], searches=["svc.cluster.local"], options=["ndots:5"]),
        linux=linux,
    )
    config.MergeFrom(cri.PodSandboxConfig(**changes))  # type: ignore[arg-type]
    return config


def packed(message: Message) -> Any:
    return Any(type_url=message.DESCRIPTOR.full_name, value=message.SerializeToString())


def asked(
    bundle: str = "/bundle", config: Message | None = None, **changes: object
) -> pb.CreateSandboxRequest:
    request = pb.CreateSandboxRequest(
        sandbox_id=POD, bundle_path=bundle, netns_path=NETNS, options=packed(config or described())
    )
    request.MergeFrom(pb.CreateSandboxRequest(**changes))  # type: ignore[arg-type]
    return request


class Caller(SandboxCalls):
    """containerd's side: each call by its short name."""

    def __init__(self, one: Node) -> None:
        super().__init__(Sandboxes(one.tasks))
        METADATA.set({places.NAMESPACE: "test"})
        self.bundle = str(one.root / POD)
        (one.root / POD).mkdir(exist_ok=True)

    async def create(self) -> None:
        await self.create_sandbox(asked(self.bundle))

    async def start(self) -> pb.StartSandboxResponse:
        return await self.start_sandbox(pb.StartSandboxRequest(sandbox_id=POD))

    async def state(self) -> str:
        return (await self.sandbox_status(pb.SandboxStatusRequest(sandbox_id=POD))).state

    async def wait(self) -> int:
        async with asyncio.timeout(30 * PATIENCE):
            return (await self.wait_sandbox(pb.WaitSandboxRequest(sandbox_id=POD))).exit_status

    async def stop(self) -> None:
        await self.stop_sandbox(pb.StopSandboxRequest(sandbox_id=POD))

    async def shut_down(self) -> None:
        await self.shutdown_sandbox(pb.ShutdownSandboxRequest(sandbox_id=POD))


async def member(one: Node, name: str = "member") -> tuple[str, str]:
    annotations = {"io.kubernetes.cri.container-type": "container", "io.kubernetes.cri.sandbox-id": POD}
    key = await one.create(name, annotations=annotations)
    await one.tasks.start(key, "")
    return key


async def test_a_sandbox_is_a_vm_from_start_to_stop(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        caller = Caller(one)
        await caller.create()
        assert await caller.state() == NOT_READY and not one.world.pods, "described, and nothing made"
        created = await caller.start()
        assert created.created_at.ToNanoseconds() > 0
        told = json.loads(created.spec.value)
        assert told["linux"]["namespaces"][0] == {"type": "network", "path": NETNS}
        (spec,) = (pod.spec for pod in one.world.pods.values())
        assert (spec.hostname, spec.netns, spec.cgroup_parent) == ("web", NETNS, "/kubepods/besteffort/pod1")
        assert spec.dns == Dns(servers=("10.0.0.10",), searches=("svc.cluster.local",), options=("ndots:5",))
        assert spec.sysctls == {"net.core.somaxconn": "200"}
        assert (spec.resources.memory_limit, spec.resources.cpu_quota) == (64 << 20, 0)
        assert await caller.state() == READY
        await caller.ping_sandbox(pb.PingRequest(sandbox_id=POD))
        platform = (await caller.platform(pb.PlatformRequest(sandbox_id=POD))).platform
        assert (platform.os, platform.architecture) == ("linux", "amd64")
        metrics = (await caller.sandbox_metrics(pb.SandboxMetricsRequest(sandbox_id=POD))).metrics
        assert metrics.id == POD and metrics_pb2.Metrics.FromString(metrics.data.value).cpu.usage_usec > 0
        waiting = asyncio.ensure_future(caller.wait())
        await member(one)
        await caller.stop()
        assert await waiting == 0 and await caller.state() == NOT_READY
        await caller.stop()
        await caller.shut_down()
        await caller.shut_down()
        assert not one.world.pods
        for gone in (caller.state(), caller.wait(), caller.start(), caller.stop()):
            with pytest.raises(NotFound):
                await gone


async def test_what_containerd_gives_up_before_the_start_leaves_nothing(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        caller = Caller(one)
        await caller.create()
        await caller.stop()
        with pytest.raises(FailedPrecondition, match="was not started"):
            await caller.wait()
        await caller.shut_down()
        assert not one.world.steps.count("before run") and not list((tmp_path / expected.PLACE).iterdir())


async def test_a_vm_that_ends_is_told_to_who_waits_and_its_containers_end(tmp_path: Path) -> None:
    async with listening(tmp_path / "c.sock") as containerd, node(tmp_path) as one:
        caller = Caller(one)
        await one.tasks.register(("test", POD), str(tmp_path / "c.sock"))
        await caller.create()
        await caller.start()
        key = await member(one)
        waiting = asyncio.ensure_future(caller.wait())
        one.world.kill_pod(next(iter(one.world.pods)))
        assert await waiting == output.CODE_LOST and await caller.state() == NOT_READY
        async with asyncio.timeout(30 * PATIENCE):
            await one.tasks.wait(key, "")
        await until(lambda: bool(containerd.ends))
        assert [name for name, _ in containerd.ends] == ["member"], "of the sandbox it waits for the end"
        await one.tasks.delete(key, "")
        await caller.shut_down()
        assert not one.world.pods


async def test_a_daemon_that_is_started_again_knows_a_sandbox_at_each_step(tmp_path: Path) -> None:
    async with listening(tmp_path / "c.sock") as containerd:
        async with node(tmp_path) as one:
            await one.tasks.register(("test", POD), str(tmp_path / "c.sock"))
            await Caller(one).create()
        world = one.world
        async with node(tmp_path, world) as one:
            assert await Caller(one).state() == NOT_READY
            await Caller(one).start()
        async with node(tmp_path, world) as one:
            assert await Caller(one).state() == READY
            with pytest.raises(FailedPrecondition, match="started already"):
                await Caller(one).start()
            with pytest.raises(AlreadyExists):
                await Caller(one).create()
            key = await member(one)
            world.exit(one.container_id(), 5)
            await until(lambda: ("member", 5) in containerd.ends)
            await one.tasks.delete(key, "")
            await Caller(one).stop()
        async with node(tmp_path, world) as one:
            assert await Caller(one).wait() == 0 and await Caller(one).state() == NOT_READY
            await Caller(one).shut_down()
            assert not one.world.pods and not one.pods.pods(PodFilter(front=places.FRONT))


async def test_containerd_finds_a_sandbox_by_the_calls_of_tasks_as_well(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        await Caller(one).create()
        await Caller(one).start()
        calls = TaskCalls(one.tasks)
        assert (await calls.connect(task_v2_pb2.ConnectRequest(id=POD))).shim_pid
        assert len((await calls.pids(task_v2_pb2.PidsRequest(id=POD))).processes) == 1
        await Caller(one).shut_down()


async def test_a_start_that_fails_leaves_a_sandbox_that_can_be_shut_down(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        caller = Caller(one)
        await caller.create()
        one.world.failures["run"] = FailedPrecondition("no memory")
        with pytest.raises(FailedPrecondition, match="no memory"):
            await caller.start()
        assert not one.world.pods and await caller.state() == NOT_READY
        await caller.shut_down()
        with pytest.raises(NotFound):
            await caller.state()


def on_host(**modes: int) -> cri.PodSandboxConfig:
    options = cri.NamespaceOption(**modes)  # type: ignore[arg-type]
    context = cri.LinuxSandboxSecurityContext(namespace_options=options)
    return described(linux=cri.LinuxPodSandboxConfig(security_context=context))


IN_USER_NAMESPACE = described(
    linux=cri.LinuxPodSandboxConfig(
        security_context=cri.LinuxSandboxSecurityContext(
            namespace_options=cri.NamespaceOption(userns_options=cri.UserNamespace(mode=cri.POD))
        )
    )
)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        (on_host(network=cri.NODE), "network namespace.*as runc's"),
        (on_host(pid=cri.NODE), "PID namespace.*as runc's"),
        (on_host(ipc=cri.NODE), "IPC namespace.*as runc's"),
        (IN_USER_NAMESPACE, "user namespace"),
    ],
)
async def test_what_no_vm_can_be_is_refused(tmp_path: Path, config: Message, word: str) -> None:
    async with node(tmp_path) as one:
        with pytest.raises(FailedPrecondition, match=word):
            await Caller(one).create_sandbox(asked(config=config))
        assert not one.tasks.expected.names


@pytest.mark.parametrize(
    "request_",
    [
        asked("relative"),
        asked(netns_path="netns"),
        asked(rootfs=[types_pb2.Mount(type="bind", source="/")]),
        asked(config=cri.ContainerConfig()),
        asked(options=Any(type_url=podspec.KIND, value=b"\xff")),
        asked(config=described(hostname="a b")),
        asked(config=described(dns_config=cri.DNSConfig(servers=["1.2.3.4\nsearch x"]))),
        asked(config=described(dns_config=cri.DNSConfig(servers=["1.2.3.4"] * 65))),
        asked(config=described(linux=cri.LinuxPodSandboxConfig(sysctls={"a b": "1"}))),
        asked(config=described(linux=cri.LinuxPodSandboxConfig(sysctls={"a.b": "1\n2"}))),
        asked(config=described(linux=cri.LinuxPodSandboxConfig(cgroup_parent="/../x"))),
        asked(sandbox_id="../x"),
    ],
)
async def test_requests_are_bounded(tmp_path: Path, request_: pb.CreateSandboxRequest) -> None:
    async with node(tmp_path) as one:
        with pytest.raises(InvalidArgument):
            await Caller(one).create_sandbox(request_)
        assert not one.tasks.expected.names


def test_a_sandbox_needs_no_description() -> None:
    assert podspec.config(Any()) == podspec.config(packed(cri.PodSandboxConfig()))


async def test_all_methods_are_offered(tmp_path: Path) -> None:
    async with node(tmp_path) as one:
        offered = services(one.tasks)
        for method in pb.DESCRIPTOR.services_by_name["Sandbox"].methods:
            offered.find("containerd.runtime.sandbox.v1.Sandbox", method.name)
