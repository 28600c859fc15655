"""From what pods ask for to what the guest's agent is told. Pure functions.

What only the host can know (device numbers, paths on the share, the compiled system-call filter)
comes in as arguments; nothing of the host but that gets into a message.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from orlop.sandbox.spec import (
    ContainerSpec,
    Device,
    Dns,
    IdMapping,
    Mount,
    NamespaceMode,
    PodSpec,
    Propagation,
    Resources,
)
from orlop.sandbox.vm.blockdevices import HostDevice, disk_id
from orlop.sandbox.vm.files import ContainerFile, HostDirectory
from orlop.sandbox.vm.sockets import FoundSocket
from orlop.wire import values as wire

_SHARES = (2, 262144)
_WEIGHTS = (1, 10000)
_PROPAGATION: dict[Propagation, Literal["private", "rslave", "rshared"]] = {
    Propagation.PRIVATE: "private",
    Propagation.HOST_TO_CONTAINER: "rslave",
    Propagation.BIDIRECTIONAL: "rshared",
}


@dataclass(frozen=True)
class Plugged:
    """What was attached for a container: disks, and by the container's path those on the share, ids of image
    volumes, and volumes that the guest holds, with the sub-path. ``devices`` are those of the host that are
    disks, by the disk's id.

    ``root_is_own`` says that the host has another mount of what the root is made of.

    ``loose`` are volumes that are read-only at the top, with a mount below them that may be written: the host
    has made the top read-only, and the guest, to which all of it is one file system, must not.
    """

    disks: wire.Disks
    shares: dict[str, str] = field(default_factory=dict)
    root: str = ""
    root_is_own: bool = False
    volumes: dict[str, str] = field(default_factory=dict)
    held: dict[str, tuple[str, str]] = field(default_factory=dict)
    devices: dict[str, HostDevice] = field(default_factory=dict)
    loose: frozenset[str] = frozenset()
    sockets: tuple[FoundSocket, ...] = ()
    directories: tuple[HostDirectory, ...] = ()

    def recorded(self, plan: ContainerFile) -> ContainerFile:
        """The plan with what came of it, as it is kept on disk."""
        sockets = tuple(one.held for one in self.sockets)
        return msgspec.structs.replace(plan, disks=self.disks, sockets=sockets, directories=self.directories)


def container(
    spec: ContainerSpec, plugged: Plugged, *, streams: wire.Streams, seccomp: bytes, seccomp_flags: int
) -> wire.Container:
    """The container for the agent."""
    return wire.Container(
        id=spec.id,
        disks=plugged.disks,
        root=plugged.root,
        root_is_own=plugged.root_is_own,
        args=spec.args,
        env=tuple((name, value) for name, value in spec.env if name),
        cwd=spec.cwd or "/",
        hostname=spec.hostname,
        mounts=_mounts(spec, plugged),
        devices=tuple(_device(device, plugged) for device in spec.devices),
        tty=spec.tty,
        streams=streams,
        resources=resources(spec.resources),
        security=_security(spec, seccomp, seccomp_flags),
        namespaces=_namespaces(spec),
    )


def resources(limits: Resources) -> wire.GuestLimits:
    """Limits in cgroup v2 terms.

    Processor sets name the host's processors, not the guest's, so they are not among them.
    """
    swap = 0
    if limits.swap_limit < 0:
        swap = -1
    elif limits.swap_limit > 0 and limits.memory_limit > 0:
        # CRI counts memory and swap together, cgroup v2 swap alone; 0 means "leave" on the wire.
        swap = max(limits.swap_limit - limits.memory_limit, 1)
    return wire.GuestLimits(
        cpu_weight=cpu_weight(limits.cpu_shares),
        cpu_quota_us=max(limits.cpu_quota, -1),
        cpu_period_us=limits.cpu_period,
        memory_max=max(limits.memory_limit, -1),
        memory_swap_max=swap,
        pids_max=max(limits.pids_limit, -1),
        unified=limits.unified,
    )


def cpu_weight(shares: int) -> int:
    """cgroup v1 ``cpu.shares`` as cgroup v2 ``cpu.weight``; 0 stays 0."""
    if shares <= 0:
        return 0
    low, high = _SHARES
    first, last = _WEIGHTS
    shares = min(max(shares, low), high)
    return first + (shares - low) * (last - first) // (high - low)


def resolv_conf(dns: Dns, node: str) -> str:
    """The pod's /etc/resolv.conf; ``node`` is the host's, for a pod that says nothing."""
    if not (dns.servers or dns.searches or dns.options):
        return node
    lines = [f"nameserver {server}" for server in dns.servers]
    if dns.searches:
        lines.insert(0, f"search {' '.join(dns.searches)}")
    if dns.options:
        lines.append(f"options {' '.join(dns.options)}")
    return "\n".join(lines) + "\n"


def hosts(hostname: str, addresses: tuple[str, ...]) -> str:
    """The pod's /etc/hosts."""
    lines = [
        "127.0.0.1\tlocalhost",
        "::1\tlocalhost ip6-localhost ip6-loopback",
        "fe00::0\tip6-localnet",
        "ff00::0\tip6-mcastprefix",
        "ff02::1\tip6-allnodes",
        "ff02::2\tip6-allrouters",
    ]
    lines += [f"{address}\t{hostname}" for address in addresses]
    return "\n".join(lines) + "\n"


def hostname_of(spec: PodSpec) -> str:
    """The pod's host name: what was asked for, or its name, within the kernel's 64 bytes."""
    return spec.hostname or spec.name[:64].rstrip("-.") or "pod"


def _device(device: Device, plugged: Plugged) -> wire.GuestDevice:
    found = plugged.devices.get(disk_id(device))
    if found is not None:
        return found.shown(device)
    return wire.GuestDevice(path=device.container_path, source=device.host_path, access=device.permissions)


def _mounts(spec: ContainerSpec, plugged: Plugged) -> tuple[wire.GuestMount, ...]:
    own = {one.target for one in plugged.sockets}
    sockets = (
        wire.GuestMount(
            target=one.target, kind="socket", volume=one.held.id, mode=one.mode, uid=one.uid, gid=one.gid
        )
        for one in plugged.sockets
    )
    return *(_mount(mount, plugged) for mount in spec.mounts if mount.container_path not in own), *sockets


def _mount(mount: Mount, plugged: Plugged) -> wire.GuestMount:
    if mount.image is not None:
        return wire.GuestMount(
            target=mount.container_path,
            kind="image",
            source=mount.image.sub_path.strip("/"),
            volume=plugged.volumes[mount.container_path],
            read_only=True,
            options=mount.options,
        )
    if mount.tmpfs is not None:
        return wire.GuestMount(
            target=mount.container_path,
            kind="tmpfs",
            size=mount.tmpfs.size,
            mode=mount.tmpfs.mode,
            read_only=mount.read_only,
            options=tuple(sorted({"nosuid", "nodev", *mount.options})),
        )
    if mount.container_path in plugged.held:
        volume, below = plugged.held[mount.container_path]
        return wire.GuestMount(
            target=mount.container_path,
            kind="volume",
            volume=volume,
            source=below,
            read_only=mount.read_only,
            recursive_read_only=mount.recursive_read_only,
            propagation=_PROPAGATION[mount.propagation],
        )
    return wire.GuestMount(
        target=mount.container_path,
        kind="share",
        source=plugged.shares[mount.container_path],
        read_only=mount.read_only and mount.container_path not in plugged.loose,
        recursive_read_only=mount.recursive_read_only,
        propagation=_PROPAGATION[mount.propagation],
        options=mount.options,
    )


def _security(spec: ContainerSpec, seccomp: bytes, flags: int) -> wire.GuestSecurity:
    security, limits = spec.security, spec.resources
    return wire.GuestSecurity(
        user=security.user,
        group=security.group,
        supplemental_groups=security.supplemental_groups,
        strict_groups=security.strict_groups,
        bounding=security.capabilities,
        effective=security.capabilities,
        ambient=security.ambient,
        no_new_privs=security.no_new_privs,
        privileged=security.privileged,
        read_only_root=security.read_only_root,
        masked_paths=security.masked_paths,
        read_only_paths=security.read_only_paths,
        seccomp=seccomp,
        seccomp_flags=flags,
        rlimits=tuple(
            wire.GuestRlimit(name=limit.name, soft=limit.soft, hard=limit.hard) for limit in spec.rlimits
        ),
        oom_score_adj=min(max(limits.oom_score_adj, -1000), 1000),
    )


def _namespaces(spec: ContainerSpec) -> wire.GuestNamespaces:
    mode = spec.namespaces.pid
    return wire.GuestNamespaces(
        pid={NamespaceMode.POD: "pod", NamespaceMode.TARGET: "target"}.get(mode, "container"),  # type: ignore[arg-type]
        target=spec.namespaces.target_container if mode is NamespaceMode.TARGET else "",
        uid_mappings=_mappings(spec.namespaces.uid_mappings),
        gid_mappings=_mappings(spec.namespaces.gid_mappings),
    )


def _mappings(mappings: tuple[IdMapping, ...]) -> tuple[wire.IdRange, ...]:
    return tuple(
        wire.IdRange(inner=entry.container_id, outer=entry.host_id, length=entry.length) for entry in mappings
    )
