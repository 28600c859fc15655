"""What no handler can serve, refused with the reason before anything is made."""

from __future__ import annotations

import posixpath
import re

from orlop.errors import FailedPrecondition, InvalidArgument
from orlop.sandbox.spec import ContainerSpec, Mount, NamespaceMode, PodSpec, Rlimit

RLIMITS = frozenset(
    (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE"),
        *("NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
    )
)
"""The limits of getrlimit(2)."""

_OF_A_PROCESS = re.compile(r"/proc/[1-9]\d{0,9}/")
_LAST_LIMIT = (1 << 63) - 1


class OutsideVm(FailedPrecondition):
    """What is asked for is the host's, so no VM has it. ``reason`` is the message without who can serve it:
    fronts whose callers know no handlers say that in their own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason}; a RuntimeClass with the handler 'process' can serve it")
        self.reason = reason


def check_pod(spec: PodSpec) -> None:
    """Raise InvalidArgument or FailedPrecondition for a pod whose network is from outside but cannot be."""
    if not spec.netns:
        return
    pod = f"pod {spec.namespace}/{spec.name}"
    if not posixpath.isabs(spec.netns):
        raise InvalidArgument(f"{pod}: the path of its network namespace, {spec.netns!r}, is not absolute")
    if spec.namespaces.network is not NamespaceMode.POD:
        raise InvalidArgument(f"{pod} cannot have the host's network and the namespace {spec.netns}")
    if spec.namespaces.user is NamespaceMode.POD:
        raise FailedPrecondition(
            f"{pod}: the network namespace {spec.netns} is not one of the pod's own user namespace"
        )
    if any(port.host_port for port in spec.port_mappings):
        raise FailedPrecondition(
            f"{pod}: who made the network namespace {spec.netns} maps its ports, not the runtime"
        )


def check_container(spec: ContainerSpec) -> None:
    """Raise InvalidArgument or FailedPrecondition for a container that cannot be as asked."""
    container = f"container {spec.name}"
    _check_root(container, spec)
    sink = spec.sink
    if sink.log and sink.raw:
        raise InvalidArgument(f"{container}: its output can go to a log or to files as it is, not to both")
    for path in (sink.log, sink.stdout, sink.stderr):
        if path and not posixpath.isabs(path):
            raise InvalidArgument(f"{container}: the path {path!r} for its output is not absolute")
    if sink.since and not all(_OF_A_PROCESS.match(path) for path in (sink.stdout, sink.stderr) if path):
        raise InvalidArgument(
            f"{container}: its output is to go to a process, and one of the paths is none's"
        )
    if spec.tty and sink.stderr:
        raise InvalidArgument(f"{container}: a terminal has no stderr that could go to {sink.stderr}")
    for limit in spec.rlimits:
        _check_limit(container, limit)
    for mount in spec.mounts:
        _check_mount(f"{container}: mount {mount.container_path}", mount)


def _check_root(container: str, spec: ContainerSpec) -> None:
    root = spec.root
    if not root.layers and not root.directory:
        raise InvalidArgument(f"{container}: its image has no layers, and no directory is its root")
    if root.layers and root.directory:
        raise InvalidArgument(f"{container}: its root is made of layers or is {root.directory}, not both")
    if root.directory and not posixpath.isabs(root.directory):
        raise InvalidArgument(f"{container}: the path {root.directory!r} of its root is not absolute")
    if root.directory and posixpath.normpath(root.directory) in ("/", "//"):
        raise InvalidArgument(f"{container}: the host's own root cannot be a container's")
    if root.directory and spec.namespaces.user is NamespaceMode.POD:
        raise FailedPrecondition(
            f"{container}: the files of {root.directory} belong to users of the host; "
            "in a user namespace a root is made of layers"
        )


def _check_limit(container: str, limit: Rlimit) -> None:
    if limit.name not in RLIMITS:
        raise InvalidArgument(f"{container}: there is no limit RLIMIT_{limit.name}")
    if not (-1 <= limit.soft <= _LAST_LIMIT and -1 <= limit.hard <= _LAST_LIMIT):
        raise InvalidArgument(f"{container}: the limit RLIMIT_{limit.name} is out of range")
    if limit.hard != -1 and (limit.soft == -1 or limit.soft > limit.hard):
        raise InvalidArgument(
            f"{container}: of the limit RLIMIT_{limit.name} the soft value {limit.soft} "
            f"is above the hard one, {limit.hard}"
        )


def _check_mount(where: str, mount: Mount) -> None:
    if mount.tmpfs is None:
        return
    if mount.host_path or mount.image is not None:
        raise InvalidArgument(f"{where} is a tmpfs, and has another source as well")
    if mount.tmpfs.size < 0 or not 0 <= mount.tmpfs.mode <= 0o7777:
        raise InvalidArgument(f"{where}: a tmpfs of {mount.tmpfs.size} bytes, mode {mount.tmpfs.mode:o}")
    if mount.uid_mappings or mount.gid_mappings:
        raise InvalidArgument(f"{where}: a tmpfs has no owners to be mapped")
