"""Device nodes of a container and the rules that its cgroup has for them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orlop.errors import InvalidArgument, NotFound
from orlop.sandbox.spec import ContainerSpec, Device

_NOT_OURS = frozenset({"pts", "shm", "fd", "mqueue", ".udev", ".lxc", ".lxd-mounts", "console"})
_MAX_NODES = 4096


@dataclass(frozen=True)
class Devices:
    """``nodes`` for ``linux.devices``, ``rules`` for ``linux.resources.devices``."""

    nodes: list[dict[str, Any]]
    rules: list[dict[str, Any]]


def collect(spec: ContainerSpec) -> Devices:
    """What the container is given. Blocks. Raises NotFound, InvalidArgument naming the device."""
    if spec.security.privileged:
        nodes = {node["path"]: node for node in _all_of_host()}
        for device in spec.devices:
            nodes |= {node["path"]: node for node, _ in _asked(device)}
        return Devices(list(nodes.values()), [{"allow": True, "access": "rwm"}])
    found = [pair for device in spec.devices for pair in _asked(device)]
    rules = [
        {
            "allow": True,
            "type": node["type"],
            "major": node["major"],
            "minor": node["minor"],
            "access": permissions,
        }
        for node, permissions in found
    ]
    return Devices([node for node, _ in found], [{"allow": False, "access": "rwm"}, *rules])


def _asked(device: Device) -> Iterator[tuple[dict[str, Any], str]]:
    """One device, or all in a directory."""
    permissions = device.permissions or "rwm"
    if not set(permissions) <= set("rwm"):
        raise InvalidArgument(f"device {device.host_path}: permissions {permissions[:10]!r} are not of rwm")
    source = Path(device.host_path)
    try:
        if source.is_dir():
            for path in _below(source):
                target = Path(device.container_path) / path.relative_to(source)
                if (node := _node(path, os.fspath(target))) is not None:
                    yield node | _changed(device), permissions
            return
        node = _node(source, device.container_path)
    except OSError as error:
        raise NotFound(f"device {device.host_path}: {error.strerror}") from error
    if node is None:
        raise InvalidArgument(f"{device.host_path} is not a device")
    yield node | _changed(device), permissions


def _changed(device: Device) -> dict[str, Any]:
    found = {"fileMode": device.mode, "uid": device.uid, "gid": device.gid}
    return {name: value for name, value in found.items() if value is not None}


def _all_of_host() -> Iterator[dict[str, Any]]:
    for path in _below(Path("/dev")):
        try:
            node = _node(path, os.fspath(path))
        except OSError:
            continue
        if node is not None:
            yield node


def _below(directory: Path) -> Iterator[Path]:
    count = 0
    for place, names, files in os.walk(directory):
        names[:] = [name for name in names if name not in _NOT_OURS]
        for name in files:
            path = Path(place) / name
            if name not in _NOT_OURS and not path.is_symlink():
                count += 1
                if count > _MAX_NODES:
                    return
                yield path


def _node(source: Path, target: str) -> dict[str, Any] | None:
    found = source.stat()
    if stat.S_ISBLK(found.st_mode):
        kind = "b"
    elif stat.S_ISCHR(found.st_mode):
        kind = "c"
    else:
        return None
    return {
        "path": target,
        "type": kind,
        "major": os.major(found.st_rdev),
        "minor": os.minor(found.st_rdev),
        "fileMode": stat.S_IMODE(found.st_mode),
        "uid": found.st_uid,
        "gid": found.st_gid,
    }
