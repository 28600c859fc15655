"""What a pod and its containers are to be: the values that cross from ``pods`` into a sandbox.

Nothing here knows CRI, a hypervisor or an OCI runtime. All of it is immutable and plain data, so that
the journal can keep it as JSON (msgspec) and a daemon that was killed can read it back.
Sizes are bytes and times are nanoseconds since the epoch unless a name says otherwise.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Literal, get_args

import msgspec

from orlop.value import Value


class NamespaceMode(StrEnum):
    """Whose namespace a pod or container lives in (CRI ``NamespaceMode``)."""

    POD = "pod"
    CONTAINER = "container"
    NODE = "node"
    TARGET = "target"


class Propagation(StrEnum):
    """How mounts below a volume travel between host and container."""

    PRIVATE = "private"
    HOST_TO_CONTAINER = "rslave"
    BIDIRECTIONAL = "rshared"


class SeccompMode(StrEnum):
    """Which system-call filter a container runs under."""

    UNCONFINED = "unconfined"
    RUNTIME_DEFAULT = "runtime-default"
    LOCALHOST = "localhost"
    GIVEN = "given"


class Seccomp(Value, frozen=True):
    """A seccomp choice; ``path`` is the host's profile file for LOCALHOST, ``profile`` the text for GIVEN."""

    mode: SeccompMode = SeccompMode.UNCONFINED
    path: str = ""
    profile: str = ""


class IdMapping(Value, frozen=True):
    """One range of a user namespace."""

    container_id: int
    host_id: int
    length: int


class Namespaces(Value, frozen=True):
    """The namespaces of a pod, or of a container in it."""

    network: NamespaceMode = NamespaceMode.POD
    pid: NamespaceMode = NamespaceMode.CONTAINER
    ipc: NamespaceMode = NamespaceMode.POD
    target_container: str = ""
    user: NamespaceMode = NamespaceMode.NODE
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class Dns(Value, frozen=True):
    """What goes into /etc/resolv.conf; all empty means the node's own file."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class PortMapping(Value, frozen=True):
    """A port of the host that leads to one of the pod. ``host_port`` is never 0 here."""

    protocol: str
    container_port: int
    host_port: int
    host_ip: str = ""


class Resources(Value, frozen=True):
    """Limits of a container or the sum for a pod. 0 means no limit was asked for."""

    cpu_period: int = 0
    cpu_quota: int = 0
    cpu_shares: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    memory_limit: int = 0
    swap_limit: int = 0
    oom_score_adj: int = 0
    pids_limit: int = 0
    hugepage_limits: tuple[tuple[str, int], ...] = ()
    unified: tuple[tuple[str, str], ...] = ()


class PodSpec(Value, frozen=True):
    """A pod sandbox as asked for.

    ``netns`` is the path of a network namespace that somebody else made, with its interface and
    addresses, and that outlives the pod; "" lets the CNI plug-ins set up a new one. ``front`` is whose
    pod it is: "" is CRI, which does not list those of others.
    """

    id: str
    name: str
    namespace: str
    uid: str
    attempt: int = 0
    hostname: str = ""
    log_directory: str = ""
    dns: Dns = Dns()
    port_mappings: tuple[PortMapping, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    cgroup_parent: str = ""
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)
    namespaces: Namespaces = Namespaces()
    privileged: bool = False
    seccomp: Seccomp = Seccomp()
    apparmor: str = ""
    selinux_label: str = ""
    read_only_root: bool = False
    overhead: Resources = Resources()
    resources: Resources = Resources()
    handler: str = "vm"
    netns: str = ""
    front: str = ""


class ImageVolume(Value, frozen=True):
    """An OCI image mounted as a read-only volume: its layers, bottom first, as EROFS files.

    ``reference`` is the image as it was asked for, ``image_ref`` its repository digest (or its id).
    """

    image_id: str
    layers: tuple[str, ...]
    sub_path: str = ""
    reference: str = ""
    image_ref: str = ""


class Tmpfs(Value, frozen=True):
    """Memory as a volume: ``size`` in bytes (0: the kernel's default), ``mode`` of its root directory."""

    size: int = 0
    mode: int = 0o1777


MountOption = Literal["nodev", "noexec", "nosuid"]
MOUNT_OPTIONS: tuple[MountOption, ...] = get_args(MountOption)
"""What a volume can be forbidden besides writing."""


class Mount(Value, frozen=True):
    """A volume: one of the three. ``host_path`` is absolute and existed when the request came.

    With ``sockets`` it is there for sockets that containers bind: under ``vm``, if it may be written to, it
    is the pod's own directory then, of whose content the host has the sockets alone.
    """

    container_path: str
    host_path: str = ""
    image: ImageVolume | None = None
    tmpfs: Tmpfs | None = None
    read_only: bool = False
    recursive_read_only: bool = False
    propagation: Propagation = Propagation.PRIVATE
    selinux_relabel: bool = False
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    options: tuple[MountOption, ...] = ()
    sockets: bool = False


class Device(Value, frozen=True):
    """A device node of the host to show in the container; ``permissions`` of ``rwm``.

    ``mode``, ``uid`` and ``gid`` are those of the host's node unless they are given.
    """

    host_path: str
    container_path: str
    permissions: str = "rwm"
    mode: int | None = None
    uid: int | None = None
    gid: int | None = None


class Hook(Value, frozen=True):
    """A program of the host that an OCI runtime runs at ``moment`` of a container's life.

    ``moment`` is the name that ``hooks`` of the OCI runtime specification has for it, ``timeout`` in seconds
    (0: none).
    """

    moment: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int = 0


class Namespace(Value, frozen=True):
    """One of a container's namespaces as somebody else wants it: ``kind`` as OCI calls it, the one at
    ``path``, a new one for "", or with ``of_host`` the host's."""

    kind: str
    path: str = ""
    of_host: bool = False


class OnHost(Value, frozen=True):
    """What only a container whose processes are the host's can have. ``cgroup`` is the absolute path of
    its control group, "" for one below its pod's; ``sysctls`` are those of its namespaces."""

    hooks: tuple[Hook, ...] = ()
    namespaces: tuple[Namespace, ...] = ()
    cgroup: str = ""
    sysctls: dict[str, str] = msgspec.field(default_factory=dict)


class Security(Value, frozen=True):
    """What the container's processes may do.

    ``capabilities`` is the final effective set without the ``CAP_`` prefix, upper case (the
    default set, with additions and drops already applied; all of them when privileged), and
    ``ambient`` those raised as ambient. ``user`` is a uid or a name looked up in the
    container's own /etc/passwd; ``group`` a gid or "". ``strict_groups`` ignores /etc/group.
    """

    user: str = ""
    group: str = ""
    supplemental_groups: tuple[int, ...] = ()
    strict_groups: bool = False
    capabilities: tuple[str, ...] = ()
    ambient: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privs: bool = False
    read_only_root: bool = False
    masked_paths: tuple[str, ...] = ()
    read_only_paths: tuple[str, ...] = ()
    seccomp: Seccomp = Seccomp()
    apparmor: str = ""
    selinux_label: str = ""


class Root(Value, frozen=True):
    """A container's root file system: one of the two.

    ``layers`` are EROFS files on the host, bottom first, below what the container writes, which goes with
    it. ``directory`` is the absolute path of a directory of the host that is the root itself, and stays.
    """

    layers: tuple[str, ...] = ()
    directory: str = ""


class Sink(Value, frozen=True):
    """Where the output of a container's first process goes, besides to whoever is attached: to nobody, to
    the CRI log file ``log``, or as it is to ``stdout`` and ``stderr``.

    Those are absolute paths: of a file, which is made and appended to, of a FIFO or of a device. A
    descriptor that a process has open is such a path too, ``/proc/PID/fd/N``; its process must live until
    the container is made. ``since`` is when that began (clock ticks since boot), where it must not be
    another one of the same number.
    """

    log: str = ""
    stdout: str = ""
    stderr: str = ""
    since: int = 0

    @property
    def raw(self) -> bool:
        """Whether output goes somewhere as it is."""
        return bool(self.stdout or self.stderr)


class Rlimit(Value, frozen=True):
    """A limit of setrlimit(2) by its name without ``RLIMIT_``, such as NOFILE; -1 is infinity."""

    name: str
    soft: int
    hard: int


class ContainerSpec(Value, frozen=True):
    """A container as asked for, with its image resolved.

    ``args`` is never empty. ``env`` values are bytes because CRI allows values that are not UTF-8.
    """

    id: str
    pod_id: str
    name: str
    attempt: int = 0
    image_id: str = ""
    root: Root = Root()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, bytes], ...] = ()
    cwd: str = "/"
    hostname: str = ""
    mounts: tuple[Mount, ...] = ()
    devices: tuple[Device, ...] = ()
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    sink: Sink = Sink()
    resources: Resources = Resources()
    rlimits: tuple[Rlimit, ...] = ()
    security: Security = Security()
    namespaces: Namespaces = Namespaces()
    stop_signal: int = 15
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    on_host: OnHost = OnHost()


class UserIds(Value, frozen=True):
    """Who a container's first process runs as; ``groups`` as id(1) has them, the primary one included."""

    uid: int
    gid: int = 0
    groups: tuple[int, ...] = ()


class ExecSpec(Value, frozen=True):
    """A further process in a running container; it inherits the container's env, cwd and security.

    ``width`` and ``height`` of its terminal are those that it begins with, in character cells, if known.
    ``env`` is its whole environment, ``cwd`` its directory and ``user`` who it is, where they are given.
    """

    args: tuple[str, ...]
    tty: bool = False
    stdin: bool = False
    width: int = 0
    height: int = 0
    env: tuple[tuple[str, bytes], ...] = ()
    cwd: str = ""
    user: UserIds | None = None


class ExitStatus(Value, frozen=True):
    """How a process ended. ``code`` is 128 + signal for a death by signal, as shells count.

    ``message`` is empty unless the process was lost: then nobody knows how it ended, and it says why.
    """

    code: int
    finished_at: int
    oom_killed: bool = False
    message: str = ""
