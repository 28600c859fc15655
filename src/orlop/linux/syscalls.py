"""System calls that Python's standard library does not offer, by ctypes.

Every function raises OSError, with the path it was about where there is one. The numbers of calls that
are newer than 2019 are the same on every architecture, so they go through ``syscall(2)`` and need no
recent libc; the others come from libc.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct

StrPath = str | os.PathLike[str]

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
UMOUNT_NOFOLLOW = 8

CLONE_VM = 0x00000100
CLONE_FS = 0x00000200
CLONE_SIGHAND = 0x00000800
CLONE_PTRACE = 0x00002000
CLONE_PARENT = 0x00008000
CLONE_THREAD = 0x00010000
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEW = 0x7E020000
"""All those that clone(2) makes namespaces for."""

AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000
_OPEN_TREE_CLONE = 1
_MOVE_MOUNT_F_EMPTY_PATH = 0x4
_MOVE_MOUNT_T_EMPTY_PATH = 0x40
_RESOLVE_NO_XDEV = 0x01
_RESOLVE_NO_SYMLINKS = 0x04
_RESOLVE_IN_ROOT = 0x10

MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
MOUNT_ATTR_IDMAP = 0x100000

PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_SECUREBITS = 28
PR_SET_NO_NEW_PRIVS = 38
PR_SET_THP_DISABLE = 41
PR_THP_DISABLE_EXCEPT_ADVISED = 0x2
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2
PR_CAP_AMBIENT_CLEAR_ALL = 4

SECBIT_NO_SETUID_FIXUP = 0x4
_NOBODY = 0xFFFFFFFF

IN_MODIFY = 0x2
IN_ATTRIB = 0x4
IN_CLOSE_WRITE = 0x8
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
IN_ONESHOT = 0x80000000
_STATX_BTIME = 0x800
_IN_NONBLOCK = 0o4000
_IN_CLOEXEC = 0o2000000

_ADJ_SETOFFSET = 0x0100
_ADJ_NANO = 0x2000
_ADJ_OFFSET_SINGLESHOT = 0x8001
_TIMEX_SIZE = 208

_SECCOMP_MODE_FILTER = 2
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_NUMBERS = 64

_NR_OPEN_TREE = 428
_NR_MOVE_MOUNT = 429
_NR_OPENAT2 = 437
_NR_MOUNT_SETATTR = 442

# The daemon has threads, and a mount can take long: the interpreter's lock is not held during a call.
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long


def _checked(result: int, about: StrPath | None = None) -> int:
    if result >= 0:
        return result
    number = ctypes.get_errno()
    if about is None:
        raise OSError(number, os.strerror(number))
    raise OSError(number, os.strerror(number), os.fspath(about))


def _call(
    number: int, *arguments: int | bytes | ctypes.Array[ctypes.c_char], about: StrPath | None = None
) -> int:
    converted = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _checked(_syscall(ctypes.c_long(number), *converted), about)


def mount(source: StrPath, target: StrPath, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2). ``target`` names the error."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() or None,
        ctypes.c_ulong(flags),
        os.fsencode(options) or None,
    )
    _checked(result, target)


def umount(target: StrPath, flags: int = 0) -> None:
    """umount2(2)."""
    _checked(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def setns(descriptor: int, flags: int) -> None:
    """setns(2): moves the calling *thread*; with a pidfd, ``flags`` may name several namespaces."""
    _checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(flags)))


def unshare(flags: int) -> None:
    """unshare(2): gives the calling *thread* new namespaces."""
    _checked(_libc.unshare(ctypes.c_int(flags)))


def open_tree(path: StrPath, *, recursive: bool = True, directory: int = AT_FDCWD) -> int:
    """A detached copy of the mount at ``path`` (or of a single file), as a descriptor. Linux 5.2.

    "" is what the descriptor ``directory`` itself refers to.
    """
    name = os.fsencode(path)
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC
    flags |= (AT_RECURSIVE if recursive else 0) | (0 if name else AT_EMPTY_PATH)
    return _call(_NR_OPEN_TREE, directory, name, flags, about=path)


def open_in_root(root: int, path: str, flags: int, *, one_mount: bool = False) -> int:
    """Open ``path`` as if the directory ``root`` were /: no symbolic link leads out of it. Linux 5.6.

    With ``one_mount`` what is mounted below it is refused (EXDEV).
    """
    resolve = _RESOLVE_IN_ROOT | (_RESOLVE_NO_XDEV if one_mount else 0)
    return _openat2(root, path or ".", flags, resolve)


def open_on_mount(directory: int, path: str, flags: int) -> int:
    """Open ``path`` below a directory's descriptor; refuses mount points (EXDEV) and symbolic links (ELOOP).

    A mount point of the same file system is one, too. Linux 5.6.
    """
    return _openat2(directory, path, flags, _RESOLVE_NO_XDEV | _RESOLVE_NO_SYMLINKS)


def open_without_links(path: str, flags: int) -> int:
    """A descriptor of the absolute ``path``, of which no part may be a symbolic link (ELOOP). Linux 5.6."""
    return _openat2(AT_FDCWD, path, flags, _RESOLVE_NO_SYMLINKS)


def _openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    how = struct.pack("=3Q", flags | os.O_CLOEXEC, 0, resolve)
    return _call(_NR_OPENAT2, directory, os.fsencode(path), how, len(how), about=path)


def open_below(root: StrPath, path: str) -> int:
    """An O_PATH descriptor of ``path`` within ``root``; see :func:`open_in_root`."""
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return open_in_root(descriptor, path, os.O_PATH)
    finally:
        os.close(descriptor)


def move_mount(descriptor: int, target: StrPath) -> None:
    """Attach a detached mount at ``target``. Linux 5.2."""
    _call(
        _NR_MOVE_MOUNT,
        descriptor,
        b"",
        AT_FDCWD,
        os.fsencode(target),
        _MOVE_MOUNT_F_EMPTY_PATH,
        about=target,
    )


def move_mount_over(descriptor: int, target: int) -> None:
    """Attach a detached mount at what the descriptor ``target`` refers to. Linux 5.2."""
    flags = _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH
    _call(_NR_MOVE_MOUNT, descriptor, b"", target, b"", flags)


def mount_setattr(
    descriptor: int,
    *,
    add: int = 0,
    remove: int = 0,
    propagation: int = 0,
    recursive: bool = False,
    userns: int = 0,
) -> None:
    """Change the mount that ``descriptor`` is, and with ``recursive`` all below it. Linux 5.12."""
    attributes = struct.pack("=4Q", add, remove, propagation, userns)
    flags = AT_EMPTY_PATH | (AT_RECURSIVE if recursive else 0)
    _call(_NR_MOUNT_SETATTR, descriptor, b"", flags, attributes, len(attributes))


def _number(name: str) -> int:
    """The number of a call that architectures number differently."""
    # Here and not above: what it imports takes longer than a small program that needs none of this.
    from orlop.linux import architecture

    return architecture.own().calls[name]


def pivot_root(new: StrPath, old: StrPath) -> None:
    """pivot_root(2)."""
    _checked(_libc.pivot_root(os.fsencode(new), os.fsencode(old)), new)


def set_host_name(name: str) -> None:
    """sethostname(2), for the calling thread's UTS namespace."""
    data = name.encode()
    _checked(_libc.sethostname(data, ctypes.c_size_t(len(data))))


def set_capabilities(numbers: set[int]) -> None:
    """Have these capabilities, permitted and effective, and none that exec(2) inherits; capset(2)."""
    low = sum(1 << number for number in numbers if number < 32)
    high = sum(1 << (number - 32) for number in numbers if number >= 32)
    header = struct.pack("=Ii", _CAPABILITY_VERSION_3, 0)
    _checked(_libc.capset(header, struct.pack("=6I", low, low, 0, high, high, 0)))


def bound_capabilities(numbers: set[int]) -> None:
    """Lose all but these capabilities from the bounding set, so that no exec(2) gives them back."""
    for number in set(range(_CAPABILITY_NUMBERS)) - numbers:
        result = _libc.prctl(ctypes.c_int(PR_CAPBSET_DROP), ctypes.c_ulong(number), 0, 0, 0)
        if result < 0 and ctypes.get_errno() != errno.EINVAL:  # one that this kernel does not know
            _checked(result)


def become_for_now(uid: int, gid: int, groups: tuple[int, ...]) -> None:
    """Act as this user in the calling thread alone: the effective ids and the groups, not the real ids."""
    # The library's functions would change all threads.
    _call(_number("setgroups"), len(groups), struct.pack(f"={len(groups)}I", *groups))
    _call(_number("setresgid"), -1, gid, -1)
    _call(_number("setresuid"), -1, uid, -1)


def set_no_new_privileges() -> None:
    """From here on no exec(2) gives rights that this process has not; prctl(2)."""
    _checked(_libc.prctl(ctypes.c_int(PR_SET_NO_NEW_PRIVS), ctypes.c_ulong(1), 0, 0, 0))


def forbid_unasked_huge_pages() -> None:
    """Let this process, and what it becomes by exec(2), have huge pages where it asks for them only.

    PR_THP_DISABLE_EXCEPT_ADVISED of prctl(2): Linux 6.18. Before it, the host's policy is what counts.
    """
    except_advised = ctypes.c_ulong(PR_THP_DISABLE_EXCEPT_ADVISED)
    try:
        _checked(
            _libc.prctl(
                ctypes.c_int(PR_SET_THP_DISABLE),
                ctypes.c_ulong(1),
                except_advised,
                ctypes.c_ulong(0),
                ctypes.c_ulong(0),
            )
        )
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise


def own_files_as(user: int) -> None:
    """Let files that the calling thread makes belong to ``user`` and its group; it keeps its capabilities."""
    _checked(_libc.prctl(ctypes.c_int(PR_SET_SECUREBITS), ctypes.c_ulong(SECBIT_NO_SETUID_FIXUP), 0, 0, 0))
    _libc.setfsgid(ctypes.c_uint(user))
    _libc.setfsuid(ctypes.c_uint(user))
    # They say nothing of a failure; asked for none, they tell who it is.
    if _libc.setfsuid(ctypes.c_uint(_NOBODY)) & _NOBODY != user:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))


def set_filter(program: bytes) -> None:
    """Put a system-call filter (``struct sock_filter[]``) on the calling thread; prctl(2)."""
    buffer = ctypes.create_string_buffer(program, len(program))
    fprog = struct.pack("=HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer))
    _checked(_libc.prctl(ctypes.c_int(PR_SET_SECCOMP), ctypes.c_ulong(_SECCOMP_MODE_FILTER), fprog))


def forbid_inspection() -> None:
    """Let no process without CAP_SYS_PTRACE look into this one, whose memory its children share."""
    _checked(_libc.prctl(ctypes.c_int(PR_SET_DUMPABLE), ctypes.c_ulong(0), 0, 0, 0))


def set_process_name(name: str) -> None:
    """What ``ps`` and /proc/PID/comm show."""
    _libc.prctl(ctypes.c_int(PR_SET_NAME), name.encode()[:15], 0, 0, 0)


def set_command_line(text: str) -> None:
    """What /proc/PID/cmdline shows of this process and of children that share its memory; proc(5)."""
    with open("/proc/self/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    start, end = int(fields[45]), int(fields[46])
    data = text.encode()[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, data, len(data))


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2)."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _call(_number("bpf"), command, buffer, len(attributes))


def step_clock(shift: int) -> None:
    """Set the wall clock on or back by ``shift`` nanoseconds, in one step; adjtimex(2)."""
    seconds, rest = divmod(shift, 10**9)
    _adjtimex(_ADJ_SETOFFSET | _ADJ_NANO, seconds=seconds, parts=rest)


def slew_clock(shift: int) -> None:
    """Let the wall clock go faster or slower until it has moved by ``shift`` nanoseconds; adjtimex(2)."""
    _adjtimex(_ADJ_OFFSET_SINGLESHOT, offset=shift // 1000)


def _adjtimex(modes: int, *, offset: int = 0, seconds: int = 0, parts: int = 0) -> None:
    # struct timex: modes, offset, five more, three limits, then time.tv_sec and time.tv_usec.
    words = struct.pack("=I4xq7q2q", modes, offset, *(0,) * 7, seconds, parts)
    buffer = ctypes.create_string_buffer(words, _TIMEX_SIZE)
    _checked(_libc.adjtimex(buffer))


def birth_of(descriptor: int) -> int:
    """When the file of a descriptor was made (ns); 0 where its file system does not know. Linux 4.11."""
    found = ctypes.create_string_buffer(256)
    _checked(_libc.statx(descriptor, b"", AT_EMPTY_PATH, ctypes.c_uint(_STATX_BTIME), found))
    (mask,) = struct.unpack_from("=I", found, 0)
    seconds, nanoseconds = struct.unpack_from("=qI", found, 80)
    return int(seconds * 1_000_000_000 + nanoseconds) if mask & _STATX_BTIME else 0


def inotify() -> int:
    """A new inotify descriptor."""
    return _checked(_libc.inotify_init1(_IN_NONBLOCK | _IN_CLOEXEC))


def inotify_watch(descriptor: int, path: str, mask: int) -> int:
    """Watch ``path``; returns the watch's number."""
    return _checked(_libc.inotify_add_watch(descriptor, os.fsencode(path), ctypes.c_uint32(mask)), path)


def inotify_unwatch(descriptor: int, watch: int) -> None:
    """Forget a watch; one that is gone already is no error."""
    _libc.inotify_rm_watch(descriptor, watch)
