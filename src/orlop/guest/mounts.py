"""What a container sees as its file system, built from within its mount namespace.

Sources are taken as detached mounts (open_tree) while the guest's own tree is still in sight; then
the container's root becomes /, and from there on every path is resolved as the container would:
no symbolic link of an image can lead a mount anywhere else.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field

from orlop.guest import paths, syscalls
from orlop.guest.syscalls import (
    MNT_DETACH,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_REMOUNT,
    MS_SLAVE,
    MS_STRICTATIME,
)
from orlop.wire.messages import Refused
from orlop.wire.values import Device, Mount, Security

_FLAGS = {
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
}
_NODES = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)


@dataclass(frozen=True)
class Source:
    """Where the agent found what a volume shows: ``path`` below ``root``, in the guest."""

    mount: Mount
    root: str
    path: str


@dataclass(frozen=True)
class View:
    """All that makes up a container's file system. ``files`` are (path in the guest, target)."""

    root: str
    security: Security
    sources: tuple[Source, ...] = ()
    files: tuple[tuple[str, str], ...] = ()
    devices: tuple[Device, ...] = ()
    own_user_namespace: bool = False


@dataclass
class _Open:
    """A detached mount on its way to its target."""

    target: str
    fd: int
    directory: bool


@dataclass
class _Sources:
    files: list[_Open] = field(default_factory=list)
    volumes: list[tuple[Mount, _Open | None]] = field(default_factory=list)
    devices: list[_Open] = field(default_factory=list)
    shm: int = -1
    mqueue: int = -1
    sys: int = -1


def enter(view: View) -> None:
    """Make ``view.root`` this process' /, with everything in its place. In a mount namespace of its own."""
    sources = _collect(view)
    old = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if view.own_user_namespace:
        # What came from the namespace above is locked together; a copy is not.
        syscalls.mount(view.root, view.root, "", MS_BIND | MS_REC)
    os.chdir(view.root)
    syscalls.pivot_root(".", ".")
    os.chdir("/")
    user_targets = {mount.target.rstrip("/") for mount, _ in sources.volumes}
    _kernel_file_systems(view, sources, user_targets)
    _devices(view, sources)
    for opened in sources.files:
        if opened.target not in user_targets:
            _attach(opened)
    for mount, source in sources.volumes:
        _volume(mount, source)
    _hide(view.security)
    os.fchdir(old)
    # Nothing unmounted here may be unmounted in the guest as well.
    syscalls.mount("", ".", "", MS_SLAVE | MS_REC)
    syscalls.umount(".", MNT_DETACH)
    os.close(old)
    os.chdir("/")
    if view.security.read_only_root:
        syscalls.mount("", "/", "", MS_REMOUNT | MS_BIND | MS_RDONLY)


def _collect(view: View) -> _Sources:
    found = _Sources()
    for path, target in view.files:
        found.files.append(_Open(target, syscalls.open_tree(path, recursive=False), directory=False))
    for source in view.sources:
        found.volumes.append((source.mount, _open_volume(source) if source.mount.kind != "tmpfs" else None))
    if view.own_user_namespace:
        found.devices += [_device_copy(f"/dev/{name}", f"/dev/{name}") for name in _NODES]
        found.sys = syscalls.open_tree("/sys")
        found.mqueue = syscalls.open_tree("/dev/mqueue")
    for device in view.devices:
        found.devices.append(_device_copy(device.source, device.path))
    with suppress(FileNotFoundError):
        found.shm = syscalls.open_tree(paths.SHM, recursive=False)
    return found


def _device_copy(source: str, target: str) -> _Open:
    try:
        return _Open(target, syscalls.open_tree(source, recursive=False), directory=os.path.isdir(source))
    except FileNotFoundError:
        raise Refused("invalid", f"the guest has no device {source}") from None


def _open_volume(source: Source) -> _Open:
    mount = source.mount
    try:
        place = syscalls.open_below(source.root, source.path)
    except OSError as error:
        raise Refused("invalid", f"volume for {mount.target}: {source.path}: {error.strerror}") from error
    try:
        fd = syscalls.open_tree("", directory=place)
        directory = stat.S_ISDIR(os.fstat(place).st_mode)
    finally:
        os.close(place)
    propagation = {"private": syscalls.MS_PRIVATE, "rslave": syscalls.MS_SLAVE, "rshared": syscalls.MS_SHARED}
    syscalls.mount_setattr(fd, propagation=propagation[mount.propagation], recursive=True)
    add = sum(_FLAGS[option] for option in set(mount.options))
    if mount.read_only or mount.kind == "image":
        add |= syscalls.MOUNT_ATTR_RDONLY
    if add:
        syscalls.mount_setattr(fd, add=add, recursive=mount.recursive_read_only)
    return _Open(mount.target, fd, directory)


def _kernel_file_systems(view: View, sources: _Sources, skip: set[str]) -> None:
    """proc, /dev, /sys and what is mounted in them. ``skip`` are targets of volumes."""
    secure = MS_NOSUID | MS_NOEXEC | MS_NODEV
    read_only = 0 if view.security.privileged else MS_RDONLY
    _make_directory("/proc")
    syscalls.mount("proc", "/proc", "proc", secure)
    if "/dev" not in skip:
        _make_directory("/dev")
        syscalls.mount("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k")
        for name in ("pts", "shm", "mqueue"):
            os.mkdir(f"/dev/{name}", 0o755)
        syscalls.mount(
            "devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5"
        )
        if "/dev/shm" not in skip and sources.shm >= 0:
            syscalls.move_mount(sources.shm, "/dev/shm")
            os.close(sources.shm)
        if sources.mqueue >= 0:
            syscalls.move_mount(sources.mqueue, "/dev/mqueue")
            os.close(sources.mqueue)
        else:
            syscalls.mount("mqueue", "/dev/mqueue", "mqueue", secure)
    if "/sys" not in skip:
        _make_directory("/sys")
        if sources.sys >= 0:
            _attach(_Open("/sys", sources.sys, directory=True))
            with suppress(OSError):
                syscalls.umount("/sys/fs/cgroup", MNT_DETACH)
            syscalls.mount("", "/sys", "", MS_REMOUNT | MS_BIND | MS_RDONLY | secure)
        else:
            syscalls.mount("sysfs", "/sys", "sysfs", secure | read_only)
        if "/sys/fs/cgroup" not in skip and os.path.isdir("/sys/fs/cgroup"):
            syscalls.mount("cgroup", "/sys/fs/cgroup", "cgroup2", secure | read_only)


def _devices(view: View, sources: _Sources) -> None:
    for target, link in _LINKS:
        if not os.path.lexists(link):
            os.symlink(target, link)
    if not view.own_user_namespace:
        for name in _NODES:
            if not os.path.lexists(f"/dev/{name}"):
                minor = {"null": 3, "zero": 5, "full": 7, "random": 8, "urandom": 9, "tty": 0}[name]
                _node(f"/dev/{name}", os.makedev(5 if name == "tty" else 1, minor))
    for opened in sources.devices:
        _attach(opened)


def _node(path: str, device: int) -> None:
    os.mknod(path, stat.S_IFCHR | 0o666, device)
    os.chmod(path, 0o666)


def _volume(mount: Mount, source: _Open | None) -> None:
    if source is not None:
        _attach(source)
        return
    _make_directory(mount.target)
    flags = MS_RDONLY if mount.read_only else 0
    for name, flag in (("noexec", MS_NOEXEC), ("nosuid", MS_NOSUID), ("nodev", MS_NODEV)):
        flags |= flag if name in mount.options else 0
    size = f",size={mount.size}" if mount.size else ""
    syscalls.mount("tmpfs", mount.target, "tmpfs", flags, f"mode={mount.mode:o}{size}")


def _attach(opened: _Open) -> None:
    """Put a detached mount where it belongs; the target is made if it is missing."""
    try:
        if opened.directory:
            _make_directory(opened.target)
        else:
            _make_file(opened.target)
        syscalls.move_mount(opened.fd, opened.target)
    except OSError as error:
        raise Refused("invalid", f"cannot mount at {opened.target}: {error.strerror}") from error
    os.close(opened.fd)


def _make_directory(path: str) -> None:
    try:
        os.makedirs(path, 0o755, exist_ok=True)
    except OSError as error:
        raise Refused("invalid", f"cannot make the mount point {path}: {error.strerror}") from error


def _make_file(path: str) -> None:
    if not os.path.exists(path):
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _hide(security: Security) -> None:
    """Masked and read-only paths; one that does not exist is no error."""
    for path in security.read_only_paths:
        try:
            syscalls.mount(path, path, "", MS_BIND | MS_REC)
        except FileNotFoundError:
            continue
        flags = os.statvfs(path).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
        syscalls.mount("", path, "", MS_REMOUNT | MS_BIND | MS_RDONLY | flags)
    for path in security.masked_paths:
        try:
            syscalls.mount("/dev/null", path, "", MS_BIND)
        except FileNotFoundError:
            continue
        except NotADirectoryError:
            syscalls.mount("tmpfs", path, "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1")
