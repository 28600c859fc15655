"""Records of pods and containers, as CRI's messages."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate import common, signals
from orlop.cri.translate.container import PHASE_NUMBERS, PROPAGATION_NUMBERS
from orlop.errors import InvalidArgument
from orlop.images import reference as references
from orlop.pods.records import ContainerPhase, ContainerRecord, Event, EventKind, PodRecord
from orlop.sandbox.spec import IdMapping, Mount, NamespaceMode, Namespaces, Resources

_EVENTS = {
    EventKind.CREATED: pb.CONTAINER_CREATED_EVENT,
    EventKind.STARTED: pb.CONTAINER_STARTED_EVENT,
    EventKind.STOPPED: pb.CONTAINER_STOPPED_EVENT,
    EventKind.DELETED: pb.CONTAINER_DELETED_EVENT,
}


def pod_metadata(record: PodRecord) -> pb.PodSandboxMetadata:
    """Name, namespace, uid and attempt of a pod."""
    spec = record.spec
    return pb.PodSandboxMetadata(name=spec.name, uid=spec.uid, namespace=spec.namespace, attempt=spec.attempt)


def pod_state(record: PodRecord) -> pb.PodSandboxState.ValueType:
    """Whether the pod runs."""
    return pb.SANDBOX_READY if record.ready else pb.SANDBOX_NOTREADY


def pod_entry(record: PodRecord) -> pb.PodSandbox:
    """A pod as a list shows it."""
    return pb.PodSandbox(
        id=record.id,
        metadata=pod_metadata(record),
        state=pod_state(record),
        created_at=record.created_at,
        labels=record.spec.labels,
        annotations=record.spec.annotations,
        runtime_handler=record.runtime_handler,
    )


def pod_status(record: PodRecord) -> pb.PodSandboxStatus:
    """Everything CRI wants to know about a pod."""
    first, *others = record.addresses or ("",)
    return pb.PodSandboxStatus(
        id=record.id,
        metadata=pod_metadata(record),
        state=pod_state(record),
        created_at=record.created_at,
        network=pb.PodSandboxNetworkStatus(ip=first, additional_ips=[pb.PodIP(ip=ip) for ip in others]),
        linux=pb.LinuxPodSandboxStatus(
            namespaces=pb.Namespace(options=_namespace_option(record.spec.namespaces))
        ),
        labels=record.spec.labels,
        annotations=record.spec.annotations,
        runtime_handler=record.runtime_handler,
    )


def _namespace_option(value: Namespaces) -> pb.NamespaceOption:
    option = pb.NamespaceOption(
        network=common.MODE_NUMBERS[value.network],
        pid=common.MODE_NUMBERS[value.pid],
        ipc=common.MODE_NUMBERS[value.ipc],
        target_id=value.target_container,
    )
    if value.user is NamespaceMode.POD:
        option.userns_options.CopyFrom(
            pb.UserNamespace(
                mode=pb.POD, uids=_mappings(value.uid_mappings), gids=_mappings(value.gid_mappings)
            )
        )
    return option


def _mappings(values: tuple[IdMapping, ...]) -> list[pb.IDMapping]:
    return [
        pb.IDMapping(host_id=item.host_id, container_id=item.container_id, length=item.length)
        for item in values
    ]


def container_state(record: ContainerRecord) -> pb.ContainerState.ValueType:
    """Where the container is in its life."""
    return PHASE_NUMBERS.get(record.phase, pb.CONTAINER_UNKNOWN)


def container_entry(record: ContainerRecord) -> pb.Container:
    """A container as a list shows it."""
    return pb.Container(
        id=record.id,
        pod_sandbox_id=record.pod_id,
        metadata=pb.ContainerMetadata(name=record.name, attempt=record.spec.attempt),
        image=pb.ImageSpec(image=record.image, user_specified_image=record.user_image),
        image_ref=record.image_ref,
        image_id=record.image_id,
        state=container_state(record),
        created_at=record.created_at,
        labels=record.labels,
        annotations=record.annotations,
    )


def container_status(record: ContainerRecord, tags: tuple[str, ...] = ()) -> pb.ContainerStatus:
    """Everything CRI wants to know about a container. ``tags`` are those of its image, if it still is."""
    status = pb.ContainerStatus(
        id=record.id,
        metadata=pb.ContainerMetadata(name=record.name, attempt=record.spec.attempt),
        state=container_state(record),
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        image=pb.ImageSpec(image=image_name(record, tags), user_specified_image=record.user_image),
        image_ref=record.image_ref,
        image_id=record.image_id,
        reason=record.reason,
        message=record.message,
        labels=record.labels,
        annotations=record.annotations,
        mounts=[_mount(item) for item in record.spec.mounts],
        log_path=record.log_path,
        resources=pb.ContainerResources(linux=linux_resources(record.resources)),
        stop_signal=signals.number_of(record.stop_signal),
    )
    if record.phase is ContainerPhase.EXITED:
        status.exit_code = record.exit_code
    if record.user is not None:
        status.user.linux.CopyFrom(
            pb.LinuxContainerUser(
                uid=record.user.uid, gid=record.user.gid, supplemental_groups=record.user.groups
            )
        )
    return status


def image_name(record: ContainerRecord, tags: tuple[str, ...]) -> str:
    """The image by a name for people: callers create containers from ids, but want to show a tag."""
    if record.image.removeprefix("sha256:") != record.image_id.removeprefix("sha256:") or not tags:
        return record.image
    with contextlib.suppress(InvalidArgument):
        wanted = str(references.parse(record.user_image))
        if wanted in tags:
            return wanted
    return tags[0]


def _mount(item: Mount) -> pb.Mount:
    mount = pb.Mount(
        container_path=item.container_path,
        host_path=item.host_path,
        readonly=item.read_only,
        recursive_read_only=item.recursive_read_only,
        selinux_relabel=item.selinux_relabel,
        propagation=PROPAGATION_NUMBERS[item.propagation],
        uidMappings=_mappings(item.uid_mappings),
        gidMappings=_mappings(item.gid_mappings),
        mount_options=item.options,
    )
    if item.image is not None:
        # image_ref is what PullImage answered for this image: its id.
        mount.image.image = item.image.reference or item.image.image_id
        mount.image.image_ref = item.image.image_id
        mount.image_sub_path = item.image.sub_path
    return mount


def linux_resources(value: Resources) -> pb.LinuxContainerResources:
    """The limits that hold."""
    return pb.LinuxContainerResources(
        cpu_period=value.cpu_period,
        cpu_quota=value.cpu_quota,
        cpu_shares=value.cpu_shares,
        cpuset_cpus=value.cpuset_cpus,
        cpuset_mems=value.cpuset_mems,
        memory_limit_in_bytes=value.memory_limit,
        memory_swap_limit_in_bytes=value.swap_limit,
        oom_score_adj=value.oom_score_adj,
        hugepage_limits=[
            pb.HugepageLimit(page_size=size, limit=limit) for size, limit in value.hugepage_limits
        ],
        unified=dict(value.unified),
    )


def event(value: Event, tags: Mapping[str, tuple[str, ...]]) -> pb.ContainerEventResponse:
    """An event, with the state of the whole pod just after it; ``tags`` of images by container."""
    return pb.ContainerEventResponse(
        container_id=value.container_id,
        container_event_type=_EVENTS[value.kind],
        created_at=value.at,
        pod_sandbox_status=pod_status(value.pod),
        containers_statuses=[
            container_status(record, tags.get(record.id, ())) for record in value.containers
        ],
    )
