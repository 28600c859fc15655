"""Mounts: bind, mount, unmount, and what is mounted where.

Everything here is synchronous system calls. The asynchronous callers use :func:`orlop.host.threads.call`;
a bind mount takes some tens of microseconds.
"""

from __future__ import annotations

import errno
import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Literal

from orlop.errors import FailedPrecondition
from orlop.linux import syscalls as sys

MOUNTINFO = Path("/proc/self/mountinfo")

Propagation = Literal["private", "rslave", "rshared", "unchanged"]

_PROPAGATION = {"private": sys.MS_PRIVATE, "rslave": sys.MS_SLAVE, "rshared": sys.MS_SHARED}
_OLD_KERNEL = (errno.ENOSYS, errno.EOPNOTSUPP)


def bind(
    source: str | Path,
    target: str | Path,
    *,
    read_only: bool = False,
    recursive: bool = False,
    recursive_read_only: bool = False,
    propagation: Propagation = "private",
    userns: Path | None = None,
    namespace: Path | None = None,
) -> None:
    """Show ``source`` at the existing ``target`` too.

    ``read_only`` covers the mount itself, ``recursive_read_only`` all mounts below it (Linux
    5.12). With ``userns`` the files belong to the same users inside that user namespace, if the
    file system can do that (ID-mapped mount, Linux 5.12). With ``namespace`` the mount appears in that
    mount namespace alone, where ``target`` is looked up (Linux 5.12). The mount appears with all its
    properties at once where the kernel can do that. Raises OSError.
    """
    read_only = read_only or recursive_read_only
    modern = recursive_read_only or userns is not None or namespace is not None
    try:
        tree = sys.open_tree(source, recursive=recursive)
    except OSError as error:
        if error.errno not in _OLD_KERNEL or modern:
            raise
        _bind_old(source, target, read_only, recursive, propagation)
        return
    try:
        if userns is not None:
            _map_ids(tree, userns, recursive)
        _set_propagation(tree, propagation, recursive)
        if read_only:
            sys.mount_setattr(tree, add=sys.MOUNT_ATTR_RDONLY, recursive=recursive_read_only)
        inside(namespace, lambda: sys.move_mount(tree, target))
    except OSError as error:
        if error.errno not in _OLD_KERNEL or modern:
            raise
        _bind_old(source, target, read_only, recursive, propagation)
    finally:
        os.close(tree)


def _map_ids(tree: int, userns: Path, recursive: bool) -> None:
    descriptor = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            sys.mount_setattr(tree, add=sys.MOUNT_ATTR_IDMAP, userns=descriptor, recursive=recursive)
        except OSError as error:
            if not recursive or error.errno != errno.EINVAL:
                raise
            # Something below, such as another's /proc, cannot be mapped: that is out of reach then.
            sys.mount_setattr(tree, add=sys.MOUNT_ATTR_IDMAP, userns=descriptor)
    finally:
        os.close(descriptor)


def _set_propagation(tree: int, propagation: Propagation, recursive: bool) -> None:
    if propagation != "unchanged":
        sys.mount_setattr(tree, propagation=_PROPAGATION[propagation], recursive=recursive)


def _bind_old(
    source: str | Path, target: str | Path, read_only: bool, recursive: bool, propagation: Propagation
) -> None:
    """The way of kernels before 5.12: bind first, then set the properties."""
    rec = sys.MS_REC if recursive else 0
    sys.mount(source, target, "", sys.MS_BIND | rec)
    try:
        if propagation != "unchanged":
            sys.mount("", target, "", _PROPAGATION[propagation] | rec)
        if read_only:
            locked = _flags(target)
            sys.mount("", target, "", sys.MS_BIND | sys.MS_REMOUNT | sys.MS_RDONLY | locked)
    except OSError:
        with suppress(OSError):
            sys.umount(target, sys.MNT_DETACH)
        raise


def _flags(path: str | Path) -> int:
    """nosuid, nodev, noexec of the mount at ``path``; a remount must repeat them."""
    found = os.statvfs(path).f_flag
    pairs = (
        (os.ST_NOSUID, sys.MS_NOSUID),
        (os.ST_NODEV, sys.MS_NODEV),
        (os.ST_NOEXEC, sys.MS_NOEXEC),
    )
    return sum(flag for present, flag in pairs if found & present)


def mount(source: str | Path, target: str | Path, fstype: str, *, flags: int = 0, options: str = "") -> None:
    """Mount a file system; ``flags`` are the MS_ constants of :mod:`orlop.linux.syscalls`. Raises OSError."""
    sys.mount(source, target, fstype, flags, options)


def mount_in(
    directory: str, source: str, target: str | Path, fstype: str, *, flags: int = 0, options: str = ""
) -> None:
    """The same, with relative paths in ``options`` that begin at ``directory``. Raises OSError."""

    def body() -> None:
        sys.unshare(sys.CLONE_FS)
        os.chdir(directory)
        sys.mount(source, target, fstype, flags, options)

    _apart(body)


def inside(namespace: Path | None, function: Callable[[], None]) -> None:
    """Call ``function`` in the mount namespace at ``namespace``, or with None right here.

    It runs on a thread of its own, which no other work ever sees. Raises what it raises, and OSError.
    """
    if namespace is None:
        function()
        return

    def body() -> None:
        descriptor = os.open(namespace, os.O_RDONLY | os.O_CLOEXEC)
        try:
            sys.unshare(sys.CLONE_FS)
            sys.setns(descriptor, sys.CLONE_NEWNS)
        finally:
            os.close(descriptor)
        function()

    _apart(body)


def as_owner(user: int, function: Callable[[], None]) -> None:
    """Call ``function`` with the rights of root, while new files belong to ``user`` and the group of that
    number. It runs on a thread of its own, which no other work ever sees. Raises what it raises, and OSError.
    """

    def body() -> None:
        sys.own_files_as(user)
        function()

    _apart(body)


def _apart(work: Callable[[], None]) -> None:
    failures: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:  # raised again in the calling thread
            failures.append(error)

    thread = threading.Thread(target=body, name="orlop-mount", daemon=True)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def unmount(target: str | Path, *, lazy: bool = True) -> None:
    """Take away whatever is mounted at ``target``, all of it if mounts are stacked there.

    Nothing mounted, or no such path, is success. ``lazy`` detaches even what is busy. Raises
    OSError for anything else (EBUSY when not lazy).
    """
    flags = sys.UMOUNT_NOFOLLOW | (sys.MNT_DETACH if lazy else 0)
    while True:
        try:
            sys.umount(target, flags)
        except OSError as error:
            if error.errno in (errno.EINVAL, errno.ENOENT, errno.ENOTDIR):
                return
            raise


def replace(source: str | Path, target: str | Path, *, userns: Path, namespace: Path) -> None:
    """Put one that shows ``source``, with its users mapped (Linux 5.12), in the place of the mount at
    ``target`` in that mount namespace. Raises OSError."""
    tree = sys.open_tree(source, recursive=False)

    def exchange() -> None:
        sys.umount(target, sys.MNT_DETACH | sys.UMOUNT_NOFOLLOW)
        sys.move_mount(tree, target)

    try:
        _map_ids(tree, userns, recursive=False)
        _set_propagation(tree, "private", recursive=False)
        inside(namespace, exchange)
    finally:
        os.close(tree)


def unmapped_below(path: Path, mountinfo: Path) -> dict[int, Path]:
    """Mounts below ``path`` whose users are not mapped, by id, the outer ones first. Raises OSError."""
    found = {}
    for fields, _ in _entries(mountinfo):
        point = Path(_unescape(fields[4]))
        if "idmapped" not in fields[5].split(",") and point != path and point.is_relative_to(path):
            found[int(fields[0])] = point
    return dict(sorted(found.items(), key=lambda entry: len(entry[1].parts)))


def mounts_below(path: str | Path) -> list[Path]:
    """Mount points at or below ``path`` in this mount namespace, deepest first."""
    top = os.fspath(path).rstrip("/") or "/"
    prefix = top if top == "/" else top + "/"
    found = [point for point in _mount_points() if point == top or point.startswith(prefix)]
    found.sort(key=lambda point: point.count("/"), reverse=True)
    return [Path(point) for point in found]


def kinds_below(path: str | Path) -> dict[str, str]:
    """The kinds of file system, as in /proc/filesystems, that are mounted below ``path``, by mount point.

    Asks no file system: one across the network may not answer."""
    prefix = os.fspath(path).rstrip("/") + "/"
    found = ((_unescape(fields[4]), kind) for fields, (kind, _, _) in _entries())
    return {point: kind for point, kind in found if point.startswith(prefix)}


def is_mounted(path: str | Path, mountinfo: Path = MOUNTINFO) -> bool:
    """Whether ``path`` itself is a mount point in this mount namespace, or in that of ``mountinfo``."""
    return (os.fspath(path).rstrip("/") or "/") in _mount_points(mountinfo)


def is_mapped(path: str | Path, mountinfo: Path = MOUNTINFO) -> bool | None:
    """Whether the mount at ``path`` maps users (ID-mapped mount); None when there is none. Raises OSError."""
    wanted = os.fspath(path)
    found = None
    for fields, _ in _entries(mountinfo):
        if _unescape(fields[4]) == wanted:
            found = "idmapped" in fields[5].split(",")
    return found


def options_by_point(kind: str) -> dict[str, list[str]]:
    """Where file systems of a kind are mounted, and what each was given as options. Asks no file system."""
    found: dict[str, str] = {}
    for fields, (own_kind, _, options) in _entries():
        point = _unescape(fields[4])
        # The last of those at one place is the one that is seen.
        found.pop(point, None)
        if own_kind == kind:
            found[point] = options
    return {point: _options(text) for point, text in found.items()}


def _options(text: str) -> list[str]:
    """Options one by one; a comma within one is octal, or in earlier kernels follows a backslash."""
    found = re.split(r"(?<!\\)(?<!\\134),", text)
    return [_unescape(option).replace(r"\054", ",") for option in found]


def kind_of(path: str | Path) -> str:
    """The kind of file system that ``path`` is on, as in /proc/filesystems."""
    return _covering(path)[2]


def root_of(path: str | Path) -> tuple[str, str]:
    """Which file system ``path`` is on ("8:1"), and its path within that, whatever is mounted over it."""
    point, fields, _ = _covering(path)
    root = Path(_unescape(fields[3])) / Path(path).resolve().relative_to(point)
    return fields[2], os.fspath(root)


def points_of(device: int) -> list[Path]:
    """Where the file system on a block device (``st_rdev``) is mounted, or a part of it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return [Path(_unescape(fields[4])) for fields, _ in _entries() if fields[2] == number]


def points_from(path: str | Path) -> list[Path]:
    """Where what is at ``path`` is mounted too, by :func:`bind`."""
    wanted = root_of(path)
    points = (_unescape(fields[4]) for fields, _ in _entries() if (fields[2], _unescape(fields[3])) == wanted)
    return [Path(point) for point in points if point != os.fspath(path)]


def of_process(path: str, process: int) -> str:
    """The path at which we see what ``path`` is for a process, whose mount namespace may be another.

    Raises OSError when it has no such file, FailedPrecondition when it is mounted only where that process is.
    """
    top = os.open(f"/proc/{process}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        descriptor = sys.open_in_root(top, path, os.O_PATH)
    finally:
        os.close(top)
    try:
        wanted = os.fstat(descriptor)
        real = Path(f"/proc/self/fd/{descriptor}").readlink()
        info = Path(f"/proc/self/fdinfo/{descriptor}").read_text()
        number = next(line.split()[1] for line in info.splitlines() if line.startswith("mnt_id:"))
        for fields, _ in _entries(Path(f"/proc/{process}/mountinfo")):
            point = _unescape(fields[4])
            if fields[0] == number and real.is_relative_to(point):
                place = Path(_unescape(fields[3])) / real.relative_to(point)
                for found in (Path(path), *_shown(fields[2], place)):
                    with suppress(OSError):
                        if os.path.samestat(found.stat(), wanted):
                            return os.fspath(found)
    finally:
        os.close(descriptor)
    raise FailedPrecondition(f"{path} is mounted only where its caller sees it: mount it on the host")


def _shown(device: str, place: Path) -> Iterator[Path]:
    """Where that path within a file system would be by our mounts of it, the narrowest first."""
    found = []
    for fields, _ in _entries():
        root = Path(_unescape(fields[3]))
        if fields[2] == device and place.is_relative_to(root):
            found.append((len(root.parts), Path(_unescape(fields[4])) / place.relative_to(root)))
    return (path for _, path in sorted(found, key=lambda entry: entry[0], reverse=True))


def _covering(path: str | Path) -> tuple[Path, list[str], str]:
    """The mount that ``path`` is on: where, its fields before the " - ", and its kind of file system."""
    wanted = Path(path).resolve()
    best: tuple[Path, list[str], str] | None = None
    for fields, (kind, _, _) in _entries():
        point = Path(_unescape(fields[4]))
        if wanted.is_relative_to(point) and (best is None or len(point.parts) >= len(best[0].parts)):
            best = (point, fields, kind)
    assert best is not None, "there is always a root"
    return best


def propagation_of(path: str | Path) -> tuple[Path, bool, bool]:
    """The mount that ``path`` is on, and whether that is shared and whether it is a slave."""
    point, fields, _ = _covering(path)
    tags = fields[6:]
    shared, slave = (any(tag.startswith(kind) for tag in tags) for kind in ("shared:", "master:"))
    return point, shared, slave


def unmount_below(path: str | Path) -> None:
    """Take away all mounts at or below ``path``, deepest first. Idempotent. Raises OSError."""
    for point in mounts_below(path):
        unmount(point)


def _mount_points(mountinfo: Path = MOUNTINFO) -> list[str]:
    return [_unescape(fields[4]) for fields, _ in _entries(mountinfo)]


def _entries(mountinfo: Path = MOUNTINFO) -> Iterator[tuple[list[str], list[str]]]:
    """Of each mount its fields before the " - " of proc_pid_mountinfo(5), and the three behind it.

    Those are the kind of the file system, what is mounted, and options.
    """
    with mountinfo.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            before, _, after = line.rstrip("\n").partition(" - ")
            yield before.split(" "), after.split(" ", 2)


def _unescape(field: str) -> str:
    """Undo the octal escapes of proc_pid_mountinfo(5) for space, tab, newline and backslash."""
    for escaped, plain in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
        field = field.replace(escaped, plain)
    return field
