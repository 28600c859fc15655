"""What a kubelet may ask for, down to what a guest's agent and an OCI runtime are told."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import msgspec
from google.protobuf import message_factory
from google.protobuf.message import DecodeError, Message

from orlop.config import Config
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.services import containers, images, node, pods, statistics, streams
from orlop.cri.translate import container as translate_container
from orlop.cri.translate import pod as translate_pod
from orlop.cri.translate import status
from orlop.errors import Code, OrlopError
from orlop.linux.users import Identity
from orlop.pods import resolve
from orlop.pods.records import ContainerPhase, ContainerRecord, PodPhase, PodRecord
from orlop.rpc.names import method_name
from orlop.sandbox.process import checks as process_checks
from orlop.sandbox.process import oci
from orlop.sandbox.process.layout import Layout
from orlop.sandbox.process.runtime import Runtime
from orlop.sandbox.spec import ContainerSpec, PodSpec, Seccomp, SeccompMode
from orlop.sandbox.vm import checks as vm_checks
from orlop.sandbox.vm import translate
from orlop.wire import messages
from orlop.wire.codec import ProtocolError
from orlop.wire.values import Disks, PluggedDisk, Streams
from tests.fuzz.kit import run, target
from tests.unit.cri_double import MemoryImages, MemoryPods, Urls
from tests.unit.pods_double import DoubleImage

CALLS = [
    (service, method)
    for service, descriptor in sorted(pb.DESCRIPTOR.services_by_name.items())
    for method in descriptor.methods
    if method.name != "GetContainerEvents"
]
NUMBERS = {method.name: number for number, (_, method) in enumerate(CALLS)}
POD = pb.PodSandboxConfig(
    metadata=pb.PodSandboxMetadata(name="web", namespace="default", uid="u", attempt=1),
    hostname="web",
    log_directory="/var/log/pods/web",
    dns_config=pb.DNSConfig(servers=["10.0.0.1"], searches=["local"], options=["ndots:5"]),
    port_mappings=[pb.PortMapping(container_port=80, host_port=8080)],
    labels={"app": "web"},
    linux=pb.LinuxPodSandboxConfig(
        cgroup_parent="/kubepods/burstable",
        sysctls={"net.ipv4.ip_forward": "1"},
        security_context=pb.LinuxSandboxSecurityContext(
            namespace_options=pb.NamespaceOption(pid=pb.CONTAINER),
            run_as_user=pb.Int64Value(value=1000),
            supplemental_groups=[5],
        ),
        resources=pb.LinuxContainerResources(memory_limit_in_bytes=1 << 28),
    ),
)
CONTAINER = pb.ContainerConfig(
    metadata=pb.ContainerMetadata(name="main"),
    image=pb.ImageSpec(image="busybox"),
    command=["sh"],
    args=["-c", "true"],
    working_dir="/",
    envs=[pb.KeyValue(key="A", value=b"b")],
    log_path="main/0.log",
    mounts=[
        pb.Mount(container_path="/data", host_path="/tmp"),
        pb.Mount(container_path="/image", image=pb.ImageSpec(image="busybox")),
    ],
    devices=[pb.Device(host_path="/dev/null", container_path="/dev/x", permissions="rw")],
    linux=pb.LinuxContainerConfig(
        resources=pb.LinuxContainerResources(
            cpu_period=100000, cpu_quota=50000, cpu_shares=2, memory_limit_in_bytes=1 << 27, oom_score_adj=5,
            hugepage_limits=[pb.HugepageLimit(page_size="2MB")], unified={"memory.high": "5"},
        ),
        security_context=pb.LinuxContainerSecurityContext(
            capabilities=pb.Capability(add_capabilities=["NET_ADMIN"], drop_capabilities=["ALL"]),
            run_as_username="web",
            masked_paths=["/proc/kcore"],
            readonly_paths=["/proc/sys"],
            seccomp=pb.SecurityProfile(profile_type=pb.SecurityProfile.RuntimeDefault),
        ),
    ),
)  # fmt: skip


def call(name: str, request: Message) -> bytes:
    """The input that makes this call."""
    return bytes([NUMBERS[name]]) + request.SerializeToString()


EVERY = [
    call("RunPodSandbox", pb.RunPodSandboxRequest(config=POD, runtime_handler="vm")),
    call(
        "CreateContainer",
        pb.CreateContainerRequest(pod_sandbox_id="1" * 64, config=CONTAINER, sandbox_config=POD),
    ),
    call(
        "ListContainers",
        pb.ListContainersRequest(filter=pb.ContainerFilter(id="1", label_selector={"a": "b"})),
    ),
    call("ExecSync", pb.ExecSyncRequest(container_id="1", cmd=["true"], timeout=1)),
    call("Exec", pb.ExecRequest(container_id="1", cmd=["sh"], stdin=True, stdout=True)),
    call(
        "PullImage",
        pb.PullImageRequest(image=pb.ImageSpec(image="busybox"), auth=pb.AuthConfig(username="u")),
    ),
    call("UpdatePodSandboxResources", pb.UpdatePodSandboxResourcesRequest(pod_sandbox_id="1")),
]


@target(seeds=[*EVERY, *(bytes([number]) for number in range(len(CALLS)))])
def service(data: bytes) -> None:
    """Each call is answered, or refused with an error that is the caller's; its answer can be read."""
    kind, method = CALLS[(data[0] if data else 0) % len(CALLS)]
    try:
        request = message_factory.GetMessageClass(method.input_type).FromString(data[1:])
    except DecodeError:
        return
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
    (answer,) = [getattr(servicer, name) for servicer in made[kind] if hasattr(servicer, name)]

    async def serve() -> list[Any]:
        if method.server_streaming:
            return [item async for item in answer(request)]
        return [await answer(request)]

    try:
        answers = run(serve())
    except OrlopError as error:
        assert error.code not in (Code.INTERNAL, Code.UNKNOWN), error
        return
    reply = message_factory.GetMessageClass(method.output_type)
    assert isinstance(answers, list)
    for one in answers:
        reply.FromString(one if isinstance(one, bytes) else one.SerializeToString())


SPLIT = b"\xff--\xff"
RUNTIME = Runtime("runc", "/usr/bin/runc", "1.1", Path("/run/x/oci"), systemd=False)


@target(
    OrlopError,
    seeds=[
        b"vm" + POD.SerializeToString() + SPLIT + CONTAINER.SerializeToString(),
        b"process" + POD.SerializeToString() + SPLIT + CONTAINER.SerializeToString(),
    ],
)
def pod(data: bytes) -> None:
    """A pod and a container, from the request to what runs it, and their records in the journal."""
    first, _, second = data.removeprefix(b"process").removeprefix(b"vm").partition(SPLIT)
    try:
        config, wanted = pb.PodSandboxConfig.FromString(first), pb.ContainerConfig.FromString(second)
    except DecodeError:
        return
    spec = translate_pod.pod_spec(config, "vm")
    spec = msgspec.structs.replace(spec, id="p" * 64)
    _kept(PodRecord(spec=spec, phase=PodPhase.READY, created_at=1))
    request = translate_container.container_request(spec.id, wanted)
    # Host paths are made where they are missing, and profiles are read: not those that bytes name.
    mounts = tuple(mount for mount in request.mounts if mount.image or mount.host_path == "/tmp")
    local = request.security.seccomp.mode is SeccompMode.LOCALHOST
    asked = msgspec.structs.replace(request.security, seccomp=Seccomp()) if local else request.security
    request = msgspec.structs.replace(request, mounts=mounts, security=asked)
    container = resolve.container(request, "c" * 64, spec, DoubleImage(), lambda name: DoubleImage())
    _kept(ContainerRecord(spec=container, phase=ContainerPhase.CREATED, created_at=1))
    if data.startswith(b"process"):
        _for_a_runtime(spec, container)
    else:
        _for_a_guest(spec, container)


def _kept(record: PodRecord | ContainerRecord) -> None:
    assert msgspec.json.decode(msgspec.json.encode(record), type=type(record)) == record
    if isinstance(record, PodRecord):
        status.pod_status(record).SerializeToString()
    else:
        status.container_status(record, ()).SerializeToString()


def _for_a_guest(spec: PodSpec, container: ContainerSpec) -> None:
    vm_checks.check_pod(spec, Config().vm)
    vm_checks.check_container(container, ())
    plugged = translate.Plugged(
        disks=Disks(root=(PluggedDisk(id="layers"),), volumes=(PluggedDisk(id="v"),)),
        shares={mount.container_path: "1" for mount in container.mounts if mount.host_path},
        volumes={mount.container_path: "v" for mount in container.mounts if mount.image is not None},
    )
    told = translate.container(container, plugged, streams=Streams(), seccomp=b"", seccomp_flags=0)
    # What the protocol does not take is refused by the guest, and is then the caller's error as well.
    with contextlib.suppress(ProtocolError):
        messages.unpack_request(messages.pack_request(messages.Create(container=told)))
    setup = messages.Setup(
        hostname=translate.hostname_of(spec),
        resolv_conf=translate.resolv_conf(spec.dns, ""),
        hosts=translate.hosts(spec.hostname, ("10.0.0.2",)),
        sysctls=spec.sysctls,
    )
    with contextlib.suppress(ProtocolError):
        messages.unpack_request(messages.pack_request(setup))


def _for_a_runtime(spec: PodSpec, container: ContainerSpec) -> None:
    process_checks.check_pod(spec, user_namespaces=True)
    process_checks.check_container(container, spec, RUNTIME)
    paths = Layout(Path("/run/x/state"), Path("/run/x/root")).pod(spec.id)
    inputs = oci.Inputs(spec, container, paths, Path("/rootfs"), Identity(0, 0, (0,)), [], "/orlop/p/c")
    json.dumps(oci.document(inputs)).encode()
