"""What the release 0.1 said otherwise: version 1 of the protocol, and its files.

A pod outlives the daemon that started it, and keeps its agent. So a daemon says to an agent of version 1 what
that one understands, and takes what it answers. Its VMs all had QEMU's virtio-scsi adapter: a disk is a
unit there, with or without partitions, and ``lasting`` where the device stays when the disk goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from orlop.errors import FailedPrecondition
from orlop.value import Value
from orlop.wire.codec import dumps, loads

VERSION = 1


class _HeldDisk(Value, frozen=True):
    id: str
    lun: int
    layers: int = 0
    partitions: Annotated[int, msgspec.Meta(ge=0, le=127)] = 0
    lasting: bool = False


def to_agent(payload: bytes) -> bytes:
    """A request in words of version 1. Raises FailedPrecondition for what that agent cannot do."""
    envelope = loads(payload)
    arguments = envelope["args"]
    if envelope["op"] == "create":
        arguments["container"] = _container(arguments["container"])
    elif envelope["op"] == "stats":
        arguments["filesystems"] = True
    return dumps(envelope)


def from_agent(operation: str, payload: bytes) -> bytes:
    """A reply of version 1 in words of today. Raises ProtocolError."""
    envelope = loads(payload)
    reply = envelope.get("ok")
    if isinstance(reply, dict):
        if operation == "create":
            envelope["ok"] = {"uid": 0, "gid": 0, "groups": []} | reply
        elif operation == "stats":
            _statistics(reply)
    return dumps(envelope)


def disks(held: list[Any]) -> dict[str, Any]:
    """What a file says of a container's disks: those of images in one list, and the one it writes to.

    Raises msgspec.ValidationError.
    """
    found = msgspec.convert(held, tuple[_HeldDisk, ...])
    images = [_plugged(disk) for disk in found if disk.layers]
    writable = [_plugged(disk) for disk in found if not disk.layers]
    return {"root": images, "scratch": writable[0] if writable else None}


def _plugged(disk: _HeldDisk) -> dict[str, Any]:
    if disk.lun < 0:  # it was planned only
        return {"id": disk.id, "at": []}
    whole = f"scsi-kept:{disk.lun}" if disk.lasting else f"scsi:{disk.lun}"
    return {"id": disk.id, "at": [f"{whole}/{part + 1}" for part in range(disk.partitions)] or [whole]}


def _unit(at: Sequence[str]) -> dict[str, Any]:
    """A disk by its place on the adapter."""
    whole, _, part = at[0].partition("/")
    bus, _, lun = whole.partition(":")
    return {"lun": int(lun), "partitions": len(at) if part else 0, "lasting": bus == "scsi-kept"}


def _container(container: dict[str, Any]) -> dict[str, Any]:
    if container.get("root"):
        raise FailedPrecondition(
            f"container {container['id']} has a directory as its root, which the agent of a pod that was "
            "started by version 0.1 cannot give it: start the pod again"
        )
    found = container.pop("disks")
    volumes = {disk["id"]: _unit(disk["at"]) for disk in found.get("volumes", ())}
    for mount in container.get("mounts", ()):
        if volume := mount.pop("volume", ""):
            mount["disk"] = volumes[volume]
    scratch = {"disk": _unit(found["scratch"]["at"])} if found.get("scratch") else {}
    return {**container, "lower": [_unit(disk["at"]) for disk in found["root"]], "scratch": scratch}


def _statistics(reply: dict[str, Any]) -> None:
    said = reply.get("containers")
    containers = [one for one in said if isinstance(one, dict)] if isinstance(said, list) else []
    for one in containers:
        one["layer"] = {"used": one.pop("fs_used", 0), "inodes": one.pop("fs_inodes", 0)}
    for usage in (reply.get("pod"), *(one.get("usage") for one in containers)):
        if isinstance(usage, dict):
            names = ("read_bytes", "write_bytes", "reads", "writes")
            usage["devices"] = [{"major": 0, "minor": 0, **{name: usage.pop(name, 0) for name in names}}]
