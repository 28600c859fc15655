"""What a virtual machine cannot be, refused with the reason before anything is made.

A pod that shares the host's network, processes or IPC is by its nature outside a VM; running it
in one all the same would be another pod than the one asked for. The handler ``process`` serves those.
"""

from __future__ import annotations

import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from orlop.config import VmConfig
from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.sandbox import rules
from orlop.sandbox.rules import OutsideVm
from orlop.sandbox.spec import (
    ContainerSpec,
    Mount,
    NamespaceMode,
    Namespaces,
    OnHost,
    PodSpec,
    Propagation,
)
from orlop.sandbox.vm import blockdevices
from orlop.sandbox.vm.sizing import shape_of
from orlop.wire.hello import SOCKETS

_NOT_SHARED = {
    stat.S_IFBLK: "block device",
    stat.S_IFCHR: "character device",
    stat.S_IFSOCK: "socket",
    stat.S_IFIFO: "FIFO",
}
"""What a shared directory can show to a guest but not connect with the host's."""


def check_pod(spec: PodSpec, config: VmConfig) -> None:
    """Raise for a pod that a VM cannot be (FailedPrecondition) or that is too big (InvalidArgument)."""
    pod = f"pod {spec.namespace}/{spec.name}"
    rules.check_pod(spec)
    _check_namespaces(pod, spec.namespaces)
    _check_apparmor(pod, spec.apparmor)
    shape_of(spec, config)


def check_container(spec: ContainerSpec, known: Collection[str]) -> None:
    """Raise for a container that cannot be in a VM pod; ``known`` are the pod's container ids."""
    container = f"container {spec.name}"
    rules.check_container(spec)
    _check_namespaces(container, spec.namespaces)
    _check_apparmor(container, spec.security.apparmor)
    target = spec.namespaces.target_container
    if spec.namespaces.pid is NamespaceMode.TARGET and target not in known:
        raise InvalidArgument(f"{container}: target container {target!r} is not in pod {spec.pod_id}")
    _check_on_host(container, spec.on_host)
    for size, limit in spec.resources.hugepage_limits:
        if limit > 0:
            raise OutsideVm(f"{container} asks for huge pages of {size}, which a VM does not have")


def _check_on_host(container: str, asked: OnHost) -> None:
    for wanted, what in (
        (bool(asked.hooks), "hooks that run on the host"),
        (bool(asked.namespaces), "other namespaces than its pod's"),
        (bool(asked.cgroup), f"the host's control group {asked.cgroup}"),
        (bool(asked.sysctls), "kernel parameters of its own"),
    ):
        if wanted:
            raise OutsideVm(f"{container} asks for {what}, which a VM cannot have")


def check_volumes(spec: ContainerSpec, features: Collection[str]) -> None:
    """Raise FailedPrecondition for a host path or a device that is nothing in a VM. Looks at the disk.

    ``features`` are those of the guest's agent. Raises NotFound for a device that is not there.
    """
    for device in spec.devices:
        blockdevices.check(f"container {spec.name}", device, features)
    for mount in spec.mounts:
        try:
            mode = Path(mount.host_path).stat().st_mode if mount.host_path else 0
        except OSError:
            continue  # the mount itself will say so
        if stat.S_ISSOCK(mode) and SOCKETS in features:
            continue
        if kind := _NOT_SHARED.get(stat.S_IFMT(mode)):
            raise OutsideVm(
                f"container {spec.name}: mount {mount.container_path}: the host's {kind} {mount.host_path} "
                "leads nowhere in a VM"
            )


def check_shared(spec: ContainerSpec, shared: Iterable[Mount]) -> None:
    """Raise FailedPrecondition for a mount that only the host could serve: the guest does not hold it."""
    for mount in shared:
        if mount.propagation is Propagation.BIDIRECTIONAL:
            raise OutsideVm(
                f"container {spec.name}: mount {mount.container_path} asks for Bidirectional propagation, "
                "but a mount made in a VM cannot appear on the host"
            )


def _check_namespaces(who: str, namespaces: Namespaces) -> None:
    for what, mode in (
        ("network", namespaces.network),
        ("PID", namespaces.pid),
        ("IPC", namespaces.ipc),
    ):
        if mode is NamespaceMode.NODE:
            raise OutsideVm(f"{who} asks for the host's {what} namespace, which a VM does not share")


def _check_apparmor(who: str, profile: str) -> None:
    if profile not in ("", "runtime/default", "unconfined"):
        raise FailedPrecondition(
            f"{who} asks for the AppArmor profile {profile!r}, but the guest kernel runs without AppArmor"
        )
