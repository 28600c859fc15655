"""From a bundle to the pod and the container that the engine makes. Pure functions.

A container is a VM, unless it joins another's: by the path of a namespace of that one's process. What a
virtual machine cannot be is refused here, or by the engine where it refuses the same to a kubelet.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Mapping, Sequence

import msgspec

from orlop.bundle.document import OciConfig, OciMount, OciProcess, OciResources
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.pods import socketplaces
from orlop.pods.requests import ContainerRequest, MountRequest, SecurityRequest
from orlop.sandbox.spec import (
    MOUNT_OPTIONS,
    Device,
    ExecSpec,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Propagation,
    Resources,
    Rlimit,
    Seccomp,
    SeccompMode,
    Sink,
    Tmpfs,
    UserIds,
)

_OF_A_PROCESS = re.compile(r"/proc/(\d{1,9})/ns/\w+")
_HOST_NAMESPACES = {"network": "network", "pid": "PID", "ipc": "IPC", "mount": "mount"}
_OWN = {
    "/proc": ("proc",),
    "/sys": ("sysfs",),
    "/dev": ("tmpfs", "devtmpfs"),
    "/dev/pts": ("devpts",),
    "/dev/mqueue": ("mqueue", "bind"),
    "/dev/shm": ("tmpfs", "shm", "bind"),
    "/sys/fs/cgroup": ("cgroup", "cgroup2"),
}
"""What every container in a VM has anyway, by where and of which kind others ask for it."""

_PROPAGATIONS = {
    "shared": Propagation.BIDIRECTIONAL,
    "rshared": Propagation.BIDIRECTIONAL,
    "slave": Propagation.HOST_TO_CONTAINER,
    "rslave": Propagation.HOST_TO_CONTAINER,
}
_CALLERS_PROFILES = re.compile(
    r"containers-default-[\d.]+|(?:docker|crio|nerdctl)-default|cri-containerd\.apparmor\.d"
)
_BINDS = {"bind", "rbind"}
_PRIVILEGED = "io.podman.annotations.privileged"
_UNLIMITED = (1 << 63) - 1
_SIZE = re.compile(r"(\d{1,15})([kKmMgG]?)")
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30}
_NO_DEVICES = ("/dev/console", "/dev/ptmx", "/dev/pts/ptmx")


def joined(config: OciConfig) -> dict[str, int]:
    """The processes whose namespaces it wants to be in, by the kind of namespace."""
    found = {}
    for namespace in (config.linux.namespaces or ()) if config.linux else ():
        if match := _OF_A_PROCESS.fullmatch(namespace.path):
            found[namespace.type] = int(match[1])
    return found


def check(config: OciConfig) -> None:
    """Raise FailedPrecondition for what no virtual machine can have."""
    linux = config.linux
    kinds = {namespace.type for namespace in (linux.namespaces or ())} if linux else set()
    for kind, name in _HOST_NAMESPACES.items():
        if kind not in kinds:
            raise FailedPrecondition(f"it asks for the host's {name} namespace, which a VM does not share")
    if linux is None:
        return
    if "user" in kinds or linux.uid_mappings or linux.gid_mappings:
        raise FailedPrecondition(
            "it asks for a user namespace: the users of a VM are the VM's own already; run it without"
        )
    if linux.time_offsets:
        raise FailedPrecondition("it asks for another time since boot, which a VM does not have")
    if linux.intel_rdt is not None:
        raise FailedPrecondition("it asks for a part of the processor's cache, which a VM is not given")
    hooks = config.hooks
    if hooks is not None and (hooks.create_container or hooks.start_container):
        raise FailedPrecondition(
            "it asks for createContainer or startContainer hooks: they run in namespaces that are in the VM"
        )


def is_bind(mount: OciMount) -> bool:
    """Whether a mount shows a path of the host."""
    return mount.type in _BINDS or bool(_BINDS & set(mount.options or ()))


def pod(config: OciConfig, container_id: str, root: str, *, netns: str, cgroup: str, front: str) -> PodSpec:
    """The VM of a container that joins no other. ``root`` is what a caller's containers have in common."""
    sysctls = dict(config.linux.sysctl or {}) if config.linux else {}
    return PodSpec(
        id="",
        name=container_id[:253],
        namespace=root,
        uid=container_id,
        hostname=config.hostname[:64],
        netns=netns,
        sysctls=sysctls,
        cgroup_parent=cgroup,
        namespaces=Namespaces(pid=NamespaceMode.CONTAINER),
        handler="vm",
        front=front,
    )


def container(
    config: OciConfig,
    container_id: str,
    bundle: str,
    *,
    pod_id: str,
    sink: Sink,
    stdin: bool,
    target: str,
    annotations: Mapping[str, str],
) -> ContainerRequest:
    """The container; ``target`` is the one whose processes it sees, if not only its own.

    ``annotations`` are the front's own, beside those of the document that the engine reads.
    """
    process = config.process
    if process is None or not process.args:
        raise InvalidArgument("config.json: it names no process to run")
    assert config.root is not None
    security = _security(config, process)
    return ContainerRequest(
        pod_id=pod_id,
        name=container_id,
        directory=posixpath.normpath(posixpath.join(bundle, config.root.path)),
        command=process.args,
        env=environment(process.env or ()),
        cwd=process.cwd,
        mounts=tuple(_mounts(config.mounts or (), bundle)),
        devices=tuple(_devices(config)),
        tty=process.terminal,
        stdin=stdin,
        stdin_once=stdin,
        sink=sink,
        rlimits=tuple(
            Rlimit(
                name=limit.type.removeprefix("RLIMIT_"),
                soft=-1 if limit.soft > _UNLIMITED else limit.soft,
                hard=-1 if limit.hard > _UNLIMITED else limit.hard,
            )
            for limit in process.rlimits or ()
        ),
        annotations={**_wishes(config), **annotations},
        resources=_with_score(limits_of(config), process),
        security=security,
        namespaces=Namespaces(
            pid=NamespaceMode.TARGET if target else NamespaceMode.CONTAINER, target_container=target
        ),
    )


def command(process: OciProcess, *, stdin: bool) -> ExecSpec:
    """One more process in a container."""
    if not process.args:
        raise InvalidArgument("the process to run has no arguments")
    user, size = process.user, process.console_size
    return ExecSpec(
        args=process.args,
        tty=process.terminal,
        stdin=stdin,
        width=size.width if size else 0,
        height=size.height if size else 0,
        env=environment(process.env or ()),
        cwd=process.cwd,
        user=UserIds(uid=user.uid, gid=user.gid, groups=user.additional_gids or ()),
    )


def environment(entries: Sequence[str]) -> tuple[tuple[str, bytes], ...]:
    """``NAME=value`` each; one without a value is left out, as the kernel would not."""
    pairs = (entry.partition("=") for entry in entries)
    return tuple((name, os.fsencode(value)) for name, sign, value in pairs if name and sign)


def limits_of(config: OciConfig) -> Resources:
    """The limits of a container."""
    return resources(config.linux.resources if config.linux else None)


def resources(asked: OciResources | None) -> Resources:
    """The limits. Those of devices are the VM's own."""
    if asked is None:
        return Resources()
    cpu, memory = asked.cpu, asked.memory
    return Resources(
        cpu_period=(cpu.period or 0) if cpu else 0,
        cpu_quota=(cpu.quota or 0) if cpu else 0,
        cpu_shares=(cpu.shares or 0) if cpu else 0,
        cpuset_cpus=cpu.cpus if cpu else "",
        cpuset_mems=cpu.mems if cpu else "",
        memory_limit=(memory.limit or 0) if memory else 0,
        swap_limit=(memory.swap or 0) if memory else 0,
        pids_limit=asked.pids.limit if asked.pids else 0,
        hugepage_limits=tuple((page.page_size, page.limit) for page in asked.hugepage_limits or ()),
        unified=tuple((asked.unified or {}).items()),
    )


def _with_score(limits: Resources, process: OciProcess) -> Resources:
    return msgspec.structs.replace(limits, oom_score_adj=process.oom_score_adj or 0)


def _security(config: OciConfig, process: OciProcess) -> SecurityRequest:
    linux, capabilities = config.linux, process.capabilities
    profile = process.apparmor_profile
    if _CALLERS_PROFILES.fullmatch(profile):
        profile = ""  # what a caller puts around each container: here the VM is around it
    assert config.root is not None
    bounding = (capabilities.bounding or capabilities.effective or ()) if capabilities else ()
    seccomp = Seccomp()
    if linux is not None and bytes(linux.seccomp) not in (b"", b"null"):
        seccomp = Seccomp(mode=SeccompMode.GIVEN, profile=bytes(linux.seccomp).decode())
    return SecurityRequest(
        user_id=process.user.uid,
        group_id=process.user.gid,
        supplemental_groups=process.user.additional_gids or (),
        strict_groups=True,
        drop_capabilities=("ALL",),
        add_capabilities=bounding,
        ambient_capabilities=(capabilities.ambient or ()) if capabilities else (),
        privileged=_is_privileged(config),
        no_new_privs=process.no_new_privileges,
        read_only_root=config.root.readonly,
        masked_paths=(linux.masked_paths or ()) if linux else (),
        read_only_paths=(linux.readonly_paths or ()) if linux else (),
        seccomp=seccomp,
        apparmor=profile,
    )


def _wishes(config: OciConfig) -> dict[str, str]:
    """Annotations of its caller that the engine reads."""
    return {key: text for key, text in (config.annotations or {}).items() if key == socketplaces.ANNOTATION}


def _is_privileged(config: OciConfig) -> bool:
    """Whether it may do all that the VM's root may.

    Its caller has put the host's devices into the document then, whichever they are: it gets the VM's.
    """
    return (config.annotations or {}).get(_PRIVILEGED, "").lower() == "true"


def _devices(config: OciConfig) -> list[Device]:
    if _is_privileged(config):
        return []
    wanted = (config.linux.devices or ()) if config.linux else ()
    return [
        Device(host_path=device.path, container_path=device.path)
        for device in wanted
        if device.path not in _NO_DEVICES
    ]


def _mounts(mounts: Sequence[OciMount], bundle: str) -> list[MountRequest]:
    found = []
    for mount in mounts:
        target = posixpath.normpath(posixpath.join("/", mount.destination))
        options = mount.options or ()
        kind = "bind" if is_bind(mount) else mount.type
        if kind in _OWN.get(target, ()):
            continue
        if kind == "bind":
            found.append(_bind(mount, target, bundle))
        elif kind == "tmpfs":
            found.append(_tmpfs(target, options))
        else:
            raise FailedPrecondition(f"mount {target}: a VM does not mount file systems of type {kind!r}")
    return found


def _bind(mount: OciMount, target: str, bundle: str) -> MountRequest:
    options = set(mount.options or ())
    if mount.uid_mappings or options & {"idmap", "ridmap"}:
        raise FailedPrecondition(f"mount {target}: a VM does not map the owners of volumes")
    return MountRequest(
        container_path=target,
        host_path=posixpath.normpath(posixpath.join(bundle, mount.source)),
        read_only=bool(options & {"ro", "rro"}),
        recursive_read_only="rro" in options,
        propagation=next(
            (_PROPAGATIONS[one] for one in options if one in _PROPAGATIONS), Propagation.PRIVATE
        ),
        options=tuple(one for one in MOUNT_OPTIONS if one in options),
    )


def _tmpfs(target: str, options: Sequence[str]) -> MountRequest:
    named = dict(option.split("=", 1) for option in options if "=" in option)
    size, mode = _SIZE.fullmatch(named.get("size", "0")), named.get("mode", "1777")
    if size is None or not re.fullmatch("[0-7]{1,5}", mode):
        raise InvalidArgument(f"mount {target}: a tmpfs of size {named.get('size')!r} and mode {mode!r}")
    return MountRequest(
        container_path=target,
        tmpfs=Tmpfs(size=int(size[1]) << _UNITS[size[2].lower()], mode=int(mode, 8)),
        read_only="ro" in options,
        options=tuple(one for one in MOUNT_OPTIONS if one in options),
    )
