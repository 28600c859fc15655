"""What a container sees as its file system, as steps for its first process.

The agent takes sources as detached mounts (open_tree) beforehand; the child makes the container's root
its /, and from there on every path is resolved as the container would: no symbolic link of an image can
lead a mount anywhere else.
"""

from __future__ import annotations

import errno
import functools
import os
import stat
import struct
from contextlib import suppress
from dataclasses import dataclass

from orlop.guest import paths
from orlop.guest.launch.lookup import resolve_target
from orlop.guest.launch.script import Script, errors
from orlop.linux import syscalls
from orlop.linux.syscalls import (
    AT_FDCWD,
    MNT_DETACH,
    MOUNT_ATTR_RDONLY,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    MS_REC,
    MS_SLAVE,
    MS_STRICTATIME,
)
from orlop.wire.messages import Refused
from orlop.wire.values import Container, GuestDevice, GuestMount

_ATTRIBUTES = {
    "noexec": syscalls.MOUNT_ATTR_NOEXEC,
    "nosuid": syscalls.MOUNT_ATTR_NOSUID,
    "nodev": syscalls.MOUNT_ATTR_NODEV,
}
_FLAGS = {"noexec": MS_NOEXEC, "nosuid": MS_NOSUID, "nodev": MS_NODEV}
_SECURE = MS_NOSUID | MS_NOEXEC | MS_NODEV
_NODES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "random": (1, 8), "urandom": (1, 9), "tty": (5, 0)}
_LINKS = (
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
)
_MISSING = errors(errno.ENOENT, errno.ENOTDIR)
_EXISTS = errors(errno.EEXIST)
_RECURSIVE = 0x8000
_REPLACEABLE = {"/dev", "/dev/shm", "/sys", "/sys/fs/cgroup"}
_NOT_FOLLOWED = 0x100  # AT_SYMLINK_NOFOLLOW
_MOVE_FLAGS = 0x4 | 0x10  # the source is the descriptor itself; follow a link at the target
_OWN_DEVICES = frozenset(
    {*_NODES, "ptmx", "pts", "shm", "mqueue", "fd", "stdin", "stdout", "stderr", "console"}
)


@dataclass(frozen=True)
class VolumeSource:
    """Where the agent found what a volume shows: ``path`` below ``root``, in the guest."""

    mount: GuestMount
    root: str
    path: str


@dataclass(frozen=True)
class View:
    """Where the agent has put what makes up a container's file system: ``root`` and ``sources``.

    ``files`` are (path in the guest, target), and ``devices`` have their nodes.
    """

    spec: Container
    root: str
    sources: tuple[VolumeSource, ...]
    devices: tuple[GuestDevice, ...]
    files: tuple[tuple[str, str], ...]


@functools.lru_cache(maxsize=16)
def _common(without: frozenset[str], privileged: bool) -> Script:
    """Own root, proc, /dev, /sys, in what is the same for all containers.

    ``without`` are targets of volumes. Labels: ``root`` for its path, ``shm`` for a descriptor.
    """
    steps = Script()
    read_only = 0 if privileged else MS_RDONLY
    steps.label("root")
    steps.add("chdir", "/", what="root")
    steps.add("pivot_root", ".", ".")
    _proc(steps)
    if "/dev" not in without:
        _dev(steps, "newinstance,ptmxmode=0666,mode=0620,gid=5")
        # In the order in which others mount them: there are programs that look.
        if "/dev/shm" not in without:
            steps.label("shm")
            _move(steps, -1, "/dev/shm")
        _mount(steps, "mqueue", "/dev/mqueue", "mqueue", _SECURE)
        for name, (major, minor) in _NODES.items():
            path = f"/dev/{name}"
            steps.add(
                "mknodat",
                AT_FDCWD,
                path,
                stat.S_IFCHR | 0o666,
                os.makedev(major, minor),
                tolerate=_EXISTS,
                what=path,
            )
    if "/sys" not in without:
        _directory(steps, "/sys")
        _mount(steps, "sysfs", "/sys", "sysfs", _SECURE | read_only)
        if "/sys/fs/cgroup" not in without:
            _mount(steps, "cgroup", "/sys/fs/cgroup", "cgroup2", _SECURE | read_only)
    return steps


@functools.lru_cache(maxsize=16)
def _hidden(read_only: tuple[str, ...], masked: tuple[str, ...]) -> Script:
    """Masked and read-only paths; one that does not exist is no error."""
    steps = Script()
    for path in read_only:
        steps.add("mount", path, path, 0, MS_BIND | MS_REC, tolerate=_MISSING, what=f"read-only {path}")
        _make_read_only(steps, path, recursive=True, tolerate=_MISSING)
    for path in masked:
        # One of the two fits: the first for a file, the second for a directory.
        steps.add("mount", "/dev/null", path, 0, MS_BIND, tolerate=_MISSING, what=f"mask {path}")
        _mount(steps, "tmpfs", path, "tmpfs", MS_RDONLY, "nr_blocks=1,nr_inodes=1", tolerate=_MISSING)
    return steps


def _proc(steps: Script) -> None:
    _directory(steps, "/proc")
    _mount(steps, "proc", "/proc", "proc", _SECURE)
    # The old root lies on top of the new one, where "." still is.
    steps.add("umount2", ".", MNT_DETACH, what="old root")
    steps.add("chdir", "/")


def _dev(steps: Script, options: str) -> None:
    _directory(steps, "/dev")
    _mount(steps, "tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=65536k")
    for name in ("pts", "shm", "mqueue"):
        _directory(steps, f"/dev/{name}")
    _mount(steps, "devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, options)
    for target, link in _LINKS:
        steps.add("symlinkat", target, AT_FDCWD, link, what=link)


def _directory(steps: Script, path: str) -> None:
    steps.add("mkdirat", AT_FDCWD, path, 0o755, tolerate=_EXISTS, what=f"mount point {path}", code="invalid")


def _mount(
    steps: Script, source: str, target: str, kind: str, flags: int, options: str = "", *, tolerate: int = 0
) -> None:
    steps.add(
        "mount", source, target, kind, flags, options, tolerate=tolerate, what=f"mount {kind} at {target}"
    )


def _move(steps: Script, fd: int, target: str) -> None:
    steps.add("move_mount", fd, "", AT_FDCWD, target, _MOVE_FLAGS, what=f"mount at {target}", code="invalid")


def _make_read_only(steps: Script, path: str, *, recursive: bool, tolerate: int) -> None:
    attributes = struct.pack("=4Q", MOUNT_ATTR_RDONLY, 0, 0, 0)
    flags = _RECURSIVE if recursive else 0
    steps.add(
        "mount_setattr", AT_FDCWD, path, flags, attributes, len(attributes), tolerate=tolerate,
        what=f"make {path} read-only",
    )  # fmt: skip


class Builder:
    """Writes the steps of one view. :meth:`close` closes the sources, once the child has its copies."""

    def __init__(self, view: View, steps: Script) -> None:
        self._view = view
        self._steps = steps
        self._fds: list[int] = []
        self._made = {"/proc", "/dev", "/sys"}
        self._targets = {source.mount.target.rstrip("/") for source in view.sources}

    def close(self) -> None:
        """Close the descriptors of sources. Idempotent."""
        while self._fds:
            os.close(self._fds.pop())

    def build(self) -> None:
        """Append all steps. Raises Refused for a source that is not there."""
        view, steps = self._view, self._steps
        # Nothing that happens in here shall happen in the guest as well.
        steps.add("mount", "", "/", 0, MS_SLAVE | MS_REC, what="own mount namespace")
        if view.spec.namespaces.maps_users:
            self._kernel_file_systems()
        else:
            steps.include(_common(frozenset(self._targets & _REPLACEABLE), view.spec.security.privileged))
            steps.patch("root", 0, view.root)
            if not self._targets & {"/dev", "/dev/shm"}:
                steps.patch("shm", 0, self._take(paths.SHM))
            if view.spec.security.privileged:
                self._all_devices()
        for device in view.devices:
            self._device(device)
        for path, target in view.files:
            if target not in self._targets:
                self._attach(self._take(path), self._resolved(target), directory=False)
        for source in view.sources:
            self._volume(source)
        steps.include(_hidden(view.spec.security.read_only_paths, view.spec.security.masked_paths))
        if view.spec.security.read_only_root:
            _make_read_only(steps, "/", recursive=False, tolerate=0)

    def _kernel_file_systems(self) -> None:
        """As :func:`_common`, for a user namespace, which may mount less: the rest are copies."""
        view, steps = self._view, self._steps
        # What came from the namespace above is locked together; a copy is not.
        steps.add("mount", view.root, view.root, 0, MS_BIND | MS_REC, what="root")
        steps.add("chdir", view.root, what="root")
        steps.add("pivot_root", ".", ".")
        _proc(steps)
        if "/dev" not in self._targets:
            _dev(steps, "newinstance,ptmxmode=0666,mode=0620")
            if "/dev/shm" not in self._targets:
                _move(steps, self._take(paths.SHM), "/dev/shm")
            _move(steps, self._take("/dev/mqueue"), "/dev/mqueue")
            for name in _NODES:
                self._attach(self._take(f"/dev/{name}"), f"/dev/{name}", directory=False)
        if "/sys" not in self._targets:
            _directory(steps, "/sys")
            fd = self._take("/sys")
            syscalls.mount_setattr(fd, add=MOUNT_ATTR_RDONLY)
            _move(steps, fd, "/sys")
            if "/sys/fs/cgroup" not in self._targets:
                _mount(steps, "cgroup", "/sys/fs/cgroup", "cgroup2", _SECURE | MS_RDONLY)

    def _volume(self, source: VolumeSource) -> None:
        mount = source.mount
        target = self._resolved(mount.target)
        if mount.kind == "tmpfs":
            flags = MS_RDONLY if mount.read_only else 0
            for name in mount.options:
                flags |= _FLAGS[name]
            size = f",size={mount.size}" if mount.size else ""
            self._directory(target)
            _mount(self._steps, "tmpfs", target, "tmpfs", flags, f"mode={mount.mode:o}{size}")
            return
        try:
            place = syscalls.open_below(source.root, source.path)
        except OSError as error:
            text = f"volume for {mount.target}: {source.path}: {error.strerror}"
            raise Refused("invalid", text) from error
        try:
            fd = self._take("", place)
            directory = stat.S_ISDIR(os.fstat(place).st_mode)
        finally:
            os.close(place)
        _restrict(fd, mount)
        self._attach(fd, target, directory=directory)

    def _all_devices(self) -> None:
        """What a privileged container gets: the guest's own nodes."""
        for entry in os.scandir("/dev"):
            if entry.name in _OWN_DEVICES or entry.is_dir(follow_symlinks=False):
                continue
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                    self._steps.add(
                        "mknodat",
                        AT_FDCWD,
                        entry.path,
                        status.st_mode,
                        status.st_rdev,
                        tolerate=_EXISTS,
                        what=entry.path,
                    )

    def _device(self, device: GuestDevice) -> None:
        try:
            status = os.stat(device.source)
        except OSError as error:
            raise Refused("invalid", f"the guest has no device {device.source}: {error.strerror}") from error
        if not (stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode)):
            raise Refused("invalid", f"{device.source} is not a device of the guest")
        self._directory(os.path.dirname(device.path))
        mode = stat.S_IFMT(status.st_mode) | device.mode if device.disk else status.st_mode
        self._node(device.source, device.path, mode, status.st_rdev)
        if device.uid or device.gid:
            self._own(device)

    def _node(self, source: str, target: str, mode: int, device: int) -> None:
        if self._view.spec.namespaces.maps_users:
            self._attach(self._take(source), target, directory=False)
        else:
            self._steps.add(
                "mknodat", AT_FDCWD, target, mode, device, tolerate=_EXISTS, what=f"device {target}"
            )

    def _own(self, device: GuestDevice) -> None:
        if not self._view.spec.namespaces.maps_users:
            # In a user namespace the node is the guest's own, as it is the host's with other runtimes.
            self._steps.add(
                "fchownat", AT_FDCWD, device.path, device.uid, device.gid, _NOT_FOLLOWED,
                what=f"owner of the device {device.path}",
            )  # fmt: skip

    def _resolved(self, target: str) -> str:
        """The target with the image's own links followed, so that a dangling one gets what it points to."""
        return resolve_target(self._view.root, target)

    def _take(self, path: str, directory: int = AT_FDCWD) -> int:
        """A detached mount that the child inherits."""
        fd = syscalls.open_tree(path, recursive=not path, directory=directory)
        self._fds.append(fd)
        return fd

    def _attach(self, fd: int, target: str, *, directory: bool) -> None:
        """Put a detached mount where it belongs; the target is made if it is missing."""
        if directory:
            self._directory(target)
        else:
            self._directory(os.path.dirname(target))
            self._steps.add(
                "mknodat", AT_FDCWD, target, stat.S_IFREG | 0o644, 0, tolerate=_EXISTS,
                what=f"mount point {target}", code="invalid",
            )  # fmt: skip
        _move(self._steps, fd, target)

    def _directory(self, path: str) -> None:
        """Make a directory and those above it."""
        parts = path.strip("/").split("/")
        for count in range(1, len(parts) + 1):
            one = "/" + "/".join(parts[:count])
            if one not in self._made and one != "/":
                self._made.add(one)
                _directory(self._steps, one)


def _restrict(fd: int, mount: GuestMount) -> None:
    """Propagation and flags of a volume."""
    propagation = {"private": syscalls.MS_PRIVATE, "rslave": syscalls.MS_SLAVE, "rshared": syscalls.MS_SHARED}
    if mount.kind == "share":
        # The agent alone mounts something there later, for all who have it: the host's sockets.
        propagation["private"] = syscalls.MS_SLAVE
    syscalls.mount_setattr(fd, propagation=propagation[mount.propagation], recursive=True)
    add = 0
    for name in mount.options:
        add |= _ATTRIBUTES[name]
    if mount.read_only or mount.kind == "image":
        add |= MOUNT_ATTR_RDONLY
    if add:
        syscalls.mount_setattr(fd, add=add, recursive=mount.recursive_read_only)
