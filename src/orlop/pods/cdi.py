"""Container Device Interface: named devices and what a container needs to use them.

Specifications are JSON or YAML files in ``/etc/cdi`` and ``/var/run/cdi`` (CDI specification,
cncf-tags/container-device-interface, SPEC.md); a file in the later directory wins. A device's
edits of environment, device nodes, mounts and groups are applied to the container here, so that
a sandbox sees ordinary devices and mounts; under ``vm`` it then refuses those that a guest does
not have. Hooks and what else runs on or reaches into the host is refused with the reason.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.pods.requests import ContainerRequest
from orlop.sandbox.spec import ContainerSpec, Device, Mount
from orlop.value import UNREADABLE

DIRECTORIES = (Path("/etc/cdi"), Path("/var/run/cdi"))
ANNOTATION_PREFIX = "cdi.k8s.io/"
MAX_FILE = 1 << 20
MAX_FILES = 256

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9_-]*=[A-Za-z0-9][A-Za-z0-9_.:-]*")


class _Node(msgspec.Struct, frozen=True, rename="camel"):
    path: str
    host_path: str = ""
    permissions: str = ""


class _Mount(msgspec.Struct, frozen=True, rename="camel"):
    host_path: str
    container_path: str
    options: tuple[str, ...] = ()


class _Edits(msgspec.Struct, frozen=True, rename="camel"):
    env: tuple[str, ...] = ()
    device_nodes: tuple[_Node, ...] = ()
    mounts: tuple[_Mount, ...] = ()
    additional_gids: tuple[int, ...] = msgspec.field(default=(), name="additionalGids")
    hooks: tuple[dict[str, Any], ...] = ()
    intel_rdt: dict[str, Any] | None = None
    net_devices: tuple[dict[str, Any], ...] = ()


class _Device(msgspec.Struct, frozen=True, rename="camel"):
    name: str
    container_edits: _Edits = _Edits()


class _Specification(msgspec.Struct, frozen=True, rename="camel"):
    cdi_version: str
    kind: str
    devices: tuple[_Device, ...] = ()
    container_edits: _Edits = _Edits()


def requested(request: ContainerRequest) -> tuple[str, ...]:
    """The names of the devices a container asks for, by field or by annotation, each once."""
    names = list(request.cdi_devices)
    for key, value in request.annotations.items():
        if key.startswith(ANNOTATION_PREFIX):
            names += [name.strip() for name in value.split(",") if name.strip()]
    for name in names:
        if not _NAME.fullmatch(name):
            raise InvalidArgument(
                f"container {request.name}: CDI device {name!r} is not of the form vendor/class=name"
            )
    return tuple(dict.fromkeys(names))


def apply(
    spec: ContainerSpec, names: Sequence[str], directories: Sequence[Path] = DIRECTORIES
) -> ContainerSpec:
    """``spec`` with the edits of the devices ``names``. Blocks on the disk.

    Raises NotFound for an unknown device, InvalidArgument for a damaged specification,
    FailedPrecondition for an edit that cannot be made.
    """
    known = _devices(directories)
    kinds: set[str] = set()
    for name in names:
        if name not in known:
            where = ", ".join(os.fspath(directory) for directory in directories)
            raise NotFound(f"container {spec.name}: CDI device {name} is in no specification below {where}")
        specification, device = known[name]
        if specification.kind not in kinds:
            kinds.add(specification.kind)
            spec = _edit(spec, name, specification.container_edits)
        spec = _edit(spec, name, device.container_edits)
    return spec


def _devices(directories: Sequence[Path]) -> dict[str, tuple[_Specification, _Device]]:
    found: dict[str, tuple[_Specification, _Device]] = {}
    for directory in directories:
        try:
            files = sorted(path for path in directory.iterdir() if path.suffix in (".json", ".yaml", ".yml"))
        except (FileNotFoundError, NotADirectoryError):
            continue
        for path in files[:MAX_FILES]:
            specification = _read(path)
            for device in specification.devices:
                found[f"{specification.kind}={device.name}"] = specification, device
    return found


def _read(path: Path) -> _Specification:
    try:
        if path.stat().st_size > MAX_FILE:
            raise InvalidArgument(f"CDI specification {path} is larger than {MAX_FILE} bytes")
        content = path.read_bytes()
        if path.suffix == ".json":
            return msgspec.json.decode(content, type=_Specification)
        return msgspec.yaml.decode(content, type=_Specification)
    except (OSError, *UNREADABLE) as error:
        raise InvalidArgument(f"CDI specification {path} cannot be used: {error}") from error


def _edit(spec: ContainerSpec, name: str, edits: _Edits) -> ContainerSpec:
    for what, wanted in (
        ("hooks", edits.hooks),
        ("Intel RDT", edits.intel_rdt),
        ("host network devices", edits.net_devices),
    ):
        if wanted:
            raise FailedPrecondition(
                f"container {spec.name}: CDI device {name} needs {what}, which Orlop refuses"
            )
    devices = tuple(
        Device(
            host_path=node.host_path or node.path,
            container_path=node.path,
            permissions=node.permissions or "rw",
        )
        for node in edits.device_nodes
    )
    security = msgspec.structs.replace(
        spec.security,
        supplemental_groups=(
            *spec.security.supplemental_groups,
            *(gid for gid in edits.additional_gids if gid),
        ),
    )
    return msgspec.structs.replace(
        spec,
        env=_environment(spec, name, edits.env),
        devices=(*spec.devices, *devices),
        mounts=(*spec.mounts, *(_mount(spec, name, mount) for mount in edits.mounts)),
        security=security,
    )


def _environment(spec: ContainerSpec, name: str, items: Iterable[str]) -> tuple[tuple[str, bytes], ...]:
    merged = dict(spec.env)
    for item in items:
        key, equals, value = item.partition("=")
        if not key or not equals:
            raise InvalidArgument(f"container {spec.name}: CDI device {name} sets a bad variable {item!r}")
        merged[key] = value.encode()
    return tuple(merged.items())


def _mount(spec: ContainerSpec, name: str, mount: _Mount) -> Mount:
    path = Path(mount.host_path)
    if not path.is_absolute() or not mount.container_path.startswith("/"):
        raise InvalidArgument(f"container {spec.name}: CDI device {name} has a mount with a relative path")
    try:
        real = path.resolve(strict=True)
    except OSError as error:
        raise NotFound(
            f"container {spec.name}: CDI device {name} needs {mount.host_path}: {error.strerror}"
        ) from error
    return Mount(
        container_path=mount.container_path, host_path=os.fspath(real), read_only="ro" in mount.options
    )
