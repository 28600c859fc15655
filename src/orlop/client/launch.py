"""What to run, and how that is said in CRI."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

from orlop.client.health import CHECK
from orlop.client.session import NAMESPACE, RUN_LABEL
from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.errors import InvalidArgument

LOG_ROOT = "/var/log/orlop"

STOP_TIMEOUT = "io.orlop.cli/stop-timeout"
"""Annotation of a container: the seconds that it has to end when it is stopped."""
LIMITS = "rlimits.orlop.io/container."
TMPFS = "tmpfs.orlop.io/mounts"
REMOVAL = "removal.orlop.io/when-ended"
RESTART = "restart.orlop.io/policy"
SOCKETS = "volumes.orlop.io/sockets"
"""Annotations that the daemon reads, since CRI has no words for these: see docs/cri.md."""


@dataclass(frozen=True)
class NamedMount:
    """A named volume in a container."""

    volume: str
    container_path: str
    read_only: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class SocketMount:
    """A directory of this machine that is there for sockets which containers bind."""

    mount: pb.Mount


@dataclass(frozen=True)
class MemoryMount:
    """Memory as a volume. ``size`` in bytes is 0 for the kernel's default."""

    container_path: str
    size: int = 0
    mode: int = 0o1777
    read_only: bool = False
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class RunOptions:
    """A pod with one container. "", 0 and () leave a thing to the image or to the daemon.

    ``memory`` is in bytes, ``cpus`` a number of processors. ``user`` is a name or a number, with a number
    as its group after a colon. ``interactive`` keeps stdin open. ``hostname`` is the pod's name if it is "".
    ``hosts`` are names with addresses for its /etc/hosts. ``ulimits`` are texts such as ``NOFILE=1024:2048``,
    ``stop_timeout`` seconds, None for the usual ones. ``health`` is a wish as
    :func:`orlop.client.health.wish` writes it, "" for no health check. With ``remove`` the daemon removes
    the container when it has ended, and the pod that is there for it alone. ``restart``, as
    :meth:`orlop.client.restarts.RestartPolicy.wish` writes it, has the daemon run it again.
    """

    image: str
    command: tuple[str, ...] = ()
    interactive: bool = False
    tty: bool = False
    ports: tuple[pb.PortMapping, ...] = ()
    volumes: tuple[pb.Mount | SocketMount | NamedMount | MemoryMount, ...] = ()
    environment: tuple[pb.KeyValue, ...] = ()
    memory: int = 0
    cpus: float = 0.0
    name: str = ""
    handler: str = ""
    workdir: str = ""
    user: str = ""
    entrypoint: str = ""
    host_network: bool = False
    privileged: bool = False
    read_only: bool = False
    hostname: str = ""
    dns: pb.DNSConfig | None = None
    capabilities: pb.Capability | None = None
    labels: dict[str, str] = field(default_factory=dict)
    hosts: tuple[tuple[str, str], ...] = ()
    ulimits: tuple[str, ...] = ()
    pids: int = 0
    cpu_shares: int = 0
    groups: tuple[int, ...] = ()
    devices: tuple[pb.Device, ...] = ()
    sysctls: dict[str, str] = field(default_factory=dict)
    stop_signal: pb.Signal.ValueType = pb.SIGNAL_RUNTIME_DEFAULT
    stop_timeout: int | None = None
    no_new_privileges: bool = False
    seccomp: pb.SecurityProfile | None = None
    health: str = ""
    remove: bool = False
    restart: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidArgument for a user that CRI cannot name."""
        _, _, group = self.user.partition(":")
        if group and not group.isdecimal():
            raise InvalidArgument(f"the user {self.user}: its group must be a number")


def log_root() -> Path:
    """Where the logs of pods made by ``run`` go; ``$ORLOP_LOG_ROOT`` chooses another place."""
    return Path(os.environ.get("ORLOP_LOG_ROOT") or LOG_ROOT)


def log_directory(name: str, uid: str) -> str:
    """Where a pod made by ``run`` has its logs."""
    return os.fspath(log_root() / f"{name}_{uid}")


def resources(launch: RunOptions) -> pb.LinuxContainerResources:
    """Limits as CRI has them."""
    limits = pb.LinuxContainerResources()
    limits.memory_limit_in_bytes = launch.memory
    if launch.cpus > 0:
        limits.cpu_period = 100_000
        limits.cpu_quota = int(launch.cpus * 100_000)
        limits.cpu_shares = max(2, int(launch.cpus * 1024))
    if launch.cpu_shares:
        limits.cpu_shares = launch.cpu_shares
    return limits


def pod_config(launch: RunOptions, name: str, uid: str) -> pb.PodSandboxConfig:
    """The pod of a run."""
    config = pb.PodSandboxConfig(
        metadata=pb.PodSandboxMetadata(name=name, uid=uid, namespace=NAMESPACE),
        hostname="" if launch.host_network else launch.hostname or name,
        log_directory=log_directory(name, uid),
        labels={RUN_LABEL: name, **launch.labels},
    )
    config.port_mappings.extend(launch.ports)
    if launch.dns is not None:
        config.dns_config.CopyFrom(launch.dns)
    config.linux.resources.CopyFrom(resources(launch))
    config.linux.sysctls.update(launch.sysctls)
    context = config.linux.security_context
    context.privileged = launch.privileged
    if launch.host_network:
        context.namespace_options.network = pb.NODE
    return config


def container_config(launch: RunOptions, name: str, *, alone: bool) -> pb.ContainerConfig:
    """A container, but for the id of its image and its named volumes; ``alone`` when the pod is there for it,
    and goes with it."""
    config = pb.ContainerConfig(
        metadata=pb.ContainerMetadata(name=name),
        image=pb.ImageSpec(user_specified_image=launch.image),
        command=[launch.entrypoint] if launch.entrypoint else [],
        args=launch.command,
        working_dir=launch.workdir,
        labels={**({RUN_LABEL: name} if alone else {}), **launch.labels},
        annotations=_annotations(launch, name),
        stop_signal=launch.stop_signal,
        devices=launch.devices,
        log_path=f"{name}.log",
        stdin=launch.interactive,
        stdin_once=launch.interactive,
        tty=launch.tty,
    )
    config.envs.extend(launch.environment)
    binds = (one.mount if isinstance(one, SocketMount) else one for one in launch.volumes)
    config.mounts.extend(one for one in binds if isinstance(one, pb.Mount))
    config.linux.resources.CopyFrom(resources(launch))
    if launch.pids:
        # CRI has no number for it, but for the files of control groups.
        config.linux.resources.unified["pids.max"] = str(launch.pids)
    context = config.linux.security_context
    context.privileged = launch.privileged
    context.readonly_rootfs = launch.read_only
    if launch.capabilities is not None:
        context.capabilities.CopyFrom(launch.capabilities)
    context.no_new_privs = launch.no_new_privileges
    context.supplemental_groups.extend(launch.groups)
    context.seccomp.profile_type = pb.SecurityProfile.RuntimeDefault
    if launch.seccomp is not None:
        context.seccomp.CopyFrom(launch.seccomp)
    if launch.host_network:
        context.namespace_options.network = pb.NODE
    _set_user(context, launch.user)
    return config


def _annotations(launch: RunOptions, name: str) -> dict[str, str]:
    found = {}
    if launch.ulimits:
        found[LIMITS + name] = ",".join(launch.ulimits)
    memory = [one for one in launch.volumes if isinstance(one, MemoryMount)]
    if memory:
        found[TMPFS] = json.dumps(
            [
                {
                    "path": one.container_path,
                    "size": one.size,
                    "mode": one.mode,
                    "read_only": one.read_only,
                    "options": one.options,
                }
                for one in memory
            ]
        )
    places = [one.mount.container_path for one in launch.volumes if isinstance(one, SocketMount)]
    if places:
        found[SOCKETS] = ",".join(places)
    if launch.health:
        found[CHECK] = launch.health
    if launch.remove:
        found[REMOVAL] = "true"
    if launch.restart:
        found[RESTART] = launch.restart
    if launch.stop_timeout is not None:
        found[STOP_TIMEOUT] = str(launch.stop_timeout)
    return found


def _set_user(context: pb.LinuxContainerSecurityContext, user: str) -> None:
    if not user:
        return
    who, _, group = user.partition(":")
    if who.isdecimal():
        context.run_as_user.value = int(who)
    else:
        context.run_as_username = who
    if group:
        context.run_as_group.value = int(group)
