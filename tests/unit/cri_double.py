"""Pods and images in memory, as ``PodService`` and ``ImageStore`` have them: what a server is tested with."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import strategies as st

from orlop.errors import FailedPrecondition, NotFound, OrlopError
from orlop.images.model import FsInfo, Image, ImageConfigOci, PullProgress, RegistryAuth
from orlop.linux.usage import Pressure, Usage
from orlop.net.model import InterfaceCounters
from orlop.pods.records import (
    ContainerFilter,
    ContainerPhase,
    ContainerRecord,
    ContainerUse,
    Event,
    EventKind,
    Handler,
    PodFilter,
    PodPhase,
    PodRecord,
    PodUse,
    UserIds,
)
from orlop.pods.requests import ContainerRequest
from orlop.sandbox.figures import ContainerStats, Detail, LayerUse, PodStats
from orlop.sandbox.spec import (
    ContainerSpec,
    PodSpec,
    Resources,
)

NOW = 1_700_000_000_000_000_000


class Output(NamedTuple):
    stdout: bytes
    stderr: bytes
    exit_code: int


@dataclass
class MemoryPods:
    """Keeps records as the real service does: immutable, replaced as a whole."""

    records: dict[str, PodRecord] = field(default_factory=dict)
    members: dict[str, ContainerRecord] = field(default_factory=dict)
    requests: list[ContainerRequest] = field(default_factory=list)
    calls: list[tuple[object, ...]] = field(default_factory=list)
    output: Output = field(default_factory=lambda: Output(b"out", b"err", 3))
    error: BaseException | None = None
    stuck: asyncio.Event = field(default_factory=asyncio.Event)
    subscribers: list[asyncio.Queue[Event]] = field(default_factory=list)
    reason: str = ""
    interfaces: tuple[InterfaceCounters, ...] = (
        InterfaceCounters(name="eth0", rx_bytes=1, tx_bytes=2, rx_packets=3),
    )
    written: tuple[LayerUse, ...] = ()

    def _check(self, *call: object) -> None:
        self.calls.append(call)
        if self.error is not None:
            raise self.error

    async def run_pod(self, spec: PodSpec) -> str:
        self._check("run_pod", spec)
        pod_id = f"{len(self.records) + 1:064x}"
        self.records[pod_id] = PodRecord(
            spec=msgspec.structs.replace(spec, id=pod_id, handler=spec.handler or "vm"),
            phase=PodPhase.READY,
            created_at=NOW,
            runtime_handler=spec.handler,
            addresses=("10.88.0.2", "fd00::2"),
        )
        self.publish(EventKind.CREATED, pod_id, pod_id)
        return pod_id

    async def stop_pod(self, pod_id: str) -> None:
        self._check("stop_pod", pod_id)
        if (record := self.records.get(pod_id)) is not None:
            self.records[pod_id] = msgspec.structs.replace(record, phase=PodPhase.NOTREADY)

    async def remove_pod(self, pod_id: str) -> None:
        self._check("remove_pod", pod_id)
        self.records.pop(pod_id, None)

    def pod(self, pod_id: str) -> PodRecord:
        self._check("pod", pod_id)
        if pod_id not in self.records:
            raise NotFound(f"pod {pod_id} does not exist")
        return self.records[pod_id]

    def pods(self, filter: PodFilter) -> Sequence[PodRecord]:  # noqa: A002
        self._check("pods", filter)
        return [
            item
            for item in self.records.values()
            if item.id.startswith(filter.id) and filter.ready in (None, item.ready)
        ]

    def pod_info(self, pod_id: str) -> dict[str, object]:
        return {"handler": "vm", "bytes": b"x"}

    async def update_pod_resources(self, pod_id: str, overhead: Resources, resources: Resources) -> None:
        self._check("update_pod_resources", pod_id, overhead, resources)

    async def create_container(self, request: ContainerRequest) -> str:
        self._check("create_container", request)
        self.requests.append(request)
        container_id = f"{len(self.members) + 1:064x}"
        self.members[container_id] = ContainerRecord(
            spec=ContainerSpec(
                id=container_id,
                pod_id=request.pod_id,
                name=request.name,
                image_id=IMAGE.id,
                args=(*request.command, *request.args),
            ),
            phase=ContainerPhase.CREATED,
            created_at=NOW,
            labels=request.labels,
            annotations=request.annotations,
            image=request.image,
            user_image=request.user_image,
            image_ref=IMAGE.repo_digests[0],
            stop_signal=request.stop_signal or "SIGTERM",
            user=UserIds(uid=7, gid=8, groups=(9,)),
        )
        return container_id

    async def start_container(self, container_id: str) -> None:
        self._check("start_container", container_id)
        if self.error is None and container_id == "stuck":
            await self.stuck.wait()
        record = self.container(container_id)
        self.members[container_id] = msgspec.structs.replace(
            record, phase=ContainerPhase.RUNNING, started_at=NOW
        )
        self.publish(EventKind.STARTED, container_id, record.pod_id)

    async def stop_container(self, container_id: str, timeout: float) -> None:
        self._check("stop_container", container_id, timeout)

    async def remove_container(self, container_id: str) -> None:
        self._check("remove_container", container_id)
        self.members.pop(container_id, None)

    def container(self, container_id: str) -> ContainerRecord:
        self._check("container", container_id)
        if container_id not in self.members:
            raise NotFound(f"container {container_id} does not exist")
        return self.members[container_id]

    def containers(self, filter: ContainerFilter) -> Sequence[ContainerRecord]:  # noqa: A002
        self._check("containers", filter)
        return [
            item
            for item in self.members.values()
            if item.id.startswith(filter.id)
            and item.pod_id.startswith(filter.pod_id)
            and filter.phase in (None, item.phase)
        ]

    async def container_info(self, container_id: str) -> dict[str, object]:
        return {"args": ["sleep"]}

    async def update_container(self, container_id: str, resources: Resources) -> None:
        self._check("update_container", container_id, resources)

    async def reopen_log(self, container_id: str) -> None:
        self._check("reopen_log", container_id)
        raise FailedPrecondition(f"container {container_id} has no log")

    async def exec_sync(self, container_id: str, args: tuple[str, ...], timeout: float) -> Output:
        self._check("exec_sync", container_id, args, timeout)
        return self.output

    def _stats(self, container_id: str) -> ContainerStats:
        return ContainerStats(
            container_id=container_id,
            usage=Usage(
                timestamp=NOW,
                cpu_ns=5_500_000_000,
                memory=100,
                working_set=90,
                rss=80,
                page_faults=7,
                processes=2,
                cpu_pressure=Pressure(some_avg10=1.5, some_total=3_000_000, full_total=1_000_000),
            ),
            nano_cores=11,
        )

    async def container_stats(self, container_id: str) -> ContainerUse:
        return ContainerUse(record=self.container(container_id), stats=self._stats(container_id))

    async def list_container_stats(self, filter: ContainerFilter) -> Sequence[ContainerUse]:  # noqa: A002
        return [ContainerUse(record=item, stats=self._stats(item.id)) for item in self.containers(filter)]

    async def pod_stats(self, pod_id: str) -> PodUse:
        members = tuple(self.containers(ContainerFilter(pod_id=pod_id)))
        return PodUse(
            record=self.pod(pod_id),
            stats=PodStats(
                usage=Usage(timestamp=NOW, cpu_ns=9_000_000_000, processes=4),
                interfaces=self.interfaces,
                containers=tuple(self._stats(item.id) for item in members),
            ),
            containers=members,
        )

    async def layers(self) -> Sequence[LayerUse]:
        return self.written

    async def console(self, pod_id: str) -> str:
        return ""

    def gauges(self) -> dict[str, float]:
        return {"orlop_vm_pool_ready": 2.0}

    async def list_pod_stats(self, filter: PodFilter, detail: Detail = Detail.POD) -> Sequence[PodUse]:  # noqa: A002
        return [await self.pod_stats(item.id) for item in self.pods(filter)]

    async def events(self) -> AsyncIterator[Event]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self.subscribers.append(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self.subscribers.remove(queue)

    def publish(self, kind: EventKind, object_id: str, pod_id: str) -> None:
        members = tuple(item for item in self.members.values() if item.pod_id == pod_id)
        if (record := self.records.get(pod_id)) is None:
            return
        for queue in self.subscribers:
            queue.put_nowait(Event(kind=kind, container_id=object_id, at=NOW, pod=record, containers=members))

    async def handlers(self) -> Sequence[Handler]:
        return [
            Handler(name="process", reason="", user_namespaces=True),
            Handler(name="vm", reason=self.reason, recursive_read_only_mounts=True),
        ]

    async def runtime_reason(self) -> str:
        return self.reason

    async def network_reason(self) -> str:
        return "no CNI configuration"


IMAGE = Image(
    id="sha256:" + "a" * 64,
    repo_tags=("docker.io/library/busybox:1.36", "docker.io/library/busybox:latest"),
    repo_digests=("docker.io/library/busybox@sha256:" + "b" * 64,),
    size=4_000_000,
    config=ImageConfigOci(
        user="1002:50",
        env=("A=b",),
        exposed_ports=("80/tcp",),
        architecture="amd64",
        os="linux",
        created="2026-01-01T00:00:00Z",
    ),
)


@dataclass
class MemoryImages:
    """One image that can be pulled."""

    known: dict[str, Image] = field(default_factory=dict)
    pulls: list[tuple[str, RegistryAuth | None]] = field(default_factory=list)
    error: OrlopError | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def list(self) -> Sequence[Image]:
        return list(self.known.values())

    def status(self, reference: str) -> Image | None:
        if reference in ("busybox", "busybox:latest"):
            reference = IMAGE.id
        return self.known.get(reference)

    async def pull(
        self,
        reference: str,
        auth: RegistryAuth | None = None,
        progress: Callable[[PullProgress], None] | None = None,
    ) -> Image:
        self.pulls.append((reference, auth))
        if progress is not None:
            progress(PullProgress(reference=reference, total_bytes=100, read_bytes=40))
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        self.known[IMAGE.id] = IMAGE
        return IMAGE

    async def remove(self, reference: str) -> None:
        self.known.clear()

    async def fs_info(self) -> FsInfo:
        return FsInfo(mountpoint="/var/lib/orlop/images", used_bytes=10, inodes=2, timestamp=NOW)


class Urls:
    """Stands for the streaming server."""

    def exec_url(
        self, container_id: str, args: tuple[str, ...], *, tty: bool, stdin: bool, stdout: bool, stderr: bool
    ) -> str:
        return f"http://127.0.0.1:1/exec/{container_id}/{' '.join(args)}/{tty}{stdin}{stdout}{stderr}"

    def attach_url(self, container_id: str, *, tty: bool, stdin: bool, stdout: bool, stderr: bool) -> str:
        return f"http://127.0.0.1:1/attach/{container_id}/{tty}{stdin}{stdout}{stderr}"

    def port_forward_url(self, pod_id: str, ports: tuple[int, ...]) -> str:
        return f"http://127.0.0.1:1/portforward/{pod_id}/{ports}"


TEXT = st.one_of(
    st.text(max_size=12),
    st.sampled_from(["/a", "/a/../b", "x" * 5000, "a\0b", "a\nb", "..", "1-3,5", "10.0.0.1", "2MB"]),
)
INTEGER = {
    FieldDescriptor.CPPTYPE_INT32: st.integers(-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: st.integers(-(2**63), 2**63 - 1),
    FieldDescriptor.CPPTYPE_UINT32: st.integers(0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: st.integers(0, 2**64 - 1),
}


def values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    kind = field.cpp_type
    if kind == FieldDescriptor.CPPTYPE_MESSAGE:
        assert field.message_type is not None
        return messages(field.message_type, depth - 1)
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        return st.integers(-3, 80)
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return st.booleans()
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return st.binary(max_size=12) if field.type == FieldDescriptor.TYPE_BYTES else TEXT
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return st.floats(allow_nan=False)
    return st.one_of(st.integers(0, 3), INTEGER[kind])


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 5) -> Message:
    """Any message of a type, with some of its fields set to anything that protobuf allows."""
    message: Message = message_factory.GetMessageClass(descriptor)()
    for one in descriptor.fields:
        if depth <= 0 and one.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
            continue
        if not draw(st.booleans()):
            continue
        if one.message_type is not None and one.message_type.GetOptions().map_entry:
            getattr(message, one.name).update(draw(st.dictionaries(TEXT, TEXT, max_size=2)))
        elif one.is_repeated:
            for value in draw(st.lists(values(one, depth), max_size=2)):
                if isinstance(value, Message):
                    getattr(message, one.name).add().CopyFrom(value)
                else:
                    getattr(message, one.name).append(value)
        else:
            value = draw(values(one, depth))
            if isinstance(value, Message):
                getattr(message, one.name).CopyFrom(value)
            else:
                setattr(message, one.name, value)
    return message
