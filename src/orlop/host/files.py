"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def save(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Put ``data`` in place at ``path``, readable by its owner alone: written aside, then renamed.

    Whoever reads sees the old content or the new; a failure leaves the old. After a power cut the
    file may be empty unless ``durable``, which waits for the disk. Raises OSError.
    """
    save_all({path: data}, durable=durable)


def save_all(contents: Mapping[Path, bytes], *, durable: bool = False) -> None:
    """Put several files in place as :func:`save` does, in this order.

    All are written before the first is renamed: a disk that is full leaves the old ones. Raises OSError.
    """
    aside: dict[Path, Path] = {}
    try:
        for path, data in contents.items():
            # A name of its own: two that save the same file at once must not write into one another's.
            aside[path] = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            _write(aside[path], data, durable=durable)
        for path, written in aside.items():
            written.replace(path)
    except BaseException:
        for written in aside.values():
            with suppress(OSError):
                written.unlink()
        raise


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        if durable:
            file.flush()
            os.fsync(descriptor)
