"""Files on their way into a container and out of it, as tar archives."""

from __future__ import annotations

import io
import posixpath
import tarfile
from pathlib import Path

from orlop.errors import InvalidArgument


def parent(path: str) -> str:
    """The directory that a path inside lies in. Raises InvalidArgument for one that is not absolute."""
    if not path.startswith("/") or not posixpath.basename(path.rstrip("/")):
        raise InvalidArgument(f"{path}: name the place in the container by a path from /, below /")
    return posixpath.dirname(path.rstrip("/"))


def pack(source: bytes | Path, path: str) -> bytes:
    """An archive that makes ``source`` when it is unpacked in the directory that ``path`` lies in."""
    parent(path)
    name = posixpath.basename(path.rstrip("/"))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        if isinstance(source, Path):
            tar.add(source, arcname=name)
        else:
            entry = tarfile.TarInfo(name)
            entry.size = len(source)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(source))
    return buffer.getvalue()


def unpack(packed: bytes, target: Path) -> None:
    """Unpack below ``target``. Raises InvalidArgument for an archive that is none or wants out of there."""
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:") as tar:
            tar.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise InvalidArgument(f"what the container sent cannot be unpacked: {error}") from error
