"""The few system calls that Python's standard library does not offer, through libc.

Each function raises :class:`OSError` with the call's errno and the path it was about. Numbers of
the newer calls (mount API of Linux 5.2, ``mount_setattr`` of 5.12) are the same on every
architecture, so they go through ``syscall(2)`` and need no recent libc.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

CLONE_FS = 0x00000200
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_REMOUNT = 32
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20

MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
OPEN_TREE_CLONE = 1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x00100000

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_MOUNT_SETATTR = 442

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _checked(result: int, *about: str | Path) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *(os.fspath(path) for path in about[:1]))
    return result


def _bytes(path: str | Path) -> bytes:
    return os.fsencode(path)


def mount(source: str | Path, target: str | Path, fstype: str, flags: int, data: str = "") -> None:
    """mount(2)."""
    result = _libc.mount(
        _bytes(source),
        _bytes(target),
        fstype.encode() if fstype else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _checked(result, target)


def umount2(target: str | Path, flags: int) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(_bytes(target), ctypes.c_int(flags)), target)


def setns(descriptor: int, kind: int) -> None:
    """setns(2): moves the calling *thread*; ``kind`` 0 accepts any namespace."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)))


def unshare(flags: int) -> None:
    """unshare(2): gives the calling *thread* new namespaces."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def _syscall(number: int, *arguments: object) -> int:
    return int(_libc.syscall(ctypes.c_long(number), *arguments))


def open_tree(path: str | Path, *, recursive: bool) -> int:
    """A detached copy of the mount at ``path`` (open_tree(2) with OPEN_TREE_CLONE), as a descriptor."""
    flags = OPEN_TREE_CLONE | OPEN_TREE_CLOEXEC | (AT_RECURSIVE if recursive else 0)
    return _checked(_syscall(_NR_OPEN_TREE, ctypes.c_int(AT_FDCWD), _bytes(path), ctypes.c_uint(flags)), path)


def move_mount(descriptor: int, target: str | Path) -> None:
    """Attach a detached mount at ``target`` (move_mount(2))."""
    _checked(
        _syscall(
            _NR_MOVE_MOUNT,
            ctypes.c_int(descriptor),
            b"",
            ctypes.c_int(AT_FDCWD),
            _bytes(target),
            ctypes.c_uint(MOVE_MOUNT_F_EMPTY_PATH),
        ),
        target,
    )


def mount_setattr(
    target: int | str | Path,
    *,
    add: int = 0,
    clear: int = 0,
    propagation: int = 0,
    userns: int = -1,
    recursive: bool = False,
) -> None:
    """mount_setattr(2) on a path or on the descriptor of a detached mount. Linux 5.12."""
    attr = _MountAttr(add, clear, propagation, max(userns, 0))
    flags = AT_RECURSIVE if recursive else 0
    directory, path = (target, b"") if isinstance(target, int) else (AT_FDCWD, _bytes(target))
    if isinstance(target, int):
        flags |= AT_EMPTY_PATH
    result = _syscall(
        _NR_MOUNT_SETATTR,
        ctypes.c_int(directory),
        path,
        ctypes.c_uint(flags),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
    )
    _checked(result, *(() if isinstance(target, int) else (target,)))
