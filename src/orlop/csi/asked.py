"""What callers ask for, checked and in our own words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from orlop.csi import names
from orlop.csi.api import csi_v1_pb2 as pb
from orlop.errors import AlreadyExists, InvalidArgument, OutOfRange
from orlop.value import Value
from orlop.volumes import publisher
from orlop.volumes.records import Content, VolumeRecord
from orlop.volumes.store import LEAST, MOST, rounded

USUAL_SIZE = 1 << 30
"""Bytes of a volume whose caller does not say how many."""

_MANY_NODES = frozenset(
    {
        pb.VolumeCapability.AccessMode.MULTI_NODE_READER_ONLY,
        pb.VolumeCapability.AccessMode.MULTI_NODE_SINGLE_WRITER,
        pb.VolumeCapability.AccessMode.MULTI_NODE_MULTI_WRITER,
    }
)
_KINDS: tuple[str, ...] = ("", "ext4")


class Wish(Value, frozen=True):
    """A way to use a volume. ``alone``: by one pod at a time. ``options`` are those of a mount."""

    content: Content
    alone: bool = False
    read_only: bool = False
    options: tuple[str, ...] = ()


def required(text: str, what: str) -> str:
    """Raises InvalidArgument where nothing is given."""
    if not text:
        raise InvalidArgument(f"{what} is missing")
    return text


def wish(capability: pb.VolumeCapability) -> Wish:
    """One way to use a volume. Raises InvalidArgument for what no volume of a single machine can do."""
    mode = capability.access_mode.mode
    if mode in _MANY_NODES:
        raise InvalidArgument("a volume is on one node, and cannot be used from several")
    if mode == pb.VolumeCapability.AccessMode.UNKNOWN:
        raise InvalidArgument("a volume capability says no access mode")
    modes = pb.VolumeCapability.AccessMode
    alone, read_only = mode == modes.SINGLE_NODE_SINGLE_WRITER, mode == modes.SINGLE_NODE_READER_ONLY
    kind = capability.WhichOneof("access_type")
    if kind is None:
        raise InvalidArgument("a volume capability says neither block nor mount")
    if kind == "block":
        return Wish(content="block", alone=alone, read_only=read_only)
    if capability.mount.fs_type not in _KINDS:
        raise InvalidArgument(f"the file system is ext4, and cannot be {capability.mount.fs_type!a}")
    options = tuple(capability.mount.mount_flags)
    publisher.flags_of(options)
    return Wish(content="filesystem", alone=alone, read_only=read_only, options=options)


def wishes(capabilities: Iterable[pb.VolumeCapability]) -> list[Wish]:
    """All ways to use one volume, of one content. Raises InvalidArgument."""
    found = [wish(one) for one in capabilities]
    if not found:
        raise InvalidArgument("volume capabilities are missing")
    if len({one.content for one in found}) > 1:
        raise InvalidArgument("a volume cannot be a block device and a file system at once")
    return found


def size(wanted: pb.CapacityRange, *, usual: int = USUAL_SIZE) -> int:
    """Bytes of a volume within the range. Raises OutOfRange where there are none."""
    if wanted.required_bytes < 0 or wanted.limit_bytes < 0:
        raise OutOfRange("a volume cannot have a negative size")
    least = wanted.required_bytes or min(usual, wanted.limit_bytes or usual)
    try:
        found = rounded(max(least, LEAST))
    except InvalidArgument as error:
        raise OutOfRange(str(error)) from error
    if wanted.limit_bytes and found > wanted.limit_bytes:
        raise OutOfRange(
            f"a volume of {found} bytes is the least there is, whole MiB from {LEAST >> 20} to {MOST >> 20} "
            f"of them, and {wanted.limit_bytes} bytes are the limit"
        )
    return found


def check_limit(found: VolumeRecord, wanted: pb.CapacityRange) -> None:
    """See that a volume which was there before is not too large. Raises AlreadyExists."""
    if wanted.limit_bytes and found.size > wanted.limit_bytes:
        raise AlreadyExists(
            f"volume {found.name!a} exists, and has {found.size} bytes, above {wanted.limit_bytes}"
        )


def check_grown(found: VolumeRecord, wanted: pb.CapacityRange) -> None:
    """See that a volume which has grown is not too large. Raises OutOfRange."""
    if wanted.limit_bytes and found.size > wanted.limit_bytes:
        raise OutOfRange(f"volume {found.id} has {found.size} bytes already, above {wanted.limit_bytes}")


def whole(parameters: Mapping[str, str]) -> bool | None:
    """Whether a VM is to have a volume's disk itself, None where nothing is said. Raises InvalidArgument."""
    mounted_by = ""
    for name, value in parameters.items():
        if name == names.MOUNTED_BY:
            mounted_by = value
        elif not name.startswith(names.CLUSTERS_OWN):
            raise InvalidArgument(f"the parameter {name!a} is not known; there is {names.MOUNTED_BY}")
    if mounted_by not in ("", "host", "guest"):
        raise InvalidArgument(f"the parameter {names.MOUNTED_BY} is host or guest, not {mounted_by!a}")
    return mounted_by == "guest" if mounted_by else None


def check_snapshot(parameters: Mapping[str, str]) -> None:
    """Raises InvalidArgument for parameters of a snapshot, of which there are none."""
    for name in parameters:
        if not name.startswith(names.CLUSTERS_OWN):
            raise InvalidArgument(f"the parameter {name!a} of a snapshot is not known")
