"""Who a container's process is, by the user database in its own root file system."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from orlop.errors import InvalidArgument, OrlopError
from orlop.linux import users
from orlop.sandbox.spec import Security
from orlop.storage.rootfs import resolve_in


def resolve(security: Security, rootfs: Path) -> users.Identity:
    """The identity that ``security`` asks for. Raises InvalidArgument for a name that does not exist."""
    wanted = users.Wanted(
        user=security.user,
        group=security.group,
        supplemental_groups=security.supplemental_groups,
        strict_groups=security.strict_groups,
    )
    try:
        return users.find(wanted, _read(rootfs, "etc/passwd"), _read(rootfs, "etc/group"))
    except users.UnknownName as error:
        raise InvalidArgument(str(error)) from error


def _read(rootfs: Path, path: str) -> str:
    """A file of the container; its symbolic links lead nowhere else. "" when there is none."""
    try:
        # Not to be held up by a FIFO or a device that stands where the file should be.
        descriptor = os.open(
            resolve_in(rootfs, path), os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
        )
    except (OrlopError, OSError):
        return ""
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            return ""
        return file.read(users.MAX_FILE).decode(errors="replace")
