"""Files that are there whole or not at all."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path


def save(path: Path, data: bytes, *, durable: bool = False) -> None:
    """Put ``data`` in place at ``path``, readable by its owner alone: written aside, then renamed.

    Whoever reads sees the old content or the new; a failure leaves the old. After a power cut the
    file may be empty unless ``durable``, which waits for the disk. Raises OSError.
    """
    # A name of its own: two that save the same file at once must not write into one another's.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    descriptor = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(descriptor)
        aside.replace(path)
    except BaseException:
        with suppress(OSError):
            aside.unlink()
        raise
