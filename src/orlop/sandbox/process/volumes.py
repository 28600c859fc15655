"""The mounts of a container: what every one has, and its volumes.

Images as volumes and volumes with mapped ids are mounted below the bundle first, and from there
into the container by the runtime.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.host import cgroups, mounts, threads
from orlop.linux import syscalls as sys
from orlop.sandbox.process import selinux
from orlop.sandbox.process.layout import ContainerPaths, PodPaths
from orlop.sandbox.spec import ContainerSpec, Mount, NamespaceMode, PodSpec, Propagation, Tmpfs
from orlop.storage import rootfs
from orlop.storage.rootfs import Owners

_PROPAGATION: dict[Propagation, mounts.Propagation] = {
    Propagation.PRIVATE: "private",
    Propagation.HOST_TO_CONTAINER: "rslave",
    Propagation.BIDIRECTIONAL: "rshared",
}
ETC = ("hosts", "hostname", "resolv.conf")


def _mount(
    kind: str, target: str, options: Sequence[str] = (), source: str = "", *, writable: bool = True
) -> dict[str, Any]:
    return {
        "destination": target,
        "type": kind,
        "source": source or kind,
        "options": [*options, *(() if writable else ("ro",))],
    }


def system_mounts(pod: PodSpec, spec: ContainerSpec, paths: PodPaths) -> list[dict[str, Any]]:
    """/proc, /dev, /sys and what belongs to the pod. A volume at the same place replaces one."""
    privileged = spec.security.privileged
    hidden = ["nosuid", "noexec", "nodev"]
    host_ipc = pod.namespaces.ipc is NamespaceMode.NODE
    found = [
        _mount("proc", "/proc", hidden),
        _mount("tmpfs", "/dev", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "devpts", "/dev/pts", ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]
        ),
        _mqueue(host=host_ipc),
        _sysfs(pod, spec),
        _mount("cgroup", "/sys/fs/cgroup", [*hidden, "relatime"], writable=privileged),
        _bind("/dev/shm" if host_ipc else os.fspath(paths.shm), "/dev/shm"),
    ]
    read_only = spec.security.read_only_root
    found += [_bind(os.fspath(paths.etc / name), f"/etc/{name}", read_only=read_only) for name in ETC]
    taken = {os.path.normpath(mount.container_path) for mount in spec.mounts}
    return [entry for entry in found if entry["destination"] not in taken]


def _mqueue(*, host: bool) -> dict[str, Any]:
    if host and Path("/dev/mqueue").is_dir():
        return _bind("/dev/mqueue", "/dev/mqueue")
    return _mount("mqueue", "/dev/mqueue", ["nosuid", "noexec", "nodev"])


def _sysfs(pod: PodSpec, spec: ContainerSpec) -> dict[str, Any]:
    if pod.namespaces.user is NamespaceMode.POD and pod.namespaces.network is NamespaceMode.NODE:
        # A user namespace may not mount the sysfs of a network namespace that is not its own.
        return {
            "destination": "/sys",
            "type": "bind",
            "source": "/sys",
            "options": ["rbind", "nosuid", "noexec", "nodev", "ro"],
        }
    return _mount("sysfs", "/sys", ["nosuid", "noexec", "nodev"], writable=spec.security.privileged)


def _bind(source: str, target: str, *, read_only: bool = False) -> dict[str, Any]:
    options = ["rbind", "rprivate", "ro" if read_only else "rw"]
    return {"destination": target, "type": "bind", "source": source, "options": options}


async def volume_mounts(
    spec: ContainerSpec, paths: ContainerPaths, owners: Owners | None, refuse: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The volumes, in the order asked for; ``owners`` are those of the pod's user namespace, and ``refuse``
    raises for a path of the host that only a VM can use.

    Raises FailedPrecondition, InvalidArgument, NotFound.
    """
    found = []
    for number, mount in enumerate(spec.mounts):
        if mount.tmpfs is not None:
            found.append(_tmpfs(mount, mount.tmpfs))
            continue
        if mount.host_path:
            await threads.call(refuse, mount.host_path)
        source = await _source(mount, paths.volumes / str(number), spec, owners)
        found.append(
            {
                "destination": mount.container_path,
                "type": "bind",
                "source": source,
                "options": [
                    "rbind",
                    mount.propagation.value.replace("private", "rprivate"),
                    _access(mount),
                    *mount.options,
                ],
            }
        )
    return found


def _tmpfs(mount: Mount, asked: Tmpfs) -> dict[str, Any]:
    flags = sorted({"nosuid", "nodev", *mount.options})
    options = [*flags, f"mode={asked.mode:o}", *([f"size={asked.size}"] if asked.size else [])]
    return _mount("tmpfs", mount.container_path, options, writable=not mount.read_only)


def _access(mount: Mount) -> str:
    if mount.recursive_read_only:
        return "rro"
    return "ro" if mount.read_only else "rw"


async def _source(mount: Mount, place: Path, spec: ContainerSpec, owners: Owners | None) -> str:
    if mount.image is not None:
        found = await rootfs.mount_image(mount.image.layers, place, mount.image.sub_path, owned_by=owners)
        return os.fspath(found)
    if not mount.host_path:
        raise InvalidArgument(
            f"container {spec.name}: mount {mount.container_path} has neither path nor image"
        )
    await threads.call(check_propagation, mount)
    if mount.selinux_relabel and spec.security.selinux_label:
        await threads.call(selinux.relabel, mount.host_path, spec.security.selinux_label)
    if not (mount.uid_mappings or mount.gid_mappings):
        return mount.host_path
    if owners is None:
        raise InvalidArgument(
            f"container {spec.name}: mount {mount.container_path} has mapped ids, "
            "but its pod has no user namespace"
        )
    await threads.call(_map_ids, mount, place, owners)
    return os.fspath(place)


def _map_ids(mount: Mount, place: Path, owners: Owners) -> None:
    """The volume once more, its files owned as the pod's user namespace maps them."""
    place.parent.mkdir(exist_ok=True)
    if Path(mount.host_path).is_dir():
        place.mkdir(exist_ok=True)
    else:
        place.touch()
    try:
        mounts.bind(
            mount.host_path,
            place,
            recursive=True,
            propagation=_PROPAGATION[mount.propagation],
            userns=owners.userns,
        )
    except OSError as error:
        raise FailedPrecondition(
            f"volume {mount.host_path} cannot be mounted with mapped ids, "
            f"which its file system must support: {error.strerror}"
        ) from error


def check_propagation(mount: Mount) -> None:
    """Refuse a propagation that the host's own mount cannot have. Raises FailedPrecondition."""
    if mount.propagation is Propagation.PRIVATE:
        return
    point, shared, slave = mounts.propagation_of(mount.host_path)
    fits = shared if mount.propagation is Propagation.BIDIRECTIONAL else shared or slave
    if not fits:
        raise FailedPrecondition(
            f"volume {mount.host_path} is on the mount {point}, which is not shared; "
            f"it cannot be given to a container as {mount.propagation}"
        )


def root_propagation(spec: ContainerSpec) -> str:
    """``linux.rootfsPropagation``: as far as the most far-reaching of the volumes."""
    asked = {mount.propagation for mount in spec.mounts}
    if Propagation.BIDIRECTIONAL in asked:
        return "rshared"
    return "rslave" if Propagation.HOST_TO_CONTAINER in asked else ""


def mount_shm(paths: PodPaths, size: int) -> None:
    """The pod's /dev/shm. Idempotent. Raises OSError."""
    if not mounts.is_mounted(paths.shm):
        flags = sys.MS_NOSUID | sys.MS_NOEXEC | sys.MS_NODEV
        mounts.mount("shm", paths.shm, "tmpfs", flags=flags, options=f"mode=1777,size={size}")


def private_cgroups() -> bool:
    """Whether containers get a cgroup namespace, as is usual with control groups of version 2."""
    return cgroups.hierarchy().version == 2
