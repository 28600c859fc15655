"""A real gRPC server on a Unix socket, called by a real client."""

from __future__ import annotations

import asyncio
import json
import socket
import stat
import typing
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.protobuf import message_factory
from google.protobuf.message import Message
from grpc import aio
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.client.calls import CriClient
from orlop.config import Config, MetricsConfig
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.server import CriServer
from orlop.cri.services import containers, images, node, pods, statistics, streams
from orlop.errors import (
    Code,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    OrlopError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from orlop.pods.records import EventKind
from orlop.rpc.names import method_name
from tests.patience import until
from tests.unit.cri_double import IMAGE, NOW, MemoryImages, MemoryPods, Output, Urls, messages


@dataclass
class World:
    config: Config
    pods: MemoryPods
    images: MemoryImages
    server: CriServer
    client: CriClient
    measured: list[str]

    async def pod(self, name: str = "web", handler: str = "") -> str:
        config = pb.PodSandboxConfig(
            metadata=pb.PodSandboxMetadata(name=name, namespace="default", uid="u", attempt=1),
            labels={"app": name},
        )
        answer = await self.client.runtime.run_pod_sandbox(
            pb.RunPodSandboxRequest(config=config, runtime_handler=handler)
        )
        return str(answer.pod_sandbox_id)

    async def container(self, pod_id: str, **config: typing.Any) -> str:
        wanted = pb.ContainerConfig(
            metadata=pb.ContainerMetadata(name="main"),
            image=pb.ImageSpec(image=IMAGE.id, user_specified_image="busybox:latest"),
            **config,
        )
        answer = await self.client.runtime.create_container(
            pb.CreateContainerRequest(pod_sandbox_id=pod_id, config=wanted)
        )
        return str(answer.container_id)


class Measure:
    def __init__(self) -> None:
        self.names: list[str] = []

    @contextmanager
    def rpc(self, name: str) -> Iterator[None]:
        self.names.append(name)
        yield


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    config = Config(socket=str(tmp_path / "run" / "orlop.sock"), cgroup_driver="systemd")
    memory, store, measure = MemoryPods(), MemoryImages(), Measure()
    server = CriServer(config, memory, store, Urls(), metrics=measure)
    await server.start()
    async with CriClient(Path(config.socket)) as client:
        yield World(config, memory, store, server, client, measure.names)
    await server.stop(0.1)


def servicers() -> dict[str, list[type]]:
    return {
        "RuntimeService": [
            node.NodeCalls, pods.PodCalls, containers.ContainerCalls, streams.StreamCalls,
            statistics.StatisticsCalls,
        ],
        "ImageService": [images.ImageCalls],
    }  # fmt: skip


@pytest.mark.parametrize("service", ["RuntimeService", "ImageService"])
def test_every_method_has_the_types_of_its_call(service: str) -> None:
    descriptor = pb.DESCRIPTOR.services_by_name[service]
    for method in descriptor.methods:
        name = method_name(method.name)
        (call,) = [getattr(kind, name) for kind in servicers()[service] if hasattr(kind, name)]
        hints = typing.get_type_hints(call)
        assert hints["request"] is message_factory.GetMessageClass(method.input_type), name
        returned = hints["return"]
        if method.server_streaming:
            returned = typing.get_args(returned)[0]
        assert returned in (bytes, message_factory.GetMessageClass(method.output_type)), name


def test_there_are_43_calls_and_no_public_method_beyond_them() -> None:
    names = {
        method_name(method.name)
        for service in pb.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    written = {
        name
        for kinds in servicers().values()
        for kind in kinds
        for name in vars(kind)
        if not name.startswith("_")
    }
    assert len(names) == 43
    assert written == names


async def test_version_and_status(world: World) -> None:
    version = await world.client.runtime.version(pb.VersionRequest())
    assert (version.version, version.runtime_name, version.runtime_api_version) == ("0.1.0", "orlop", "v1")
    status = await world.client.runtime.status(pb.StatusRequest(verbose=True))
    conditions = {item.type: item for item in status.status.conditions}
    assert conditions["RuntimeReady"].status
    assert not conditions["NetworkReady"].status
    assert conditions["NetworkReady"].message == "no CNI configuration"
    handlers = {item.name: item.features for item in status.runtime_handlers}
    assert set(handlers) == {"", "vm", "process"}
    assert handlers[""].recursive_read_only_mounts and not handlers[""].user_namespaces
    assert handlers["process"].user_namespaces
    assert status.features.supplemental_groups_policy
    assert json.loads(status.info["config"])["cgroup_driver"] == "systemd"
    config = await world.client.runtime.runtime_config(pb.RuntimeConfigRequest())
    assert config.linux.cgroup_driver == pb.SYSTEMD
    assert world.measured == ["Version", "Status", "RuntimeConfig"]


async def test_a_handler_that_cannot_be_used_is_not_offered(world: World) -> None:
    world.pods.reason = "no guest image"
    status = await world.client.runtime.status(pb.StatusRequest())
    assert [item.name for item in status.runtime_handlers] == ["process"]
    assert not status.status.conditions[0].status


async def test_the_life_of_a_pod(world: World) -> None:
    pod_id = await world.pod()
    runtime = world.client.runtime
    answer = await runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=True))
    status = answer.status
    assert (status.id, status.metadata.name, status.metadata.attempt) == (pod_id, "web", 1)
    assert status.state == pb.SANDBOX_READY
    assert status.network.ip == "10.88.0.2"
    assert [item.ip for item in status.network.additional_ips] == ["fd00::2"]
    assert json.loads(answer.info["info"])["handler"] == "vm"
    assert answer.timestamp > NOW
    await runtime.stop_pod_sandbox(pb.StopPodSandboxRequest(pod_sandbox_id=pod_id))
    listed = await runtime.list_pod_sandbox(pb.ListPodSandboxRequest())
    assert [(item.id, item.state) for item in listed.items] == [(pod_id, pb.SANDBOX_NOTREADY)]
    wanted = pb.PodSandboxFilter(state=pb.PodSandboxStateValue(state=pb.SANDBOX_READY))
    assert not (await runtime.list_pod_sandbox(pb.ListPodSandboxRequest(filter=wanted))).items
    await runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    await runtime.remove_pod_sandbox(pb.RemovePodSandboxRequest(pod_sandbox_id=pod_id))
    with pytest.raises(NotFound):
        await runtime.pod_sandbox_status(pb.PodSandboxStatusRequest(pod_sandbox_id=pod_id))


async def test_the_life_of_a_container(world: World) -> None:
    runtime = world.client.runtime
    pod_id = await world.pod()
    container_id = await world.container(
        pod_id, envs=[pb.KeyValue(key="A", value=b"\xff=1")], stop_signal=pb.SIGNAL_SIGRTMINPLUS3
    )
    (request,) = world.pods.requests
    assert request.env == (("A", b"\xff=1"),)
    assert request.stop_signal == "SIGRTMIN+3"
    assert request.security.masked_paths is None
    await runtime.start_container(pb.StartContainerRequest(container_id=container_id))
    answer = await runtime.container_status(
        pb.ContainerStatusRequest(container_id=container_id, verbose=True)
    )
    status = answer.status
    assert status.state == pb.CONTAINER_RUNNING
    assert status.started_at == NOW
    assert status.stop_signal == pb.SIGNAL_SIGRTMINPLUS3
    assert (status.user.linux.uid, list(status.user.linux.supplemental_groups)) == (7, [9])
    assert status.image.image == IMAGE.id
    assert json.loads(answer.info["info"]) == {"args": ["sleep"]}
    await world.client.images.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    answer = await runtime.container_status(pb.ContainerStatusRequest(container_id=container_id))
    assert answer.status.image.image == "docker.io/library/busybox:latest"
    assert answer.status.image_id == IMAGE.id
    assert not answer.info
    listed = await runtime.list_containers(pb.ListContainersRequest())
    assert [(item.id, item.state) for item in listed.containers] == [(container_id, pb.CONTAINER_RUNNING)]
    await runtime.stop_container(pb.StopContainerRequest(container_id=container_id, timeout=1 << 62))
    await runtime.remove_container(pb.RemoveContainerRequest(container_id=container_id))
    assert not (await runtime.list_containers(pb.ListContainersRequest())).containers


async def test_lists_show_what_changed_since(world: World) -> None:
    pod_id = await world.pod()
    ids = [await world.container(pod_id) for _ in range(300)]
    runtime = world.client.runtime
    assert [c.id for c in (await runtime.list_containers(pb.ListContainersRequest())).containers] == ids
    await runtime.start_container(pb.StartContainerRequest(container_id=ids[7]))
    for container_id in ids[100:]:
        world.pods.members.pop(container_id)
    listed = (await runtime.list_containers(pb.ListContainersRequest())).containers
    assert [c.id for c in listed] == ids[:100]
    assert [c.id for c in listed if c.state == pb.CONTAINER_RUNNING] == [ids[7]]


async def test_streamed_lists_are_complete_and_in_pieces(world: World) -> None:
    pod_id = await world.pod()
    note = {"note": "x" * 100_000}
    ids = [await world.container(pod_id, annotations=note) for _ in range(25)]
    runtime = world.client.runtime
    pages = [page async for page in runtime.stream_containers(pb.StreamContainersRequest())]
    assert len(pages) == 3
    assert [item.id for page in pages for item in page.containers] == ids
    assert all(page.containers for page in pages)
    wanted = pb.PodSandboxFilter(id="nothing-like-it")
    assert [
        page async for page in runtime.stream_pod_sandboxes(pb.StreamPodSandboxesRequest(filter=wanted))
    ] == []
    (page,) = [page async for page in runtime.stream_pod_sandboxes(pb.StreamPodSandboxesRequest())]
    assert page.pod_sandboxes[0].id == pod_id
    with pytest.raises(InvalidArgument, match=r"filter\.id"):
        wanted = pb.PodSandboxFilter(id="x" * 10_000)
        async for _ in runtime.stream_pod_sandboxes(pb.StreamPodSandboxesRequest(filter=wanted)):
            pass


async def test_statistics_and_metrics(world: World) -> None:
    runtime = world.client.runtime
    pod_id = await world.pod()
    container_id = await world.container(pod_id)
    one = (await runtime.container_stats(pb.ContainerStatsRequest(container_id=container_id))).stats
    assert one.cpu.usage_core_nano_seconds.value == 5_500_000_000
    assert one.cpu.psi.Some.Total == 3_000_000_000
    assert not one.memory.HasField("psi") and not one.memory.HasField("available_bytes")
    (listed,) = (await runtime.list_container_stats(pb.ListContainerStatsRequest())).stats
    assert listed == one
    (page,) = [page async for page in runtime.stream_container_stats(pb.StreamContainerStatsRequest())]
    assert list(page.container_stats) == [one]
    pod = (await runtime.pod_sandbox_stats(pb.PodSandboxStatsRequest(pod_sandbox_id=pod_id))).stats
    assert pod.linux.network.default_interface.tx_bytes.value == 2
    assert list(pod.linux.containers) == [one]
    (page,) = [page async for page in runtime.stream_pod_sandbox_stats(pb.StreamPodSandboxStatsRequest())]
    assert list(page.pod_sandbox_stats) == [pod]
    described = (await runtime.list_metric_descriptors(pb.ListMetricDescriptorsRequest())).descriptors
    keys = {item.name: len(item.label_keys) for item in described}
    assert len(keys) == len(described)
    (found,) = (await runtime.list_pod_sandbox_metrics(pb.ListPodSandboxMetricsRequest())).pod_metrics
    metrics = [*found.metrics, *found.container_metrics[0].metrics]
    assert {item.name: len(item.label_values) for item in metrics}.items() <= keys.items()
    values = {item.name: item.value.value for item in found.container_metrics[0].metrics}
    assert values["container_cpu_usage_seconds_total"] == 5
    assert values["container_pressure_cpu_waiting_seconds_total"] == 3
    assert "container_pressure_io_waiting_seconds_total" not in values
    (page,) = [p async for p in runtime.stream_pod_sandbox_metrics(pb.StreamPodSandboxMetricsRequest())]
    assert page.pod_sandbox_metrics[0].pod_sandbox_id == pod_id


async def test_events_carry_the_state_of_the_pod(world: World) -> None:
    events = world.client.runtime.get_container_events(pb.GetEventsRequest())
    first = asyncio.ensure_future(anext(events))
    async with asyncio.timeout(20):
        await until(lambda: world.pods.subscribers)
        pod_id = await world.pod()
        event = await first
        assert (event.container_id, event.container_event_type) == (pod_id, pb.CONTAINER_CREATED_EVENT)
        assert event.pod_sandbox_status.state == pb.SANDBOX_READY
        container_id = await world.container(pod_id)
        await world.client.runtime.start_container(pb.StartContainerRequest(container_id=container_id))
        event = await anext(events)
        assert event.container_event_type == pb.CONTAINER_STARTED_EVENT
        assert [item.state for item in event.containers_statuses] == [pb.CONTAINER_RUNNING]
        await events.aclose()
        await until(lambda: not world.pods.subscribers)


async def test_stopping_ends_event_streams_at_once(world: World) -> None:
    events = world.client.runtime.get_container_events(pb.GetEventsRequest())
    first = asyncio.ensure_future(anext(events))
    await until(lambda: world.pods.subscribers)
    async with asyncio.timeout(20):
        await world.server.stop(60)
        with pytest.raises(Unavailable):
            await first
    assert not world.pods.subscribers
    assert not Path(world.config.socket).exists()


async def test_exec_attach_and_port_forward(world: World) -> None:
    runtime = world.client.runtime
    pod_id = await world.pod()
    container_id = await world.container(pod_id)
    with pytest.raises(FailedPrecondition, match="does not run"):
        await runtime.exec(pb.ExecRequest(container_id=container_id, cmd=["sh"], stdout=True))
    await runtime.start_container(pb.StartContainerRequest(container_id=container_id))
    url = (
        await runtime.exec(pb.ExecRequest(container_id=container_id, cmd=["sh"], tty=True, stdin=True))
    ).url
    assert url == f"http://127.0.0.1:1/exec/{container_id}/sh/TrueTrueFalseFalse"
    assert (await runtime.attach(pb.AttachRequest(container_id=container_id, stdout=True))).url
    assert (await runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod_id, port=[80]))).url
    with pytest.raises(InvalidArgument, match="port is 70000"):
        await runtime.port_forward(pb.PortForwardRequest(pod_sandbox_id=pod_id, port=[70000]))
    with pytest.raises(InvalidArgument, match="cmd is empty"):
        await runtime.exec(pb.ExecRequest(container_id=container_id, stdout=True))


async def test_exec_sync_fits_a_message(world: World) -> None:
    runtime = world.client.runtime
    answer = await runtime.exec_sync(pb.ExecSyncRequest(container_id="c", cmd=["id"], timeout=3))
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out", b"err", 3)
    assert world.pods.calls[-1] == ("exec_sync", "c", ("id",), 3)
    world.pods.output = Output(b"o" * (8 << 20), b"e" * (9 << 20), 0)
    answer = await runtime.exec_sync(pb.ExecSyncRequest(container_id="c", cmd=["id"]))
    assert len(answer.stdout) == 8 << 20
    assert len(answer.SerializeToString()) <= 16 << 20


async def test_images(world: World) -> None:
    service = world.client.images
    spec = pb.ImageSpec(image="busybox")
    assert not (await service.image_status(pb.ImageStatusRequest(image=spec))).HasField("image")
    pulled = await service.pull_image(
        pb.PullImageRequest(image=spec, auth=pb.AuthConfig(username="u", password="p"))
    )
    assert pulled.image_ref == IMAGE.id
    assert world.images.pulls[0][1] is not None and world.images.pulls[0][1].password == "p"
    answer = await service.image_status(pb.ImageStatusRequest(image=spec, verbose=True))
    assert (answer.image.id, answer.image.uid.value, answer.image.username) == (IMAGE.id, 1002, "")
    assert json.loads(answer.info["info"])["imageSpec"]["config"]["User"] == "1002:50"
    (listed,) = (await service.list_images(pb.ListImagesRequest())).images
    assert listed == answer.image
    wanted = pb.ImageFilter(image=pb.ImageSpec(image="other"))
    assert not (await service.list_images(pb.ListImagesRequest(filter=wanted))).images
    (page,) = [page async for page in service.stream_images(pb.StreamImagesRequest())]
    assert list(page.images) == [listed]
    usage = await service.image_fs_info(pb.ImageFsInfoRequest())
    assert usage.image_filesystems[0].used_bytes.value == 10
    assert usage.container_filesystems[0].fs_id.mountpoint == "/var/lib/orlop/images"
    await service.remove_image(pb.RemoveImageRequest(image=spec))
    assert not (await service.list_images(pb.ListImagesRequest())).images
    world.images.error = Unauthenticated("registry localhost:5000 wants credentials")
    with pytest.raises(Unauthenticated, match="wants credentials"):
        await service.pull_image(pb.PullImageRequest(image=spec))
    for bad in (pb.ImageSpec(), pb.ImageSpec(image="a\nb"), pb.ImageSpec(image="b", runtime_handler="nope")):
        with pytest.raises(InvalidArgument):
            await service.pull_image(pb.PullImageRequest(image=bad))


async def test_verbose_status_shows_pulls_under_way(world: World) -> None:
    async def shown() -> object:
        status = await world.client.runtime.status(pb.StatusRequest(verbose=True))
        return json.loads(status.info["pulls"])

    assert await shown() == {}
    world.images.gate.clear()
    request = pb.PullImageRequest(image=pb.ImageSpec(image="busybox"))
    pull = asyncio.ensure_future(world.client.images.pull_image(request))
    await until(lambda: world.images.pulls)
    assert await shown() == {"busybox": {"done": 40, "total": 100}}
    world.images.gate.set()
    await pull
    assert await shown() == {}


@pytest.mark.parametrize(
    ("handler", "reason"), [("vm", "virtual machine"), ("process", "handler process saves no containers")]
)
async def test_a_checkpoint_is_refused_with_the_reason_of_the_handler(
    world: World, handler: str, reason: str
) -> None:
    container_id = await world.container(await world.pod(handler=handler))
    request = pb.CheckpointContainerRequest(container_id=container_id, location="/x")
    with pytest.raises(Unimplemented, match=reason) as refused:
        await world.client.runtime.checkpoint_container(request)
    assert ("virtual machine" in str(refused.value)) == (handler == "vm")


async def test_pods_are_neither_saved_nor_restored(world: World) -> None:
    runtime, pod_id = world.client.runtime, await world.pod()
    with pytest.raises(Unimplemented, match=f"{pod_id[:12]}.*saves no pods"):
        await runtime.checkpoint_pod(pb.CheckpointPodRequest(pod_sandbox_id=pod_id, output_path="/x"))
    with pytest.raises(NotFound):
        await runtime.checkpoint_pod(pb.CheckpointPodRequest(pod_sandbox_id="none", output_path="/x"))
    with pytest.raises(Unimplemented, match="/x"):
        await runtime.restore_pod(pb.RestorePodRequest(checkpoint_path="/x"))
    with pytest.raises(InvalidArgument, match="checkpoint_path"):
        await runtime.restore_pod(pb.RestorePodRequest(checkpoint_path="x"))


async def test_an_image_is_inspected_in_the_words_of_its_specification(world: World) -> None:
    await world.client.images.pull_image(pb.PullImageRequest(image=pb.ImageSpec(image="busybox")))
    request = pb.ImageStatusRequest(image=pb.ImageSpec(image="busybox"), verbose=True)
    spec = json.loads((await world.client.images.image_status(request)).info["info"])["imageSpec"]
    assert spec == {
        "created": "2026-01-01T00:00:00Z",
        "architecture": "amd64",
        "os": "linux",
        "config": {"User": "1002:50", "Env": ["A=b"], "ExposedPorts": {"80/tcp": {}}},
    }


async def test_updates(world: World) -> None:
    runtime = world.client.runtime
    await runtime.update_container_resources(
        pb.UpdateContainerResourcesRequest(
            container_id="c", linux=pb.LinuxContainerResources(cpu_quota=-1, memory_limit_in_bytes=5)
        )
    )
    (_, name, resources) = world.pods.calls[-1]
    assert (name, resources.cpu_quota, resources.memory_limit) == ("c", -1, 5)  # type: ignore[attr-defined]
    await runtime.update_pod_sandbox_resources(
        pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id="p", resources=pb.LinuxContainerResources(memory_limit_in_bytes=6)
        )
    )
    assert world.pods.calls[-1][0] == "update_pod_resources"
    # A kubelet passes on what it reads of a control group of version 1 without a limit.
    await runtime.update_pod_sandbox_resources(
        pb.UpdatePodSandboxResourcesRequest(
            pod_sandbox_id="p",
            resources=pb.LinuxContainerResources(memory_limit_in_bytes=(1 << 63) - 4096, cpu_quota=-1),
        )
    )
    assert world.pods.calls[-1][-1].memory_limit == -1  # type: ignore[attr-defined]
    with pytest.raises(InvalidArgument, match=r"linux\.oom_score_adj"):
        await runtime.update_container_resources(
            pb.UpdateContainerResourcesRequest(
                container_id="c", linux=pb.LinuxContainerResources(oom_score_adj=-2000)
            )
        )
    network = pb.RuntimeConfig(network_config=pb.NetworkConfig(pod_cidr="10.0.0.0/24,fd00::/64"))
    await runtime.update_runtime_config(pb.UpdateRuntimeConfigRequest(runtime_config=network))
    network.network_config.pod_cidr = "10.0.0.0/240"
    with pytest.raises(InvalidArgument, match="not a network"):
        await runtime.update_runtime_config(pb.UpdateRuntimeConfigRequest(runtime_config=network))
    with pytest.raises(NotFound):
        await runtime.checkpoint_container(pb.CheckpointContainerRequest(container_id="c", location="/x"))
    with pytest.raises(FailedPrecondition):
        await runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id="c"))


@pytest.mark.parametrize("length", [0, 10_240])
async def test_ids_are_bounded(world: World, length: int) -> None:
    runtime, value = world.client.runtime, "a" * length
    for call, request in (
        (runtime.stop_pod_sandbox, pb.StopPodSandboxRequest(pod_sandbox_id=value)),
        (runtime.remove_pod_sandbox, pb.RemovePodSandboxRequest(pod_sandbox_id=value)),
        (runtime.pod_sandbox_status, pb.PodSandboxStatusRequest(pod_sandbox_id=value)),
        (runtime.stop_container, pb.StopContainerRequest(container_id=value)),
        (runtime.remove_container, pb.RemoveContainerRequest(container_id=value)),
        (runtime.container_status, pb.ContainerStatusRequest(container_id=value)),
        (runtime.exec_sync, pb.ExecSyncRequest(container_id=value, cmd=["true"])),
    ):
        with pytest.raises(InvalidArgument, match="_id is") as caught:
            await call(request)
        assert len(str(caught.value)) < 200
    assert not world.pods.calls


CALLS = [
    (service, method)
    for service, descriptor in pb.DESCRIPTOR.services_by_name.items()
    for method in descriptor.methods
    if method.name != "GetContainerEvents"
]


@settings(max_examples=200)
@given(st.data())
def test_any_request_is_answered_or_refused(data: st.DataObject) -> None:
    """Every call with any message of its type ends with an answer, or an error that is the caller's."""
    service, method = data.draw(st.sampled_from(CALLS))
    request = data.draw(messages(method.input_type, depth=4))
    memory, store, pulls = MemoryPods(), MemoryImages(), images.Pulls()
    made = {
        "RuntimeService": (
            node.NodeCalls(Config(), memory, pulls),
            pods.PodCalls(memory, store),
            containers.ContainerCalls(memory, store),
            streams.StreamCalls(memory, Urls()),
            statistics.StatisticsCalls(memory, store),
        ),
        "ImageService": (images.ImageCalls(store, memory, pulls),),
    }
    name = method_name(method.name)
    (call,) = [getattr(servicer, name) for servicer in made[service] if hasattr(servicer, name)]

    async def run() -> list[Message | bytes]:
        if method.server_streaming:
            return [item async for item in call(request)]
        return [await call(request)]

    try:
        answers = asyncio.run(run())
    except OrlopError as error:
        assert error.code not in (Code.INTERNAL, Code.UNKNOWN)
        return
    kind = message_factory.GetMessageClass(method.output_type)
    for answer in answers:
        encoded = answer if isinstance(answer, bytes) else answer.SerializeToString()
        assert kind.FromString(encoded) is not None


async def test_text_that_is_not_utf8_is_an_invalid_argument(world: World) -> None:
    async with aio.insecure_channel(
        f"unix:{world.config.socket}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        for data in (b"\x0a\x02\xff\xfe", b"\x0a\xff\xff\xff\xff\x07", b"\x00"):
            for rpc in ("ContainerStatus", "StartContainer"):
                call = channel.unary_unary(f"/runtime.v1.RuntimeService/{rpc}", None, None)
                with pytest.raises(aio.AioRpcError) as caught:
                    await call(data)
                assert caught.value.code().name == "INVALID_ARGUMENT"
                assert rpc in str(caught.value.details())
        call = channel.unary_unary("/runtime.v1.RuntimeService/NoSuchCall", None, None)
        with pytest.raises(aio.AioRpcError) as caught:
            await call(b"")
        assert caught.value.code().name == "UNIMPLEMENTED"


@pytest.mark.parametrize("kind", [NotFound, Unavailable, Internal, FailedPrecondition])
async def test_errors_keep_their_kind_and_message(world: World, kind: type[OrlopError]) -> None:
    world.pods.error = kind("pod 1: it\nfailed ä")
    with pytest.raises(kind, match=r"^pod 1: it failed ä$"):
        await world.pod()
    for text in ("x" * 100_000, "ä" * 100_000, "\U0001f40b" * 100_000, "half \ud800 a pair"):
        world.pods.error = kind(text)
        with pytest.raises(kind, match=r"^(xxx|äää|\U0001f40b|half)"):
            await world.pod()


async def test_an_unexpected_error_is_internal_and_logged(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    world.pods.error = ZeroDivisionError("surprise")
    with pytest.raises(Internal, match="RunPodSandbox: ZeroDivisionError: surprise"):
        await world.pod()
    assert "Traceback" in caplog.text
    stream = world.client.runtime.stream_pod_sandboxes(pb.StreamPodSandboxesRequest())
    with pytest.raises(Internal, match="StreamPodSandboxes: ZeroDivisionError"):
        await anext(stream)


async def test_a_cancelled_call_cancels_the_work(world: World) -> None:
    call = asyncio.ensure_future(
        world.client.runtime.start_container(pb.StartContainerRequest(container_id="stuck"))
    )
    await until(lambda: world.pods.calls)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await world.client.runtime.version(pb.VersionRequest())


async def test_a_callers_trace_goes_on(tmp_path: Path) -> None:
    trace = pytest.importorskip("opentelemetry.trace")
    seen: list[str] = []

    class Spans(Measure):
        @contextmanager
        def rpc(self, name: str) -> Iterator[None]:
            seen.append(f"{trace.get_current_span().get_span_context().trace_id:032x}")
            yield

    config = Config(
        socket=str(tmp_path / "s.sock"), metrics=MetricsConfig(otlp_endpoint="http://127.0.0.1:4317")
    )
    server = CriServer(config, MemoryPods(), MemoryImages(), Urls(), metrics=Spans())
    await server.start()
    async with aio.insecure_channel(f"unix:{config.socket}") as channel:
        call = channel.unary_unary("/runtime.v1.RuntimeService/Version", None, None)
        for value in (f"00-{'ab' * 16}-{'cd' * 8}-01", "nonsense", "00-zz"):
            await call(b"", metadata=(("traceparent", value),))
        await call(b"")
    await server.stop(0)
    assert seen == ["ab" * 16, "0" * 32, "0" * 32, "0" * 32]


async def test_the_socket(world: World, tmp_path: Path) -> None:
    path = Path(world.config.socket)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    second = CriServer(world.config, world.pods, world.images, Urls())
    with pytest.raises(FailedPrecondition, match="another daemon"):
        await second.start()
    await world.client.runtime.version(pb.VersionRequest())
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(stale))
    third = CriServer(Config(socket=str(stale)), world.pods, world.images, Urls())
    await third.start()
    async with CriClient(stale) as client:
        await client.runtime.version(pb.VersionRequest())
    await third.stop(0)
    assert not list(tmp_path.glob("stale*"))
    plain = tmp_path / "file"
    plain.write_text("mine")
    for bad in (plain, tmp_path / ("x" * 120)):
        with pytest.raises(FailedPrecondition):
            await CriServer(Config(socket=str(bad)), world.pods, world.images, Urls()).start()
    assert plain.read_text() == "mine"
    async with CriClient(stale) as client:
        with pytest.raises(Unavailable, match="no daemon answers at"):
            await client.runtime.version(pb.VersionRequest(), timeout=2)


def test_events_have_a_number_each() -> None:
    # Of health CRI knows nothing, and hears nothing.
    assert len({*EventKind} - {EventKind.HEALTH}) == len(pb.ContainerEventType.values())
