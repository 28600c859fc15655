"""File systems that somebody else has made, and goes on to use: mounted, given to a group, grown.

All of it may take long, and is done in a process of its own. It fails by an exception.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import struct
import time
from contextlib import suppress

from orlop.guest.devices.block import PATIENCE, take_all
from orlop.linux import syscalls
from orlop.wire.values import FileSystem

_FLAGS = {
    "dirsync": 0x80,
    "lazytime": 1 << 25,
    "noatime": syscalls.MS_NOATIME,
    "nodev": syscalls.MS_NODEV,
    "nodiratime": 0x800,
    "noexec": syscalls.MS_NOEXEC,
    "nosuid": syscalls.MS_NOSUID,
    "relatime": 1 << 21,
    "strictatime": syscalls.MS_STRICTATIME,
    "sync": 0x10,
}
"""Options that are flags of mount(2); the others are for the file system."""

_SOON = 0.05

# ioctl_xfs_fsgeometry(2), version 1, and ioctl_xfs_fsgrow(2).
_XFS_GEOMETRY = 0x80705864
_XFS_GEOMETRY_SIZE = 112
_XFS_START = struct.Struct("=8IQ")
_XFS_GROW = 0x4010586E
_XFS_WANTED = struct.Struct("=QI4x")


def mount(node: str, directory: str, wanted: FileSystem) -> None:
    """Mount what is on the device ``node``, as it is ``wanted``."""
    flags = syscalls.MS_RDONLY if wanted.read_only else 0
    for option in wanted.options:
        flags |= _FLAGS.get(option, 0)
    rest = ",".join(option for option in wanted.options if option not in _FLAGS)
    try:
        syscalls.mount(node, directory, wanted.kind, flags, rest)
    except OSError as error:
        if error.errno == errno.ENODEV:
            raise OSError(f"the kernel of its VM has no {wanted.kind}") from error
        raise OSError(f"its device cannot be mounted as {wanted.kind}: {error.strerror}") from error
    if wanted.read_only:
        return
    try:
        _take_all(wanted.kind, node, directory)
        if wanted.group is not None:
            give(directory, wanted.group, only_root=wanted.only_root)
    except OSError as error:
        syscalls.umount(directory, syscalls.MNT_DETACH)
        text = f"what is in it cannot be given to the group {wanted.group}: {error.strerror}"
        raise OSError(text) from error


def give(directory: str, group: int, *, only_root: bool) -> None:
    """Let ``group`` own all that is in a volume, read and write it, as a kubelet does for fsGroup.

    With ``only_root`` nothing is done if the root is so already: it comes last, so that what was broken off
    is begun anew.
    """
    root = os.stat(directory)
    if only_root and root.st_gid == group and root.st_mode & 0o2070 == 0o2070:
        return
    for _, directories, files, here in os.fwalk(directory, topdown=False):
        for name in (*directories, *files):
            _give(name, group, here)
    _give(directory, group, None)


def _give(name: str, group: int, here: int | None) -> None:
    found = os.stat(name, dir_fd=here, follow_symlinks=False)
    os.chown(name, -1, group, dir_fd=here, follow_symlinks=False)
    if stat.S_ISLNK(found.st_mode):
        return
    more = 0o2770 if stat.S_ISDIR(found.st_mode) else 0o660
    # A change of the owner has taken away what says whose rights a program has.
    os.chmod(name, stat.S_IMODE(found.st_mode) | more, dir_fd=here)


def grow(kind: str, node: str, directory: str, size: int) -> None:
    """Let the file system take all of its device, which the kernel is about to see as ``size`` bytes."""
    until = time.monotonic() + PATIENCE
    while _size(node) < size:
        if time.monotonic() > until:
            raise OSError(f"its device has not become {size} bytes")
        time.sleep(_SOON)
    if not os.statvfs(directory).f_flag & os.ST_RDONLY:
        _take_all(kind, node, directory)


def _take_all(kind: str, node: str, directory: str) -> None:
    if kind == "xfs":
        _take_all_xfs(node, directory)
    else:
        take_all(node, directory)


def _take_all_xfs(node: str, directory: str) -> None:
    """Let XFS grow over all of its disk, which may be larger than when it was mounted last."""
    with suppress(OSError):  # it stays as large as it was, then
        size = _size(node)
        top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            geometry = bytearray(_XFS_GEOMETRY_SIZE)
            fcntl.ioctl(top, _XFS_GEOMETRY, geometry)
            block, *_, inodes_percent, known = _XFS_START.unpack_from(geometry)
            if known < size // block:
                fcntl.ioctl(top, _XFS_GROW, _XFS_WANTED.pack(size // block, inodes_percent))
        finally:
            os.close(top)


def _size(node: str) -> int:
    device = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(device, 0, os.SEEK_END)
    finally:
        os.close(device)
