"""SELinux: labels of containers' files and volumes, on hosts that have it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument

_ATTRIBUTE = "security.selinux"
_NEVER = frozenset(
    (
        "/",
        "/bin",
        "/boot",
        "/dev",
        "/etc",
        "/home",
        "/lib",
        "/opt",
        "/proc",
        "/root",
        "/run",
        "/sbin",
        "/sys",
        "/tmp",
        "/usr",
        "/var",
    )
)


def enabled() -> bool:
    """Whether the host's kernel has SELinux switched on."""
    return Path("/sys/fs/selinux/enforce").exists()


def file_label(label: str) -> str:
    """The label of files that processes of ``label`` may use: the same user and level.

    Raises InvalidArgument for what is no label.
    """
    user, role, kind, level = [*label.split(":", 3), "", "", "", ""][:4]
    if not (user and role and kind):
        raise InvalidArgument(f"SELinux label {label[:80]!r} is not user:role:type:level")
    return f"{user}:object_r:container_file_t:{level or 's0'}"


def relabel(path: str, label: str) -> None:
    """Give a volume, all of it, the file label of a container. Nothing happens without SELinux.

    Raises InvalidArgument for a directory of the system, FailedPrecondition naming a file that
    cannot be relabelled.
    """
    if not enabled():
        return
    plain = os.path.normpath(path)
    if plain in _NEVER:
        raise InvalidArgument(f"volume {path} is a directory of the system and is not relabelled")
    value = file_label(label).encode()
    for each in _tree(plain):
        try:
            with suppress(FileNotFoundError):
                os.setxattr(each, _ATTRIBUTE, value, follow_symlinks=False)
        except OSError as error:
            if error.errno == errno.ENOTSUP:
                return  # a file system without labels has one for all of it
            raise FailedPrecondition(f"{each} cannot be relabelled: {error.strerror}") from error


def _tree(path: str) -> Iterator[str]:
    yield path
    for place, names, files in os.walk(path):
        yield from (f"{place}/{name}" for name in (*names, *files))
