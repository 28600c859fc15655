"""System calls that Python's standard library does not offer, by ctypes.

Every function raises OSError, with the path it was about where there is one. x86-64 and arm64 share
the numbers of all calls that are newer than both; the others come from libc.
"""

from __future__ import annotations

import ctypes
import os
import struct

# PyDLL keeps the interpreter's lock during the call: there is no other thread to let run.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long

MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MS_SLAVE = 1 << 19
MS_SHARED = 1 << 20
MS_STRICTATIME = 1 << 24
MNT_DETACH = 2

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000

AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_AT_RECURSIVE = 0x8000

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

IN_MODIFY = 0x2
_IN_NONBLOCK = 0o4000
_IN_CLOEXEC = 0o2000000

_NR_BPF = {"x86_64": 321, "aarch64": 280}
_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

_MACHINE = os.uname().machine


def _raise(path: str | None = None) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, os.strerror(number), path) if path else OSError(number, os.strerror(number))


def _call(number: int, *arguments: object) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result: int = _syscall(ctypes.c_long(number), *converted)
    if result < 0:
        raise _raise()
    return result


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). ``target`` names the error."""
    if (
        _libc.mount(
            source.encode(),
            os.fsencode(target),
            kind.encode() or None,
            ctypes.c_ulong(flags),
            os.fsencode(options) or None,
        )
        < 0
    ):
        raise _raise(target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags) < 0:
        raise _raise(target)


def setns(fd: int, flags: int) -> None:
    """setns(2); with a pidfd, ``flags`` may name several namespaces."""
    if _libc.setns(fd, ctypes.c_int(flags)) < 0:
        raise _raise()


def open_tree(path: str, *, recursive: bool = True, directory: int = AT_FDCWD) -> int:
    """A detached copy of the mount at ``path`` (or of a single file), as a descriptor."""
    flags = 1 | os.O_CLOEXEC | (_AT_RECURSIVE if recursive else 0) | (0 if path else _AT_EMPTY_PATH)
    try:
        return _call(_NR_OPEN_TREE, directory, os.fsencode(path), flags)
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open ``path`` as if the directory ``root`` were /: no symbolic link leads out of it."""
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, 0, 0x10)
    try:
        return _call(_NR_OPENAT2, root, os.fsencode(path or "."), how, len(how))
    except OSError as error:
        raise OSError(error.errno, error.strerror, path) from None


def open_below(root: str, path: str) -> int:
    """An O_PATH descriptor of ``path`` within ``root``; see :func:`open_in_root`."""
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_in_root(fd, path, os.O_PATH)
    finally:
        os.close(fd)


def move_mount(fd: int, target: str) -> None:
    """Attach the detached mount ``fd`` at ``target``."""
    _call(_NR_MOVE_MOUNT, fd, b"", AT_FDCWD, os.fsencode(target), 0x4)


def mount_setattr(
    fd: int, *, add: int = 0, remove: int = 0, propagation: int = 0, recursive: bool = False, userns: int = 0
) -> None:
    """Change the attributes of the mount that ``fd`` is, and with ``recursive`` of all below it."""
    attributes = struct.pack("=4Q", add, remove, propagation, userns)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call(_NR_MOUNT_SETATTR, fd, b"", flags, attributes, len(attributes))


def forbid_inspection() -> None:
    """Let no process without CAP_SYS_PTRACE look into this one, whose memory its children share."""
    if _libc.prctl(ctypes.c_int(PR_SET_DUMPABLE), ctypes.c_ulong(0), 0, 0, 0) < 0:
        raise _raise()


def set_process_name(name: str) -> None:
    """What ``ps`` and /proc/PID/comm show."""
    _libc.prctl(ctypes.c_int(PR_SET_NAME), name.encode()[:15], 0, 0, 0)


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2)."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _call(_NR_BPF[_MACHINE], command, buffer, len(attributes))


def set_command_line(text: str) -> None:
    """What /proc/PID/cmdline shows of this process and of children that share its memory; proc(5)."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    data = text.encode()[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, data, len(data))


def inotify() -> int:
    """A new inotify descriptor."""
    fd: int = _libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC)
    if fd < 0:
        raise _raise()
    return fd


def inotify_watch(fd: int, path: str, mask: int) -> int:
    """Watch ``path``; returns the watch's number."""
    watch: int = _libc.inotify_add_watch(fd, os.fsencode(path), ctypes.c_uint32(mask))
    if watch < 0:
        raise _raise(path)
    return watch


def inotify_unwatch(fd: int, watch: int) -> None:
    """Forget a watch; one that is gone already is no error."""
    _libc.inotify_rm_watch(fd, watch)


def power_off() -> None:
    """Switch the machine off, at once."""
    _libc.reboot(ctypes.c_int(0x4321FEDC))
