"""Directories for what is on its way, and goes when it has arrived or not."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from orlop.errors import of_system
from orlop.host import threads
from orlop.host.tasks import uncancelled
from orlop.linux.removal import remove_tree


@asynccontextmanager
async def directory(parent: Path, purpose: str) -> AsyncIterator[Path]:
    """A new directory in ``parent``, for its owner alone, which goes with the block.

    Raises ResourceExhausted, or FailedPrecondition for what else the system refuses.
    """
    path = parent / f"{purpose}-{uuid.uuid4().hex}"
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise of_system(error, f"{path} cannot be made: {error.strerror}") from error
    try:
        yield path
    finally:
        # On a thread: what is large takes the disk its time, and everybody else would wait for that.
        await uncancelled(threads.call(remove_tree, path))
