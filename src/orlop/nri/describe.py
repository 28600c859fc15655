"""Pods and containers as plug-ins see them."""

from __future__ import annotations

from orlop.nri.api import nri_v1alpha1_pb2 as pb
from orlop.pods.records import ContainerPhase, ContainerRecord, PodRecord
from orlop.sandbox.spec import ContainerSpec, Mount, NamespaceMode, Resources, Rlimit

_STATES = {
    ContainerPhase.CREATED: pb.CONTAINER_CREATED,
    ContainerPhase.RUNNING: pb.CONTAINER_RUNNING,
    ContainerPhase.EXITED: pb.CONTAINER_STOPPED,
}
_INFINITY = (1 << 64) - 1


def pod(record: PodRecord) -> pb.PodSandbox:
    """A pod."""
    spec = record.spec
    return pb.PodSandbox(
        id=spec.id,
        name=spec.name,
        uid=spec.uid,
        namespace=spec.namespace,
        labels=spec.labels,
        annotations=spec.annotations,
        runtime_handler=record.runtime_handler,
        linux=pb.LinuxPodSandbox(
            pod_overhead=resources(spec.overhead),
            pod_resources=resources(spec.resources),
            cgroup_parent=spec.cgroup_parent,
            resources=resources(spec.resources),
        ),
        ips=record.addresses,
    )


def container(record: ContainerRecord) -> pb.Container:
    """A container."""
    spec = record.spec
    user = record.user
    return pb.Container(
        id=record.id,
        pod_sandbox_id=record.pod_id,
        name=record.name,
        state=_STATES.get(record.phase, pb.CONTAINER_UNKNOWN),
        labels=record.labels,
        annotations=spec.annotations,
        args=spec.args,
        env=[f"{name}={value.decode(errors='replace')}" for name, value in spec.env],
        mounts=[_mount(item) for item in spec.mounts],
        hooks=_hooks(spec),
        linux=pb.LinuxContainer(
            namespaces=_namespaces(spec),
            devices=[pb.LinuxDevice(path=device.container_path) for device in spec.devices],
            resources=resources(spec.resources),
            oom_score_adj=pb.OptionalInt(value=spec.resources.oom_score_adj),
            cgroups_path=spec.on_host.cgroup,
            sysctl=spec.on_host.sysctls,
        ),
        rlimits=[_rlimit(limit) for limit in spec.rlimits],
        created_at=record.created_at,
        started_at=record.started_at,
        finished_at=record.finished_at,
        exit_code=record.exit_code,
        status_reason=record.reason,
        status_message=record.message,
        user=None if user is None else pb.User(uid=user.uid, gid=user.gid, additional_gids=user.groups),
        image=pb.Image(name=record.user_image or record.image, config_digest=record.image_id),
    )


def _mount(mount: Mount) -> pb.Mount:
    options = ["ro" if mount.read_only else "rw", *mount.options]
    if mount.tmpfs is not None:
        return pb.Mount(destination=mount.container_path, type="tmpfs", source="tmpfs", options=options)
    source = mount.host_path or (mount.image.reference if mount.image is not None else "")
    propagation = "rprivate" if mount.propagation == "private" else mount.propagation.value
    return pb.Mount(
        destination=mount.container_path, type="bind", source=source, options=["rbind", propagation, *options]
    )


def _hooks(spec: ContainerSpec) -> pb.Hooks:
    found = pb.Hooks()
    names = {"createRuntime": "create_runtime", "createContainer": "create_container"}
    names["startContainer"] = "start_container"
    for hook in spec.on_host.hooks:
        getattr(found, names.get(hook.moment, hook.moment)).add(path=hook.path, args=hook.args, env=hook.env)
    return found


def _namespaces(spec: ContainerSpec) -> list[pb.LinuxNamespace]:
    """Those that are not the host's. Where a pod's own are is nobody else's business."""
    asked = spec.namespaces
    modes = {"network": asked.network, "ipc": asked.ipc, "pid": asked.pid}
    kinds = [kind for kind, mode in modes.items() if mode is not NamespaceMode.NODE]
    if asked.user is not NamespaceMode.NODE:
        kinds.append("user")
    return [pb.LinuxNamespace(type=kind) for kind in (*kinds, "mount", "uts")]


def _rlimit(limit: Rlimit) -> pb.POSIXRlimit:
    soft, hard = (value if value >= 0 else _INFINITY for value in (limit.soft, limit.hard))
    return pb.POSIXRlimit(type=f"RLIMIT_{limit.name}", soft=soft, hard=hard)


def resources(limits: Resources) -> pb.LinuxResources:
    """Limits, those that are set."""
    found = pb.LinuxResources(
        hugepage_limits=[pb.HugepageLimit(page_size=s, limit=limit) for s, limit in limits.hugepage_limits],
        unified=dict(limits.unified),
    )
    if limits.memory_limit:
        found.memory.limit.value = limits.memory_limit
    if limits.swap_limit:
        found.memory.swap.value = limits.swap_limit
    if limits.cpu_shares:
        found.cpu.shares.value = limits.cpu_shares
    if limits.cpu_quota:
        found.cpu.quota.value = limits.cpu_quota
    if limits.cpu_period:
        found.cpu.period.value = limits.cpu_period
    found.cpu.cpus, found.cpu.mems = limits.cpuset_cpus, limits.cpuset_mems
    if limits.pids_limit:
        found.pids.limit = limits.pids_limit
    return found
