"""The files behind the disks of a VM: the layers of images, and a container's writable layer."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted
from orlop.host import process, sparse, threads
from orlop.linux.removal import remove_tree

MIN_SCRATCH_MIB = 8
# EROFS files are whole blocks.
_LAYER_BLOCK = 4096


async def check_layers(layers: Sequence[str]) -> None:
    """See that layers can be attached to a VM as they are.

    Raises NotFound when one is missing, FailedPrecondition when one is damaged, InvalidArgument when there
    are none or one is not named by an absolute path.
    """
    if not layers:
        raise InvalidArgument("a disk without layers cannot be attached")
    await threads.call(_check_layers, layers)


def _check_layers(layers: Sequence[str]) -> None:
    for layer in layers:
        if not Path(layer).is_absolute():
            raise InvalidArgument(f"the layer {layer} is not named by an absolute path")
        try:
            size = Path(layer).stat().st_size
        except FileNotFoundError as error:
            raise NotFound(f"the layer {layer} is gone; pull the image again") from error
        if size == 0 or size % _LAYER_BLOCK:
            raise FailedPrecondition(
                f"the layer {layer} is damaged: its size is {size} bytes; remove the image"
            )


# The parts of freshly made file systems that are not zero, by size in MiB: some hundred kilobytes each.
_templates: dict[tuple[int, bool], tuple[tuple[int, bytes], ...]] = {}
_TEMPLATES_KEPT = 8


async def scratch_disk(path: Path, size_mib: int) -> Path:
    """A new disk image at ``path`` with an empty ext4 on it, of ``size_mib``; it takes space as it fills.

    It holds the empty directories ``upper`` and ``work`` for an overlay. There is no journal, and there
    are no checksums of metadata: a writable layer ends with its VM. A file that stands at ``path`` is
    replaced. Raises ResourceExhausted when the disk is full.
    """
    if size_mib < MIN_SCRATCH_MIB:
        raise InvalidArgument(
            f"a writable layer of {size_mib} MiB is too small; {MIN_SCRATCH_MIB} is the least"
        )
    await _make(path, size_mib, workplace=path.parent, lasting=False)
    return path


async def volume_disk(path: Path, size_mib: int, *, workplace: Path) -> None:
    """As :func:`scratch_disk`, for a volume, which outlives a VM that is ended in the middle of a write.

    It has a small journal and no directories. It appears at ``path`` as a whole; a format that is not known
    yet is tried in ``workplace``.
    """
    aside = path.with_name(f"{path.name}.new")
    await _make(aside, size_mib, workplace=workplace, lasting=True)
    await threads.call(aside.rename, path)


async def _make(path: Path, size_mib: int, *, workplace: Path, lasting: bool) -> None:
    parts = _templates.get((size_mib, lasting))
    try:
        if parts is None:
            parts = await _format(workplace / path.name, size_mib, lasting=lasting)
        await threads.call(_fill, path, size_mib << 20, parts)
    except OSError as error:
        raise ResourceExhausted(f"the disk {path} cannot be made: {error.strerror}") from error


# The journal's blocks count as used once they were written, so it is as small as it can be.
_LASTING = ("-O", "has_journal,^resize_inode,^metadata_csum,uninit_bg", "-J", "size=4")
_ENDING = ("-O", "^has_journal,^resize_inode,^metadata_csum,uninit_bg")


async def _format(path: Path, size_mib: int, *, lasting: bool) -> tuple[tuple[int, bytes], ...]:
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    content = aside.with_name(f"{aside.name}.content")
    try:
        await threads.call(_fill, aside, size_mib << 20, ())
        content.mkdir(mode=0o755, parents=True)
        for name in () if lasting else ("upper", "work"):
            (content / name).mkdir(mode=0o755)
        await process.run(
            [
                "mke2fs",
                "-q",
                "-F",
                "-t", "ext4",
                "-m", "0",
                *(_LASTING if lasting else _ENDING),
                "-E", "packed_meta_blocks=1,root_owner=0:0",
                "-d", content,
                aside,
            ]
        )  # fmt: skip
        parts = await threads.call(_data_parts, aside)
    finally:
        aside.unlink(missing_ok=True)
        with suppress(OSError):
            remove_tree(content)
    while len(_templates) >= _TEMPLATES_KEPT:
        _templates.pop(next(iter(_templates)))
    _templates[size_mib, lasting] = parts
    return parts


def _data_parts(path: Path) -> tuple[tuple[int, bytes], ...]:
    parts = []
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for begin, end in sparse.parts(descriptor):
            parts.extend(_nonzero(begin, os.pread(descriptor, end - begin, begin)))
    finally:
        os.close(descriptor)
    return tuple(parts)


def _nonzero(begin: int, data: bytes, block: int = 4096) -> list[tuple[int, bytes]]:
    """The parts of ``data`` that hold anything, in whole blocks."""
    parts: list[tuple[int, bytes]] = []
    run = -1
    for offset in range(0, len(data) + block, block):
        if any(data[offset : offset + block]):
            run = offset if run < 0 else run
        elif run >= 0:
            parts.append((begin + run, data[run:offset]))
            run = -1
    return parts


def _fill(path: Path, size: int, parts: Sequence[tuple[int, bytes]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        path.unlink()
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.ftruncate(descriptor, size)
        for offset, data in parts:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], offset + written)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(descriptor)
