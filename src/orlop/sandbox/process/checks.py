"""What this handler or this host cannot serve, refused with the reason before anything is made."""

from __future__ import annotations

import posixpath

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.sandbox import rules
from orlop.sandbox.process import podns
from orlop.sandbox.process.runtime import Runtime
from orlop.sandbox.spec import ContainerSpec, NamespaceMode, PodSpec, Propagation


def check_pod(spec: PodSpec, *, user_namespaces: bool) -> None:
    """Raise InvalidArgument or FailedPrecondition for a pod that cannot be run as asked."""
    pod = f"pod {spec.namespace}/{spec.name}"
    rules.check_pod(spec)
    podns.check_sysctls(spec)
    if spec.namespaces.network is NamespaceMode.NODE and any(port.host_port for port in spec.port_mappings):
        # The ports of a pod on the host's network are the host's; equal numbers say nothing new.
        for port in spec.port_mappings:
            if port.host_port and port.host_port != port.container_port:
                raise InvalidArgument(
                    f"{pod}: port {port.container_port} cannot be mapped to {port.host_port} "
                    "on the host's network"
                )
    if spec.namespaces.user is NamespaceMode.POD:
        if not user_namespaces:
            raise FailedPrecondition(f"{pod}: this host cannot run pods in user namespaces")
        if spec.namespaces.network is NamespaceMode.NODE:
            raise FailedPrecondition(f"{pod}: a user namespace cannot be combined with the host's network")
        for what, mappings in (
            ("users", spec.namespaces.uid_mappings),
            ("groups", spec.namespaces.gid_mappings),
        ):
            if len(mappings) != 1 or mappings[0].container_id != 0 or mappings[0].length < 1:
                raise InvalidArgument(
                    f"{pod}: a user namespace needs one mapping of {what}, which begins at 0"
                )


def check_container(spec: ContainerSpec, pod: PodSpec, runtime: Runtime) -> None:
    """Raise InvalidArgument or FailedPrecondition for a container that cannot be run as asked."""
    container = f"container {spec.name}"
    rules.check_container(spec)
    if spec.namespaces.pid is NamespaceMode.POD and pod.namespaces.pid is not NamespaceMode.POD:
        raise InvalidArgument(f"{container}: its pod was made without a PID namespace to share")
    _check_cgroup(container, spec.on_host.cgroup, runtime)
    for mount in spec.mounts:
        if not mount.recursive_read_only:
            continue
        where = f"{container}: mount {mount.container_path}"
        if mount.propagation is not Propagation.PRIVATE:
            raise InvalidArgument(f"{where}: recursive read-only needs private propagation")
        if "rro" not in runtime.mount_options:
            raise FailedPrecondition(
                f"{where}: {runtime.name} {runtime.version} cannot mount recursively read-only"
            )


def _check_cgroup(container: str, path: str, runtime: Runtime) -> None:
    if not path:
        return
    if runtime.systemd:
        raise FailedPrecondition(
            f"{container}: its control group {path} cannot be chosen: systemd makes those of this node"
        )
    if not posixpath.isabs(path) or posixpath.normpath(path) != path or path == "/":
        raise InvalidArgument(f"{container}: {path!r} is not the absolute path of a control group")
