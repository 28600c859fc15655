"""Saved machines: how one is written, checked and read.

``ROOT/template-<key>-<number>/`` holds ``memory`` (the guest's memory, a sparse file that every clone maps
privately), ``state`` (the devices, QEMU's migration stream) and ``manifest.json`` with sizes and digests.
The manifest is written last and the directory renamed into place, so a directory without a valid one
never was complete.

No machine gets these files. A daemon copies them once, checking their digests as it reads, into memory
that is sealed (memfd_create(2), F_ADD_SEALS): whoever takes a machine over holds a descriptor that
cannot be written, and clean pages that every clone shares stay what they were when they were saved.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import msgspec

from orlop.errors import DataLoss
from orlop.host import files, sparse
from orlop.hypervisor.base import Accelerator, MachineShape, Template
from orlop.linux.removal import remove_tree
from orlop.value import UNREADABLE

MEMORY = "memory"
STATE = "state"
_MANIFEST = "manifest.json"
_PREFIX = "template-"
_CHUNK = 64 << 10
_SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL


class _File(msgspec.Struct, frozen=True):
    name: str
    size: int
    digest: str


class _SavedManifest(msgspec.Struct, frozen=True):
    key: str
    shape: MachineShape
    accelerator: Accelerator
    files: tuple[_File, ...]
    made: float = 0.0


class Saved:
    """A template in sealed memory. :meth:`close` it when no more clones are to be made; those there go on."""

    def __init__(self, template: Template, memory: int, state: int) -> None:
        self.template = template
        self._memory = memory
        self._state = state

    def open_memory(self) -> int:
        """A descriptor of the memory, for a machine to inherit; the caller closes it."""
        return os.dup(self._memory)

    def open_state(self) -> int:
        """A descriptor at the start of the state, for a machine to read; the caller closes it."""
        # Not a duplicate, which would share its position with those of other machines.
        return os.open(f"/proc/self/fd/{self._state}", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Let go of the memory."""
        os.close(self._memory)
        os.close(self._state)


def any_in(root: Path) -> bool:
    """Whether there is a template of any key, whole or not."""
    return any(root.glob(f"{_PREFIX}*"))


def find(root: Path, key: str) -> list[Path]:
    """The directories of the templates of that key, the newest first, whole or not."""
    return sorted(root.glob(f"{_PREFIX}{key[:24]}*"), key=_written, reverse=True)


def _written(directory: Path) -> float:
    with suppress(OSError):
        return (directory / _MANIFEST).stat().st_mtime
    return 0.0


def new_memory(work: Path, shape: MachineShape) -> int:
    """A file for the memory of a machine that becomes a template; the caller closes it. Raises OSError."""
    file = os.open(work / MEMORY, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    # The machine's user opens it by the descriptor that it inherits; nobody else gets below ``root``.
    os.fchmod(file, 0o666)
    os.ftruncate(file, shape.memory_mib << 20)
    return file


def seal(work: Path, root: Path, key: str, shape: MachineShape, accelerator: Accelerator) -> Template:
    """Make ``work``, which holds ``memory`` and ``state``, a template of ``key``; those of others go.

    Raises OSError."""
    parts = tuple(_File(name, (work / name).stat().st_size, _digest(work / name)) for name in (MEMORY, STATE))
    for name in (MEMORY, STATE):
        (work / name).chmod(0o400)
    manifest = _SavedManifest(key, shape, accelerator, parts, time.time())
    files.save(work / _MANIFEST, msgspec.json.encode(manifest), durable=True)
    for path in set(root.glob(f"{_PREFIX}*")) - set(find(root, key)):
        drop(path)
    target = root / f"{_PREFIX}{key[:24]}-{secrets.token_hex(4)}"
    work.rename(target)
    return Template(key=key, directory=target, shape=shape, accelerator=accelerator, made=manifest.made)


def load(directory: Path, key: str) -> Saved:
    """The template in ``directory``, checked and sealed.

    Raises DataLoss when it is missing, damaged or not of that key, OSError."""
    try:
        manifest = msgspec.json.decode((directory / _MANIFEST).read_bytes(), type=_SavedManifest)
    except (OSError, *UNREADABLE) as error:
        raise DataLoss(f"the template {directory} has no valid manifest: {error}") from error
    if manifest.key != key:
        raise DataLoss(f"the template {directory} belongs to another machine")
    by_name = {file.name: file for file in manifest.files}
    with ExitStack() as undo:
        copies = []
        for name in (MEMORY, STATE):
            if name not in by_name:
                raise DataLoss(f"the template {directory} has no {name}")
            copies.append(_sealed(directory / name, by_name[name]))
            undo.callback(os.close, copies[-1])
        undo.pop_all()
    template = Template(
        key=key,
        directory=directory,
        shape=manifest.shape,
        accelerator=manifest.accelerator,
        made=manifest.made,
    )
    return Saved(template, *copies)


def _sealed(path: Path, wanted: _File) -> int:
    copy = os.memfd_create(wanted.name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        if path.stat().st_size != wanted.size or _digest(path, copy) != wanted.digest:
            raise DataLoss(f"{path} of the template is not what was saved")
        os.ftruncate(copy, wanted.size)
        fcntl.fcntl(copy, fcntl.F_ADD_SEALS, _SEALS)
    except OSError as error:
        os.close(copy)
        raise DataLoss(f"{path} of the template cannot be read: {error.strerror}") from error
    except BaseException:
        os.close(copy)
        raise
    return copy


def drop(path: Path) -> None:
    """Remove a template's directory. Idempotent."""
    with suppress(OSError):  # what is left of an old template harms nobody
        remove_tree(path)


def _digest(path: Path, copy: int | None = None) -> str:
    """A digest of a sparse file that does not depend on where its holes are.

    What was read for it is written to ``copy``: nobody can exchange it in between."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        descriptor = file.fileno()
        place = 0
        for begin, end in sparse.parts(descriptor):
            # A chunk with several runs in it is read once.
            place = max(place, begin - begin % _CHUNK)
            while place < end:
                chunk = os.pread(descriptor, _CHUNK, place)
                if chunk.count(0) != len(chunk):
                    digest.update(place.to_bytes(8, "little") + chunk)
                    if copy is not None:
                        os.pwrite(copy, chunk, place)
                place += _CHUNK
    return digest.hexdigest()
