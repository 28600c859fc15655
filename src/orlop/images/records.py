"""What is remembered about images, one JSON file each, and which containers use which layers.

Files are written aside and renamed, so a reader never sees half of one. Layers are not forced to disk
while a pull waits: a record says in which boot of the machine its layers were written, until they have been
synced. After a crash of the machine such an image is dropped and
pulled again, instead of being trusted with holes in it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec

from orlop.errors import Unavailable
from orlop.host import files
from orlop.images.model import ImageConfigOci
from orlop.value import UNREADABLE

log = logging.getLogger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An image as it is kept.

    ``diff_ids`` are its layers, bottom first, with the one that repairs directories, if any, on top.
    ``unsettled`` is the boot in which they were written, or "".
    """

    id: str
    config: ImageConfigOci
    diff_ids: tuple[str, ...]
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    size: int = 0
    pulled_at: int = 0
    unsettled: str = ""


class UseRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The layers that a container needs, whether or not their image is still listed."""

    owner: str
    image_id: str
    diff_ids: tuple[str, ...]


def boot_id() -> str:
    """The kernel's name for this boot."""
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return "unknown"


class Records:
    """The files below ``root``. Synchronous and small; one caller at a time."""

    def __init__(self, root: Path) -> None:
        self._images = root / "images"
        self._uses = root / "uses"

    def load(self) -> tuple[dict[str, ImageRecord], dict[str, UseRecord]]:
        """All images by id and all uses by owner. Damaged files are dropped with a warning.

        Raises Unavailable for a file that cannot be read just now, OSError.
        """
        self._images.mkdir(parents=True, exist_ok=True)
        self._uses.mkdir(exist_ok=True)
        images = {record.id: record for record in _read_all(self._images, ImageRecord)}
        uses = {record.owner: record for record in _read_all(self._uses, UseRecord)}
        return images, uses

    def save_images(self, records: Sequence[ImageRecord]) -> None:
        """Write or replace images, in this order; a full disk leaves all as they were. Raises OSError."""
        files.save_all({self._image_path(record.id): msgspec.json.encode(record) for record in records})

    def delete_image(self, image_id: str) -> None:
        """Forget an image. Idempotent."""
        self._image_path(image_id).unlink(missing_ok=True)

    def save_use(self, record: UseRecord) -> None:
        """Write or replace what a container uses. Raises OSError."""
        files.save(self._use_path(record.owner), msgspec.json.encode(record))

    def delete_use(self, owner: str) -> None:
        """Forget what a container uses. Idempotent."""
        self._use_path(owner).unlink(missing_ok=True)

    def _image_path(self, image_id: str) -> Path:
        return self._images / f"{image_id.removeprefix('sha256:')}.json"

    def _use_path(self, owner: str) -> Path:
        return self._uses / f"{owner}.json"


def _read_all(directory: Path, kind: type[ImageRecord] | type[UseRecord]) -> list:  # type: ignore[type-arg]
    found = []
    for path in sorted(directory.iterdir()):
        if path.suffix != ".json":
            path.unlink(missing_ok=True)
            continue
        try:
            content = path.read_bytes()
        except OSError as error:
            # It may be whole. Without it the layers that it names would be taken for nobody's and removed.
            raise Unavailable(
                f"{path} cannot be read: {error.strerror}; start again once it can be, or remove the file "
                "and pull its image again"
            ) from error
        try:
            found.append(msgspec.json.decode(content, type=kind))
        except UNREADABLE as error:
            log.warning("%s is damaged and dropped: %s", path, error)
            path.unlink(missing_ok=True)
    return found


def sync(paths: list[Path]) -> None:
    """Force files to disk; those that are gone meanwhile do not matter. Raises OSError."""
    for path in paths:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        try:
            os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
