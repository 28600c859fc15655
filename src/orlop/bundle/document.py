"""``config.json`` of a bundle and the process of an exec, as the OCI runtime specification 1.2 has them.

Only what a virtual machine can have or has to refuse is here; other keys are not looked at.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from orlop.errors import InvalidArgument
from orlop.value import UNREADABLE

T = TypeVar("T")
Strings = tuple[str, ...]


class OciPart(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Base of the parts of the document."""


class Size(OciPart, frozen=True):
    """Of a terminal, in character cells."""

    height: int = 0
    width: int = 0


class OciUser(OciPart, frozen=True):
    """Who a process runs as."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] | None = None


class OciCapabilities(OciPart, frozen=True):
    """The five sets; what a process may at most have is ``bounding``."""

    bounding: Strings | None = None
    effective: Strings | None = None
    permitted: Strings | None = None
    ambient: Strings | None = None


class OciRlimit(OciPart, frozen=True):
    """A limit of setrlimit(2)."""

    type: str
    soft: int
    hard: int


class OciProcess(OciPart, frozen=True):
    """A process: a container's first, or one more."""

    cwd: str
    args: Strings | None = None
    env: Strings | None = None
    terminal: bool = False
    console_size: Size | None = None
    user: OciUser = OciUser()
    capabilities: OciCapabilities | None = None
    rlimits: tuple[OciRlimit, ...] | None = None
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    apparmor_profile: str = ""


class OciRoot(OciPart, frozen=True):
    """The root file system."""

    path: str
    readonly: bool = False


class OciMount(OciPart, frozen=True):
    """A mount."""

    destination: str
    type: str = ""
    source: str = ""
    options: Strings | None = None
    uid_mappings: tuple[OciIdMapping, ...] | None = None


class OciIdMapping(OciPart, frozen=True):
    """A range of ids."""

    container_id: int = msgspec.field(name="containerID", default=0)
    host_id: int = msgspec.field(name="hostID", default=0)
    size: int = 0


class OciNamespace(OciPart, frozen=True):
    """A namespace: a new one, or the one at ``path``."""

    type: str
    path: str = ""


class OciDevice(OciPart, frozen=True):
    """A device node."""

    path: str
    type: str = ""
    file_mode: int | None = None


class OciCpu(OciPart, frozen=True):
    """Limits of processor time."""

    shares: int | None = None
    quota: int | None = None
    period: int | None = None
    cpus: str = ""
    mems: str = ""


class OciMemory(OciPart, frozen=True):
    """Limits of memory, in bytes; ``swap`` counts both."""

    limit: int | None = None
    swap: int | None = None


class OciPids(OciPart, frozen=True):
    """The limit of processes."""

    limit: int = 0


class OciHugepages(OciPart, frozen=True):
    """The limit of huge pages of one size."""

    page_size: str
    limit: int


class OciResources(OciPart, frozen=True):
    """What a container may use."""

    cpu: OciCpu | None = None
    memory: OciMemory | None = None
    pids: OciPids | None = None
    hugepage_limits: tuple[OciHugepages, ...] | None = None
    unified: dict[str, str] | None = None


class OciLinux(OciPart, frozen=True):
    """What there is on Linux."""

    namespaces: tuple[OciNamespace, ...] | None = None
    uid_mappings: tuple[OciIdMapping, ...] | None = None
    gid_mappings: tuple[OciIdMapping, ...] | None = None
    devices: tuple[OciDevice, ...] | None = None
    cgroups_path: str = ""
    resources: OciResources | None = None
    sysctl: dict[str, str] | None = None
    seccomp: msgspec.Raw = msgspec.Raw()
    masked_paths: Strings | None = None
    readonly_paths: Strings | None = None
    time_offsets: dict[str, object] | None = None
    intel_rdt: dict[str, object] | None = None


class OciHook(OciPart, frozen=True):
    """A program of the host."""

    path: str
    args: Strings | None = None
    env: Strings | None = None
    timeout: int | None = None


class OciHooks(OciPart, frozen=True):
    """Programs by the moment at which they run."""

    prestart: tuple[OciHook, ...] | None = None
    create_runtime: tuple[OciHook, ...] | None = None
    create_container: tuple[OciHook, ...] | None = None
    start_container: tuple[OciHook, ...] | None = None
    poststart: tuple[OciHook, ...] | None = None
    poststop: tuple[OciHook, ...] | None = None


class OciConfig(OciPart, frozen=True):
    """The whole document."""

    oci_version: str
    root: OciRoot | None = None
    process: OciProcess | None = None
    hostname: str = ""
    mounts: tuple[OciMount, ...] | None = None
    hooks: OciHooks | None = None
    annotations: dict[str, str] | None = None
    linux: OciLinux | None = None


def config(data: bytes) -> OciConfig:
    """The document of a bundle. Raises InvalidArgument."""
    found = _decoded(data, OciConfig, "config.json")
    if not found.oci_version.startswith("1."):
        raise InvalidArgument(
            f"config.json: version {found.oci_version[:40]!r} of the specification is not known"
        )
    if found.root is None or found.process is None:
        raise InvalidArgument("config.json: it has no root, or no process")
    return found


def process(data: bytes) -> OciProcess:
    """The process of an exec. Raises InvalidArgument."""
    return _decoded(data, OciProcess, "the process to run")


def resources(data: bytes) -> OciResources:
    """Limits to be changed. Raises InvalidArgument."""
    return _decoded(data, OciResources, "the resources")


def _decoded(data: bytes, kind: type[T], what: str) -> T:
    try:
        return msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise InvalidArgument(f"{what}: {error}") from error
