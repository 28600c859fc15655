"""Saved machines: how one is written, checked and read.

``ROOT/template-<key>/`` holds ``memory`` (the guest's memory, a sparse file that every clone maps
privately), ``state`` (the devices, QEMU's migration stream) and ``manifest.json`` with sizes and digests.
The manifest is written last and the directory renamed into place, so a directory without a valid one
never was complete. The digests are checked once per daemon; after that size and times must stay.
"""

from __future__ import annotations

import errno
import hashlib
import os
from contextlib import suppress
from pathlib import Path

import msgspec

from orlop.errors import DataLoss
from orlop.host import files
from orlop.hypervisor.base import Accelerator, MachineShape, Template
from orlop.linux.removal import remove_tree

MEMORY = "memory"
STATE = "state"
_MANIFEST = "manifest.json"
_PREFIX = "template-"
_CHUNK = 64 << 10


class _File(msgspec.Struct, frozen=True):
    name: str
    size: int
    digest: str


class _Manifest(msgspec.Struct, frozen=True):
    key: str
    shape: MachineShape
    accelerator: Accelerator
    files: tuple[_File, ...]


Stamp = tuple[tuple[int, int, int], ...]


def directory_for(root: Path, key: str) -> Path:
    """Where the template of that key is."""
    return root / f"{_PREFIX}{key[:24]}"


def seal(work: Path, root: Path, key: str, shape: MachineShape, accelerator: Accelerator) -> Template:
    """Make ``work``, which holds ``memory`` and ``state``, the template of ``key``; others are removed.

    Raises OSError."""
    parts = tuple(_File(name, (work / name).stat().st_size, _digest(work / name)) for name in (MEMORY, STATE))
    for name in (MEMORY, STATE):
        (work / name).chmod(0o400)
    manifest = _Manifest(key, shape, accelerator, parts)
    files.save(work / _MANIFEST, msgspec.json.encode(manifest), durable=True)
    target = directory_for(root, key)
    for path in root.glob(f"{_PREFIX}*"):
        # Clones that run keep the files they mapped.
        _drop(path)
    work.rename(target)
    return Template(key=key, directory=target, shape=shape, accelerator=accelerator)


def load(root: Path, key: str) -> Template:
    """The template of ``key`` with its digests checked. Raises DataLoss when it is missing or damaged."""
    directory = directory_for(root, key)
    try:
        manifest = msgspec.json.decode((directory / _MANIFEST).read_bytes(), type=_Manifest)
    except (OSError, msgspec.DecodeError) as error:
        raise DataLoss(f"the template {directory} has no valid manifest: {error}") from error
    if manifest.key != key:
        raise DataLoss(f"the template {directory} belongs to another machine")
    for file in manifest.files:
        path = directory / file.name
        try:
            whole = path.stat().st_size == file.size and _digest(path) == file.digest
        except OSError as error:
            raise DataLoss(f"{path} of the template cannot be read: {error.strerror}") from error
        if not whole:
            raise DataLoss(f"{path} of the template is not what was saved")
    return Template(key=key, directory=directory, shape=manifest.shape, accelerator=manifest.accelerator)


def stamp(template: Template) -> Stamp:
    """Inode, size and modification time of its files, to see a later change. Raises DataLoss."""
    try:
        found = [(template.directory / name).stat() for name in (MEMORY, STATE)]
    except OSError as error:
        raise DataLoss(f"the template {template.directory} is not whole: {error.strerror}") from error
    return tuple((status.st_ino, status.st_size, status.st_mtime_ns) for status in found)


def remove(root: Path) -> None:
    """Remove all templates."""
    for path in root.glob(f"{_PREFIX}*"):
        _drop(path)


def _drop(path: Path) -> None:
    with suppress(OSError):  # what is left of an old template harms nobody
        remove_tree(path)


def _digest(path: Path) -> str:
    """A digest of a sparse file that does not depend on where its holes are."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        descriptor = file.fileno()
        size = os.fstat(descriptor).st_size
        place = 0
        while (place := _next_data(descriptor, place, size)) < size:
            end = os.lseek(descriptor, place, os.SEEK_HOLE)  # from the data: before it may be a hole
            place -= place % _CHUNK
            while place < end:
                chunk = os.pread(descriptor, _CHUNK, place)
                if chunk.count(0) != len(chunk):
                    digest.update(place.to_bytes(8, "little") + chunk)
                place += _CHUNK
    return digest.hexdigest()


def _next_data(descriptor: int, place: int, size: int) -> int:
    if place >= size:
        return size
    try:
        return os.lseek(descriptor, place, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size
        raise
