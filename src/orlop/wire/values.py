"""The values inside messages: what the guest's side of a pod is made of.

Sizes are bytes, times nanoseconds since the epoch, unless a name says otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from orlop.wire.codec import AbsolutePath, Length, Range, RelativePath

Id = Annotated[str, Length(1, 128)]
Name = Annotated[str, Length(1, 256)]
Path = Annotated[str, AbsolutePath(), Length(1, 4096)]
Below = Annotated[str, RelativePath(), Length(0, 4096)]
Text = Annotated[str, Length(0, 1 << 20)]
StreamId = Annotated[int, Range(0, (1 << 24) - 1)]
SignalNumber = Annotated[int, Range(1, 64)]
UserId = Annotated[int, Range(0, (1 << 32) - 2)]
Limit = Annotated[int, Range(-1, (1 << 63) - 1)]
Cells = Annotated[int, Range(0, 65535)]
Mac = Annotated[str, Length(17, 17)]
Address = Annotated[str, Length(2, 64)]
GuestAddress = Annotated[str, Length(1, 64)]
"""Where the guest finds a device: said by the hypervisor, understood by the guest's ``devices`` alone."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """A route; ``destination`` in CIDR form ("0.0.0.0/0" for the default), ``gateway`` "" for on-link.

    ``on_link`` says that the gateway is reachable though no address' subnet covers it.
    """

    destination: Address
    gateway: Annotated[str, Length(0, 64)] = ""
    source: Annotated[str, Length(0, 64)] = ""
    on_link: bool = False
    metric: Annotated[int, Range(0, 0xFFFFFFFF)] = 0


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A permanent ARP or NDP entry."""

    address: Address
    mac: Mac


@dataclass(frozen=True, kw_only=True)
class Interface:
    """A network interface of the guest: ``at`` is where it is, ``name`` what it shall be called."""

    at: GuestAddress
    name: Annotated[str, Length(1, 15)] = "eth0"
    mac: Annotated[str, Length(0, 17)] = ""
    mtu: Annotated[int, Range(0, 65535)] = 0
    addresses: Annotated[tuple[Address, ...], Length(0, 64)] = ()
    routes: Annotated[tuple[Route, ...], Length(0, 1024)] = ()
    neighbours: Annotated[tuple[Neighbour, ...], Length(0, 1024)] = ()


@dataclass(frozen=True, kw_only=True)
class PluggedDisk:
    """A disk of a VM. ``at`` is where its file systems are, bottom first; empty until it is attached."""

    id: Id
    at: Annotated[tuple[GuestAddress, ...], Length(0, 128)] = ()


@dataclass(frozen=True, kw_only=True)
class Disks:
    """A container's disks: those of its root, bottom first, the one it writes to, its image volumes', and
    those that it gets as devices.

    The one it writes to holds an ext4 file system, those of images EROFS. Without one a tmpfs is used.
    """

    root: Annotated[tuple[PluggedDisk, ...], Length(0, 128)] = ()
    scratch: PluggedDisk | None = None
    volumes: Annotated[tuple[PluggedDisk, ...], Length(0, 1024)] = ()
    devices: Annotated[tuple[PluggedDisk, ...], Length(0, 256)] = ()


@dataclass(frozen=True, kw_only=True)
class GuestMount:
    """A mount in a container.

    ``share``: ``source`` is relative to the host's share. ``image``: ``volume`` is the id of the disk with
    the image's layers, ``source`` is the sub-path, always read-only. ``tmpfs``: ``size`` bytes (0: the
    kernel's default), ``mode`` as octal digits. ``volume``: ``volume`` is the id of one that the pod holds,
    ``source`` the sub-path. ``socket``: ``volume`` is the host's word for one of its sockets, which has this
    ``mode``, ``uid`` and ``gid``.
    ``options`` are further flags: noexec, nosuid, nodev.
    """

    target: Path
    kind: Literal["share", "image", "tmpfs", "volume", "socket"]
    source: Below = ""
    volume: Annotated[str, Length(0, 128)] = ""
    read_only: bool = False
    recursive_read_only: bool = False
    propagation: Literal["private", "rslave", "rshared"] = "private"
    size: Annotated[int, Range(0, 1 << 50)] = 0
    mode: Annotated[int, Range(0, 0o7777)] = 0o1777
    uid: UserId = 0
    gid: UserId = 0
    options: Annotated[tuple[Literal["noexec", "nosuid", "nodev"], ...], Length(0, 8)] = ()


@dataclass(frozen=True, kw_only=True)
class VolumeEntry:
    """What is in a volume: ``path`` is below its root, "" the root itself; ``data`` is a file's content, and
    ``target`` where a link leads. ``modified`` is the time of its last change, 0 for now.
    """

    path: Below = ""
    kind: Literal["directory", "file", "link"] = "directory"
    mode: Annotated[int, Range(0, 0o7777)] = 0o755
    uid: UserId = 0
    gid: UserId = 0
    modified: int = 0
    data: Annotated[bytes, Length(0, 3 << 20)] = b""
    target: Annotated[str, Length(0, 4096)] = ""


@dataclass(frozen=True, kw_only=True)
class FileSystem:
    """A file system on a disk that somebody else has made and goes on to use: all of it is the volume.

    ``options`` are as mount(8) has them. All in it is to be of ``group``, unless
    ``only_root`` and its root is.
    """

    kind: Literal["ext4", "ext3", "ext2", "xfs"] = "ext4"
    options: Annotated[tuple[Name, ...], Length(0, 64)] = ()
    read_only: bool = False
    group: UserId | None = None
    only_root: bool = False


@dataclass(frozen=True, kw_only=True)
class BoundSocket:
    """A socket that a container has bound in a volume, and its file's mode and owner."""

    name: Annotated[str, Length(1, 255)]
    mode: Annotated[int, Range(0, 0o777)] = 0o600
    uid: UserId = 0
    gid: UserId = 0


@dataclass(frozen=True, kw_only=True)
class ShownSocket:
    """A socket of the host: its path within its directory, its file's mode and owner, and a number that
    another file of the same name does not have."""

    name: Annotated[str, Length(1, 96)]
    mode: Annotated[int, Range(0, 0o777)]
    uid: UserId
    gid: UserId
    made: int


@dataclass(frozen=True, kw_only=True)
class GuestDevice:
    """A device node to show in a container: the guest's node ``source``, or that of the disk with the id
    ``disk``, then with this mode and owner; with cgroup ``access`` of rwm."""

    path: Path
    source: Path = "/dev/null"
    disk: Annotated[str, Length(0, 128)] = ""
    access: Annotated[str, Length(1, 3)] = "rwm"
    mode: Annotated[int, Range(0, 0o777)] = 0o600
    uid: UserId = 0
    gid: UserId = 0


@dataclass(frozen=True, kw_only=True)
class IdRange:
    """One range of a user namespace; ``outer`` are the guest's own ids."""

    inner: UserId
    outer: UserId
    length: Annotated[int, Range(1, 1 << 32)]


@dataclass(frozen=True, kw_only=True)
class GuestRlimit:
    """A resource limit, by its name without ``RLIMIT_`` ("NOFILE"); -1 is infinity."""

    name: Name
    soft: Limit
    hard: Limit


@dataclass(frozen=True, kw_only=True)
class GuestLimits:
    """Limits in cgroup v2 terms. 0 leaves as it is, -1 removes the limit."""

    cpu_weight: Annotated[int, Range(0, 10000)] = 0
    cpu_quota_us: Limit = 0
    cpu_period_us: Annotated[int, Range(0, 1_000_000)] = 0
    memory_max: Limit = 0
    memory_swap_max: Limit = 0
    pids_max: Limit = 0
    unified: Annotated[tuple[tuple[Name, Annotated[str, Length(0, 4096)]], ...], Length(0, 64)] = ()


NO_LIMITS = GuestLimits()


@dataclass(frozen=True, kw_only=True)
class GuestSecurity:
    """What a container's processes may do.

    ``user`` is a uid or a name in the container's /etc/passwd ("uid:gid" or "name:group" is
    understood as well), ``group`` a gid or a name or "". Capability names come without ``CAP_``.
    The permitted set is the effective one; the inheritable set is the ambient one. ``seccomp`` is
    an array of ``struct sock_filter``.
    """

    user: Annotated[str, Length(0, 256)] = ""
    group: Annotated[str, Length(0, 256)] = ""
    supplemental_groups: Annotated[tuple[UserId, ...], Length(0, 1024)] = ()
    strict_groups: bool = False
    bounding: Annotated[tuple[Name, ...], Length(0, 64)] = ()
    effective: Annotated[tuple[Name, ...], Length(0, 64)] = ()
    ambient: Annotated[tuple[Name, ...], Length(0, 64)] = ()
    no_new_privs: bool = False
    privileged: bool = False
    read_only_root: bool = False
    masked_paths: Annotated[tuple[Path, ...], Length(0, 256)] = ()
    read_only_paths: Annotated[tuple[Path, ...], Length(0, 256)] = ()
    seccomp: Annotated[bytes, Length(0, 8 * 4096)] = b""
    seccomp_flags: Annotated[int, Range(0, 0xFF)] = 0
    rlimits: Annotated[tuple[GuestRlimit, ...], Length(0, 32)] = ()
    oom_score_adj: Annotated[int, Range(-1000, 1000)] = 0


@dataclass(frozen=True, kw_only=True)
class GuestNamespaces:
    """Which namespaces a container shares. IPC, UTS and network are the pod's, always."""

    pid: Literal["container", "pod", "target"] = "container"
    target: Annotated[str, Length(0, 128)] = ""
    uid_mappings: Annotated[tuple[IdRange, ...], Length(0, 340)] = ()
    gid_mappings: Annotated[tuple[IdRange, ...], Length(0, 340)] = ()

    @property
    def maps_users(self) -> bool:
        """Whether the container has a user namespace of its own."""
        return bool(self.uid_mappings)


@dataclass(frozen=True, kw_only=True)
class Streams:
    """Stream ids of a process; 0 for a stream it shall not have (/dev/null). A terminal has no stderr."""

    stdin: StreamId = 0
    stdout: StreamId = 0
    stderr: StreamId = 0


NO_STREAMS = Streams()
Arguments = Annotated[tuple[Text, ...], Length(1, 65536)]


@dataclass(frozen=True, kw_only=True)
class ExecUser:
    """Who an exec runs as, in the container's own numbers; ``groups`` are the further ones."""

    uid: UserId
    gid: UserId = 0
    groups: Annotated[tuple[UserId, ...], Length(0, 1024)] = ()


Environment = Annotated[tuple[tuple[Annotated[str, Length(1, 65536)], bytes], ...], Length(0, 65536)]


@dataclass(frozen=True, kw_only=True)
class Container:
    """A container as the agent makes it.

    Its root is made of ``disks``; or it is the directory ``root`` of the share, which the container writes
    to itself unless ``security`` forbids that: then what the agent makes in it goes to the scratch disk. With
    ``root_is_own`` nobody else changes what names there are in that directory.
    """

    id: Id
    disks: Disks
    root: Below = ""
    root_is_own: bool = False
    args: Arguments
    env: Environment = ()
    cwd: Path = "/"
    hostname: Annotated[str, Length(0, 64)] = ""
    mounts: Annotated[tuple[GuestMount, ...], Length(0, 1024)] = ()
    devices: Annotated[tuple[GuestDevice, ...], Length(0, 256)] = ()
    tty: bool = False
    streams: Streams = NO_STREAMS
    resources: GuestLimits = NO_LIMITS
    security: GuestSecurity = GuestSecurity()
    namespaces: GuestNamespaces = GuestNamespaces()

    def __post_init__(self) -> None:
        """Check what one field alone cannot say."""
        if bool(self.disks.root) == bool(self.root):
            raise ValueError(f"container {self.id} has no root, or two")
        volumes = {disk.id for disk in self.disks.volumes}
        devices = {disk.id for disk in self.disks.devices}
        for device in self.devices:
            if device.disk and device.disk not in devices:
                raise ValueError(f"the device at {device.path} names no disk")
        for mount in self.mounts:
            if mount.kind == "image" and mount.volume not in volumes:
                raise ValueError(f"the image mount at {mount.target} names no volume")


@dataclass(frozen=True, kw_only=True)
class Exit:
    """How a process ended; ``code`` is 128 + signal for a death by signal."""

    code: Annotated[int, Range(0, 255)]
    finished_at: int
    oom_killed: bool = False


@dataclass(frozen=True, kw_only=True)
class StreamOffsets:
    """Where a stream stands: ``received`` from the host, ``acked``..``written`` kept for it."""

    stream: StreamId
    received: int = 0
    acked: int = 0
    written: int = 0
    ended: bool = False


@dataclass(frozen=True, kw_only=True)
class ContainerState:
    """A container as the agent knows it."""

    id: Id
    status: Literal["created", "running", "stopped"]
    exit: Exit | None = None
    streams: Streams = NO_STREAMS
