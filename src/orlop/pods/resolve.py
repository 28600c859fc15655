"""From what was asked for to what will run: image, defaults and host paths resolved.

Rules of merging are those of the Kubernetes API and the OCI image specification ("Conversion to
OCI Runtime Configuration"): a command replaces the image's entrypoint and drops its cmd; args
alone replace only the cmd; the request's variables come after, and win over, the image's.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import signal
from collections.abc import Callable
from pathlib import Path

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.images import reference as references
from orlop.images.model import ImageConfigOci
from orlop.pods import capabilities, limits, socketplaces, tmpfs
from orlop.pods.ports import ImageConfigLike, ImageLike
from orlop.pods.requests import ContainerRequest, MountRequest, SecurityRequest
from orlop.sandbox.spec import (
    ContainerSpec,
    ImageVolume,
    Mount,
    NamespaceMode,
    Namespaces,
    PodSpec,
    Rlimit,
    Root,
    Seccomp,
    Security,
    Sink,
    UserIds,
)

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

MASKED_PATHS = (
    "/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
    "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware",
    "/sys/devices/virtual/powercap",
)  # fmt: skip
"""Paths hidden from a container that does not say otherwise."""

READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""Paths a container that does not say otherwise may only read."""

_OWN_NAMESPACES = Namespaces()

REALTIME_MIN, REALTIME_MAX = 34, 64
"""What SIGRTMIN and SIGRTMAX mean to C libraries on Linux."""


def signal_number(name: str) -> int:
    """``SIGTERM``, ``TERM``, ``15`` or ``SIGRTMIN+3`` as a number. Raises InvalidArgument."""
    text = name.strip().upper()
    if text.isdecimal():
        number = int(text) if len(text) < 4 else 0
    else:
        number = _named_signal(text if text.startswith("SIG") else f"SIG{text}")
    if not 1 <= number <= REALTIME_MAX:
        raise InvalidArgument(f"stop signal {name!r} does not exist on Linux")
    return number


def signal_name(number: int) -> str:
    """The inverse: 15 is ``SIGTERM``, 37 is ``SIGRTMIN+3``."""
    if number >= REALTIME_MIN:
        offset = number - REALTIME_MIN
        if number == REALTIME_MAX:
            return "SIGRTMAX"
        return f"SIGRTMIN+{offset}" if offset else "SIGRTMIN"
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


def _named_signal(name: str) -> int:
    for prefix, base, sign in (("SIGRTMIN", REALTIME_MIN, 1), ("SIGRTMAX", REALTIME_MAX, -1)):
        if name.startswith(prefix):
            offset = name[len(prefix) :].lstrip("+-") or "0"
            number = base + sign * int(offset) if offset.isdecimal() and len(offset) < 3 else 0
            return number if number >= REALTIME_MIN else 0
    if name in ("SIGCLD", "SIGPOLL"):
        name = {"SIGCLD": "SIGCHLD", "SIGPOLL": "SIGIO"}[name]
    try:
        return int(signal.Signals[name])
    except KeyError:
        return 0


def command_line(request: ContainerRequest, config: ImageConfigLike) -> tuple[str, ...]:
    """The program and its arguments. Raises InvalidArgument when neither side names any."""
    entrypoint, args = request.command, request.args
    if not entrypoint:
        entrypoint = tuple(config.entrypoint)
        args = args or tuple(config.cmd)
    if not (line := (*entrypoint, *args)):
        raise InvalidArgument(
            f"container {request.name}: no command: neither the request nor image {request.image} names one"
        )
    return line


def environment(request: ContainerRequest, config: ImageConfigLike) -> tuple[tuple[str, bytes], ...]:
    """Variables of the image, overridden by the request's, with a PATH in any case."""
    merged: dict[str, bytes] = {"PATH": DEFAULT_PATH.encode()}
    for item in config.env:
        name, _, value = item.partition("=")
        if name:
            merged[name] = os.fsencode(value)
    for name, content in request.env:
        if not name or "=" in name or "\0" in name or b"\0" in content:
            raise InvalidArgument(f"container {request.name}: bad environment variable {name!r}")
        merged[name] = content
    if request.tty:
        merged.setdefault("TERM", b"xterm")
    return tuple(merged.items())


def security(
    request: SecurityRequest, config: ImageConfigLike, namespaces: Namespaces = _OWN_NAMESPACES
) -> Security:
    """The final security context: capabilities counted out, user and paths decided.

    Whoever names no masked and read-only paths gets the usual ones. Only in a user namespace it gets none:
    there that is how a kubelet says ``procMount: Unmasked``, which Kubernetes allows nowhere else.
    """
    user, group = _user(request, config)
    privileged = request.privileged
    final = capabilities.effective(request.add_capabilities, request.drop_capabilities, privileged=privileged)
    ambient = capabilities.normalise(request.ambient_capabilities)
    if missing := ambient - set(final):
        raise InvalidArgument(
            f"ambient capabilities {', '.join(sorted(missing))} are not among the container's capabilities"
        )
    bare = namespaces.user is NamespaceMode.POD
    masked, read_only = request.masked_paths, request.read_only_paths
    if masked is None:
        masked = () if bare else MASKED_PATHS
    if read_only is None:
        read_only = () if bare else READ_ONLY_PATHS
    return Security(
        user=user,
        group=group,
        supplemental_groups=request.supplemental_groups,
        strict_groups=request.strict_groups,
        capabilities=final,
        ambient=tuple(sorted(ambient)),
        privileged=privileged,
        no_new_privs=request.no_new_privs,
        read_only_root=request.read_only_root,
        masked_paths=() if privileged else masked,
        read_only_paths=() if privileged else read_only,
        seccomp=Seccomp() if privileged else request.seccomp,
        apparmor="" if privileged else request.apparmor,
        selinux_label=request.selinux_label,
    )


def _user(request: SecurityRequest, config: ImageConfigLike) -> tuple[str, str]:
    """The user and group: the request's, or else the image's ``user[:group]``."""
    group = "" if request.group_id is None else str(request.group_id)
    if request.user_id is not None:
        return str(request.user_id), group
    if request.user_name:
        return request.user_name, group
    user, _, image_group = config.user.partition(":")
    return user, group or image_group


def known_user(security_context: Security) -> UserIds | None:
    """The ids that a container runs as, where the request alone says them: no file of the image matters."""
    user, group = security_context.user or "0", security_context.group
    if not (security_context.strict_groups and user.isdecimal() and group.isdecimal()):
        return None
    groups = sorted({int(group), *security_context.supplemental_groups})
    return UserIds(uid=int(user), gid=int(group), groups=tuple(groups))


def log_path(pod: PodSpec, request: ContainerRequest) -> str:
    """Absolute path of the container's log, "" for none; it stays inside the pod's directory."""
    if not request.log_path or not pod.log_directory:
        return ""
    relative = posixpath.normpath(request.log_path)
    if posixpath.isabs(relative) or relative.split("/", 1)[0] == "..":
        raise InvalidArgument(
            f"container {request.name}: log path {request.log_path} leads out of the pod's log directory"
        )
    return posixpath.join(pod.log_directory, relative)


def _sink(pod: PodSpec, request: ContainerRequest) -> Sink:
    path = log_path(pod, request)
    if path and request.sink != Sink():
        raise InvalidArgument(f"container {request.name}: its output can go to one place, not also to {path}")
    return Sink(log=path) if path else request.sink


def image_reference(image: ImageLike, *asked: str) -> str:
    """How a container's status names what it runs: by repository digest where there is one.

    Of several repositories it is the one in ``asked``, the image as callers wrote it: names or ids.
    """
    for name in asked:
        with contextlib.suppress(InvalidArgument):
            wanted = references.parse(name)
            if str(wanted) in image.repo_digests:
                return str(wanted)
            for digest in image.repo_digests:
                if digest.startswith(wanted.at("")):
                    return digest
    return image.repo_digests[0] if image.repo_digests else image.id


ImageLookup = Callable[[str], ImageLike | None]


def find_image(lookup: ImageLookup, reference: str, what: str) -> ImageLike:
    """The pulled image ``reference``. Raises NotFound."""
    image = lookup(reference)
    if image is None:
        raise NotFound(f"{what}: image {reference} is not on this node; pull it first")
    return image


def mount(request: MountRequest, lookup: ImageLookup) -> Mount:
    """A volume with its image or its real host path. Blocks on the disk.

    A host path that is not there becomes a directory, as with other runtimes: the kubelet asks for that
    with a ``hostPath`` that has no type. Raises InvalidArgument for a path that cannot be mounted.
    """
    if not posixpath.isabs(request.container_path):
        raise InvalidArgument(f"mount: container path {request.container_path!r} is not absolute")
    if request.recursive_read_only and not request.read_only:
        raise InvalidArgument(f"mount {request.container_path}: recursive read-only needs read-only")
    if request.tmpfs is not None:
        return Mount(
            container_path=request.container_path,
            tmpfs=request.tmpfs,
            read_only=request.read_only,
            options=request.options,
        )
    if request.image:
        return _image_mount(request, lookup)
    if not posixpath.isabs(request.host_path):
        raise InvalidArgument(
            f"mount {request.container_path}: host path {request.host_path!r} is not absolute"
        )
    try:
        path = Path(request.host_path).resolve()
        if not path.exists():
            path.mkdir(mode=0o755, parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(
            f"mount {request.container_path}: host path {request.host_path}: {error}"
        ) from error
    return Mount(
        container_path=request.container_path,
        host_path=os.fspath(path),
        read_only=request.read_only,
        recursive_read_only=request.recursive_read_only,
        propagation=request.propagation,
        selinux_relabel=request.selinux_relabel,
        uid_mappings=request.uid_mappings,
        gid_mappings=request.gid_mappings,
        options=request.options,
    )


def _image_mount(request: MountRequest, lookup: ImageLookup) -> Mount:
    image = find_image(lookup, request.image, f"volume {request.container_path}")
    sub_path = posixpath.normpath(request.image_sub_path) if request.image_sub_path else ""
    if posixpath.isabs(sub_path) or sub_path.split("/", 1)[0] == "..":
        raise InvalidArgument(f"volume {request.container_path}: sub path {request.image_sub_path} leads out")
    volume = ImageVolume(
        image_id=image.id,
        layers=tuple(image.layers),
        sub_path="" if sub_path == "." else sub_path,
        reference=request.image,
        image_ref=image_reference(image, request.image),
    )
    return Mount(container_path=request.container_path, image=volume, read_only=True, options=request.options)


def shared_namespaces(asked: Namespaces, pod: Namespaces) -> Namespaces:
    """The container's namespaces, those that are always its pod's filled in.

    A wish for the host's network or IPC in a pod that has its own is left for the sandbox to refuse.
    """
    node = NamespaceMode.NODE
    return msgspec.structs.replace(
        asked,
        network=asked.network if asked.network is node else pod.network,
        ipc=asked.ipc if asked.ipc is node else pod.ipc,
        user=pod.user,
        uid_mappings=pod.uid_mappings,
        gid_mappings=pod.gid_mappings,
    )


def _rlimits(request: ContainerRequest, pod: PodSpec) -> tuple[Rlimit, ...]:
    """What the caller asks for, and else the container's annotations and its pod's."""
    asked = {limit.name: limit for limit in request.rlimits}
    wishes = {
        name: limit
        for name, limit in limits.wished({**pod.annotations, **request.annotations}, request.name).items()
        if name not in asked
    }
    if pod.handler == "process":
        limits.check_on_host(request.name, wishes)
    return (*request.rlimits, *wishes.values())


def container(
    request: ContainerRequest, container_id: str, pod: PodSpec, image: ImageLike | None, lookup: ImageLookup
) -> ContainerSpec:
    """Everything decided: what the sandbox is asked to create. Blocks on the disk.

    Without an ``image`` the request names a directory as the root, and all that an image would say.
    """
    config: ImageConfigLike = image.config if image is not None else ImageConfigOci()
    layers = tuple(image.layers) if image is not None else ()
    namespaces = shared_namespaces(request.namespaces, pod.namespaces)
    if namespaces.pid is NamespaceMode.TARGET and not namespaces.target_container:
        raise InvalidArgument(f"container {request.name}: PID namespace of a target, but no target named")
    cwd = request.cwd or config.working_dir or "/"
    if not posixpath.isabs(cwd):
        cwd = posixpath.join("/", cwd)
    return ContainerSpec(
        id=container_id,
        pod_id=pod.id,
        name=request.name,
        attempt=request.attempt,
        image_id=image.id if image is not None else "",
        root=Root(layers=layers, directory=request.directory),
        args=command_line(request, config),
        env=environment(request, config),
        cwd=cwd,
        hostname=pod.hostname,
        mounts=socketplaces.marked(
            [mount(item, lookup) for item in tmpfs.among(request.mounts, request.annotations)],
            {**pod.annotations, **request.annotations},
        ),
        devices=request.devices,
        tty=request.tty,
        stdin=request.stdin,
        stdin_once=request.stdin_once,
        sink=_sink(pod, request),
        resources=request.resources,
        rlimits=_rlimits(request, pod),
        security=security(request.security, config, namespaces),
        namespaces=namespaces,
        stop_signal=signal_number(request.stop_signal or config.stop_signal or "SIGTERM"),
        annotations=request.annotations,
    )
