"""What a caller asks for before images, defaults and paths are resolved.

A pod is asked for as a :class:`~orlop.sandbox.spec.PodSpec` whose ``id`` is "" (given here) and
whose ``handler`` is the RuntimeClass handler, "" for the configured default. A container is
asked for as a :class:`ContainerRequest`; :mod:`orlop.pods.resolve` turns it into a
:class:`~orlop.sandbox.spec.ContainerSpec`.
"""

from __future__ import annotations

import msgspec

from orlop.sandbox.spec import (
    Device,
    IdMapping,
    MountOption,
    Namespaces,
    Propagation,
    Resources,
    Rlimit,
    Seccomp,
    Sink,
    Tmpfs,
)
from orlop.value import Value


class MountRequest(Value, frozen=True):
    """A volume: a path of the host, with ``image`` a path inside an image that was pulled, or memory."""

    container_path: str
    host_path: str = ""
    image: str = ""
    image_sub_path: str = ""
    tmpfs: Tmpfs | None = None
    read_only: bool = False
    recursive_read_only: bool = False
    propagation: Propagation = Propagation.PRIVATE
    selinux_relabel: bool = False
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    options: tuple[MountOption, ...] = ()


class SecurityRequest(Value, frozen=True):
    """The security context as asked for.

    Capabilities are names with or without ``CAP_``, or ``ALL``. ``user_id`` wins over
    ``user_name``; neither means the image's user. ``masked_paths`` and ``read_only_paths`` None means
    that nothing was said (:func:`orlop.pods.resolve.security` decides); () means none at all.
    """

    user_id: int | None = None
    user_name: str = ""
    group_id: int | None = None
    supplemental_groups: tuple[int, ...] = ()
    strict_groups: bool = False
    add_capabilities: tuple[str, ...] = ()
    drop_capabilities: tuple[str, ...] = ()
    ambient_capabilities: tuple[str, ...] = ()
    privileged: bool = False
    no_new_privs: bool = False
    read_only_root: bool = False
    masked_paths: tuple[str, ...] | None = None
    read_only_paths: tuple[str, ...] | None = None
    seccomp: Seccomp = Seccomp()
    apparmor: str = ""
    selinux_label: str = ""


class ContainerRequest(Value, frozen=True):
    """A container as asked for.

    ``image`` is a reference or an id that was pulled before, ``user_image`` what the user
    wrote; or ``directory`` is the root file system, an absolute path on the host. ``command`` and ``args``
    are CRI's (they override the image's entrypoint and cmd), ``stop_signal`` is a name like
    ``SIGTERM`` or "", ``cdi_devices`` fully qualified names (``vendor.com/class=name``). Output goes to
    ``log_path``, relative to the pod's log directory, or else to ``sink``.
    """

    pod_id: str
    name: str
    image: str = ""
    directory: str = ""
    attempt: int = 0
    user_image: str = ""
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, bytes], ...] = ()
    cwd: str = ""
    mounts: tuple[MountRequest, ...] = ()
    devices: tuple[Device, ...] = ()
    tty: bool = False
    stdin: bool = False
    stdin_once: bool = False
    log_path: str = ""
    sink: Sink = Sink()
    rlimits: tuple[Rlimit, ...] = ()
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    annotations: dict[str, str] = msgspec.field(default_factory=dict)
    resources: Resources = Resources()
    security: SecurityRequest = SecurityRequest()
    namespaces: Namespaces = Namespaces()
    stop_signal: str = ""
    cdi_devices: tuple[str, ...] = ()
