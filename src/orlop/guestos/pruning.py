"""Which builds of a cache stay that several programs share: daemons, checkouts with guests of their own.

What somebody uses stays, and so does what was used in the last hours: who has found a build has not opened
it yet. Of the rest the newest few are kept. That a build is used is told by a lock of flock(2) on its
directory, which ends with the process that has it.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from orlop.linux.removal import remove_tree

YOUNG = 3 * 3600.0
"""Seconds after its last use in which a build stays."""

ASIDE = ".work-"
"""What the names of directories begin with that are not whole: not yet, or not any more."""


def used(build: Path) -> None:
    """A build is used at this moment."""
    os.utime(build)


def hold(build: Path) -> int:
    """Have a build stay until the descriptor is closed, or this process ends.

    Raises OSError for one that has gone, or goes now; one that went just before is for the caller to notice.
    """
    descriptor = os.open(build, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def prune(builds: Iterable[Path], *, kept: int) -> None:
    """Remove all but the ``kept`` newest, those that are young and those that somebody holds."""
    found = [(path.stat().st_mtime, path) for path in builds if path.is_dir() and not path.is_symlink()]
    for at, path in sorted(found, reverse=True)[kept:]:
        if time.time() - at >= YOUNG:
            with suppress(OSError):  # somebody holds it
                _remove(path)


def _remove(build: Path) -> None:
    descriptor = os.open(build, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Another name first: whoever is killed meanwhile leaves nothing that looks like a build.
        aside = build.with_name(f"{ASIDE}{uuid.uuid4().hex}")
        build.rename(aside)
        remove_tree(aside)
    finally:
        os.close(descriptor)
