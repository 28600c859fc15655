"""What is remembered of volumes and snapshots, a file beside each disk; and where all of that is.

    ROOT/volumes/ID/record.json     written before there is a disk, and after what it says was done
    ROOT/volumes/ID/data/           what a pod's mount names to have the volume
    ROOT/volumes/ID/data/.orlop-volume      its disk
    ROOT/snapshots/ID/record.json
    ROOT/snapshots/ID/data/.orlop-volume

A directory without a record was being made, or being removed, when the daemon ended.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from orlop.errors import DataLoss, InvalidArgument, NotFound
from orlop.host import files
from orlop.value import UNREADABLE, Value

DISK = ".orlop-volume"
"""The name that a VM's volumes have for their disk, see :mod:`orlop.storage.snapshot`."""

INSIDE = "volume"
"""The directory of a volume's file system that is the volume; beside it the file system has its own."""

MAX_NAME = 128
"""Characters of a name, as many as CSI allows for."""

Content = Literal["filesystem", "block"]
"""ext4, which somebody mounts; or bytes that only their user understands."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_RECORD = "record.json"
_DATA = "data"


class VolumeStep(StrEnum):
    """How far a volume or a snapshot is. Only what is ready is shown to anybody."""

    MAKING = "making"
    READY = "ready"
    REMOVING = "removing"


class Origin(Value, frozen=True):
    """What a volume began as: a copy of a volume or of a snapshot."""

    kind: Literal["volume", "snapshot"]
    id: str


class VolumeRecord(Value, frozen=True):
    """A volume of ``size`` bytes. ``created_at`` is in nanoseconds.

    A file system is one for the ``whole`` of a VM: pods in VMs get the disk itself, and no other pod gets
    it; or else it is mounted on the host and shared from there.
    """

    id: str
    name: str
    size: int
    created_at: int
    content: Content = "filesystem"
    whole: bool = False
    origin: Origin | None = None
    step: VolumeStep = VolumeStep.MAKING


class SnapshotRecord(Value, frozen=True):
    """What volume ``volume`` was at one moment."""

    id: str
    name: str
    volume: str
    size: int
    created_at: int
    content: Content = "filesystem"
    whole: bool = False
    step: VolumeStep = VolumeStep.MAKING


R = TypeVar("R", VolumeRecord, SnapshotRecord)


class VolumeUse(Value, frozen=True):
    """Bytes and inodes of a volume; no inodes where only its user knows of files."""

    total: int
    free: int
    inodes: int = 0
    inodes_free: int = 0


def id_of(name: str) -> str:
    """The id for a name that a caller gave: the name itself where it can be a file's.

    Raises InvalidArgument for a name that is empty, too long, or holds control characters.
    """
    if not name or len(name) > MAX_NAME or any(ord(one) < 0x20 or 0x7F <= ord(one) < 0xA0 for one in name):
        raise InvalidArgument(f"{name!a} cannot be a name: it has 1 to {MAX_NAME} characters, none a control")
    if _NAME.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
    return f"n-{digest[:40]}"


def check_id(text: str, what: str) -> str:
    """An id from outside, which becomes part of a path. Raises NotFound for one that none can have."""
    if not _NAME.fullmatch(text):
        raise NotFound(f"there is no {what} {text[:MAX_NAME]!a}")
    return text


def data_of(directory: Path) -> Path:
    """What mounts of a volume name."""
    return directory / _DATA


def disk_of(directory: Path) -> Path:
    """The disk of a volume or a snapshot."""
    return directory / _DATA / DISK


def save(directory: Path, record: VolumeRecord | SnapshotRecord) -> None:
    """Write a record, on the disk when this returns. Raises OSError."""
    files.save(directory / _RECORD, msgspec.json.encode(record), durable=True)


def load(directory: Path, kind: type[R]) -> R | None:
    """The record of a directory, None where there is none. Raises DataLoss for a damaged one, OSError."""
    try:
        data = (directory / _RECORD).read_bytes()
    except FileNotFoundError:
        return None
    try:
        found = msgspec.json.decode(data, type=kind)
    except UNREADABLE as error:
        raise DataLoss(f"{directory / _RECORD} is damaged: {error}") from error
    if found.id != directory.name:
        raise DataLoss(f"{directory / _RECORD} is that of {found.id}")
    return found
