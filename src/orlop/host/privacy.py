"""Who may enter the daemon's directories: root, and where a user namespace's root must pass, its group.

What pods write, their environment, private images and the memory of VMs lie there, beside programs
that are set-uid inside an image. So each directory directly below the daemon's own is closed to others,
whatever the modes of what is in it.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Collection
from pathlib import Path

PRIVATE = 0o700
PASSABLE = 0o711
"""Others may go through to a name they know: a socket with a mode of its own, a pod's own directory."""

_GROUP_PASSES = 0o710
_SHARED = re.compile(
    r"/((boot|dev|etc|home|media|mnt|opt|proc|root|run|srv|sys|tmp|usr|var)|var/(cache|lib|log|run|tmp))?"
)


def close_top(top: Path, *, private: Collection[str] = (), passable: Collection[str] = ()) -> None:
    """Make the directory ``top`` with those below it, and close what an earlier version left open.

    Directories below are for root alone but for those named in ``passable``, files too; sockets and
    symbolic links are left as they are. Raises OSError, also for a directory of the system.
    """
    if _SHARED.fullmatch(os.fspath(top.resolve())):
        raise OSError(errno.EINVAL, "it is not the daemon's alone", os.fspath(top))
    top.mkdir(mode=PASSABLE, parents=True, exist_ok=True)
    top.chmod(PASSABLE)
    for name in private:
        make_private(top / name)
    for path in top.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.chmod(PASSABLE if path.name in passable else PRIVATE)
        elif stat.S_ISREG(mode):
            path.chmod(0o600)


def close_all(directory: Path) -> None:
    """Take the rights of others from each directory in ``directory``, if there is one. Raises OSError."""
    if not directory.is_dir():
        return
    for path in directory.iterdir():
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            path.chmod(stat.S_IMODE(mode) & ~0o007)


def make_private(path: Path, *, group: int | None = None) -> None:
    """Make a directory for root alone, through which members of ``group`` may pass. Idempotent.

    Raises OSError.
    """
    path.mkdir(mode=PRIVATE, parents=True, exist_ok=True)
    if group is not None:
        os.chown(path, 0, group)
    path.chmod(PRIVATE if group is None else _GROUP_PASSES)
