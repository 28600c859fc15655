"""Files on their way into a container and out of it, as tar archives."""

from __future__ import annotations

import io
import posixpath
import tarfile
from pathlib import Path
from typing import IO

from orlop.errors import InvalidArgument


def parent(path: str) -> str:
    """The directory that a path inside lies in. Raises InvalidArgument for one that is not absolute."""
    if not path.startswith("/") or not posixpath.basename(path.rstrip("/")):
        raise InvalidArgument(f"{path}: name the place in the container by a path from /, below /")
    return posixpath.dirname(path.rstrip("/"))


def name(path: str) -> str:
    """The last part of a path inside. Raises InvalidArgument for one that is not absolute."""
    parent(path)
    return posixpath.basename(path.rstrip("/"))


def pack(source: bytes | Path, path: str, file: IO[bytes]) -> None:
    """Write an archive to ``file`` that makes ``source`` when it is unpacked in the directory of ``path``."""
    with tarfile.open(fileobj=file, mode="w") as tar:
        if isinstance(source, Path):
            tar.add(source, arcname=name(path))
        else:
            entry = tarfile.TarInfo(name(path))
            entry.size = len(source)
            entry.mode = 0o644
            tar.addfile(entry, io.BytesIO(source))
    file.seek(0)


def unpack(file: IO[bytes], target: Path) -> None:
    """Unpack below ``target``. Raises InvalidArgument for an archive that is none or wants out of there."""
    target.mkdir(parents=True, exist_ok=True)
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            tar.extractall(target, filter="data")
    except tarfile.TarError as error:
        raise InvalidArgument(f"what the container sent cannot be unpacked: {error}") from error
