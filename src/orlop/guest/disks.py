"""Disks that the daemon plugs in: found by their SCSI address, mounted once, shared by containers.

The daemon plugs a disk first and names it in a request then, so the kernel has often found it
already; else a scan makes it look. The kernel tells of each new block device by a netlink message
(uevent), which is what is waited for.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace

from orlop.guest import paths
from orlop.guest.paths import read_text, write_text
from orlop.linux import syscalls
from orlop.wire.messages import Refused
from orlop.wire.values import Disk

PATIENCE = 10.0
"""Seconds a disk may take to appear."""

# What a container wrote ends with it, so nothing has to be safe on the disk: no barriers.
_SCRATCH_OPTIONS = "noinit_itable,nobarrier"
_NETLINK_KOBJECT_UEVENT = 15
_BLKRRPART = 0x125F  # linux/fs.h
_SYS_DEVICES = "/sys/class/scsi_device"


def _devices(name: str, disk: Disk) -> list[str]:
    """The device nodes of the disk's file systems, bottom first."""
    if not disk.partitions:
        return [f"/dev/{name}"]
    separator = "p" if name[-1].isdigit() else ""
    return [f"/dev/{name}{separator}{number}" for number in range(1, disk.partitions + 1)]


def _scsi_hosts() -> list[int]:
    hosts = []
    for name in os.listdir("/sys/class/scsi_host"):
        with suppress(OSError):
            if read_text(f"/sys/class/scsi_host/{name}/proc_name").strip() == "virtio_scsi":
                hosts.append(int(name.removeprefix("host")))
    return sorted(hosts)


@dataclass
class Mounted:
    """A disk in use: where its file systems are, bottom first, and by whom it is used."""

    name: str
    directories: list[str]
    baseline: tuple[int, int] = (0, 0)
    users: set[str] = field(default_factory=set)


class Disks:
    """All disks in use. A user is a container's id; the last one to release a disk unplugs it."""

    def __init__(self) -> None:
        self._mounted: dict[Disk, Mounted] = {}
        self._host: int | None = None
        self._leaving: list[int] = []

    def mount(self, disk: Disk, user: str, *, writable: bool = False) -> Mounted:
        """Mount ``disk`` (EROFS, or ext4 when ``writable``) unless it is, and note its user.

        Raises Refused ``unavailable`` when there is no such disk, ``failed_precondition`` when it
        holds no file system of that kind.
        """
        mounted = self._mounted.get(disk)
        if mounted is None:
            name = self._find(disk)
            base = f"{paths.DISKS}/{disk.channel}-{disk.target}-{disk.lun}"
            mounted = Mounted(name, [])
            try:
                for number, device in enumerate(_devices(name, disk), 1 if disk.partitions else 0):
                    directory = f"{base}/{number}"
                    os.makedirs(directory, exist_ok=True)
                    self._mount_one(device, directory, disk, writable=writable)
                    mounted.directories.append(directory)
            except BaseException:
                self._unmount(mounted, disk)
                self.forget_devices()
                raise
            if writable:
                use = os.statvfs(mounted.directories[0])
                mounted.baseline = ((use.f_blocks - use.f_bfree) * use.f_frsize, use.f_files - use.f_ffree)
            self._mounted[disk] = mounted
        mounted.users.add(user)
        return mounted

    def get(self, disk: Disk) -> Mounted | None:
        """The disk, if it is mounted."""
        return self._mounted.get(disk)

    def release(self, user: str) -> list[str]:
        """``user`` is done with its disks; returns what could not be unmounted. Idempotent.

        The devices of those that nobody uses any more go with :meth:`forget_devices`.
        """
        problems = []
        for disk, mounted in list(self._mounted.items()):
            mounted.users.discard(user)
            if not mounted.users:
                del self._mounted[disk]
                problems += self._unmount(mounted, disk)
        return problems

    def forget_devices(self) -> None:
        """Remove the devices of unmounted disks, unless the daemon has unplugged them meanwhile.

        That takes tens of milliseconds for nothing the daemon has to wait for. The files were
        opened when the disks were unmounted, so no later disk of the same name can be meant.
        """
        while self._leaving:
            fd = self._leaving.pop()
            with suppress(OSError):
                os.write(fd, b"1")
            os.close(fd)

    def sync(self) -> None:
        """Write everything out, and unmount what is in use as far as that goes."""
        os.sync()
        for mounted in self._mounted.values():
            for directory in mounted.directories:
                with suppress(OSError):
                    syscalls.mount("none", directory, "", syscalls.MS_REMOUNT | syscalls.MS_RDONLY)

    def _mount_one(self, device: str, directory: str, disk: Disk, *, writable: bool) -> None:
        kind, flags, options = "erofs", syscalls.MS_RDONLY, ""
        if writable:
            kind, flags, options = "ext4", syscalls.MS_NOATIME, _SCRATCH_OPTIONS
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                syscalls.mount(device, directory, kind, flags, options)
                return
            except OSError as error:
                # The node can be there a moment before the disk behind it can be opened.
                if error.errno == errno.ENXIO and time.monotonic() < deadline:
                    time.sleep(0.005)
                    continue
                raise Refused(
                    "failed_precondition",
                    f"cannot mount {kind} of disk {disk.channel}:{disk.target}:{disk.lun} ({device}):"
                    f" {error.strerror}",
                ) from error

    def _unmount(self, mounted: Mounted, disk: Disk) -> list[str]:
        problems = []
        for directory in reversed(mounted.directories):
            try:
                syscalls.umount(directory)
            except OSError as error:
                problems.append(f"{directory}: {error.strerror}")
                with suppress(OSError):
                    syscalls.umount(directory, syscalls.MNT_DETACH)
            with suppress(OSError):
                os.rmdir(directory)
        if not disk.lasting:
            with suppress(OSError):
                path = f"/sys/block/{mounted.name}/device/delete"
                self._leaving.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        return problems

    def _find(self, disk: Disk) -> str:
        """The kernel's name of the disk ("sda"), once all of its partitions are there."""
        if disk.lasting and disk.partitions:
            self._read_partitions(disk)
        return self._look(disk) or self._wait(disk)

    def _read_partitions(self, disk: Disk) -> None:
        """Have the kernel look at a disk that came into a device it has known for long."""
        whole = replace(disk, partitions=0)
        name = self._look(whole) or self._wait(whole)
        with suppress(OSError):  # then there are none, and the search says so
            device = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _BLKRRPART)
            finally:
                os.close(device)

    def _wait(self, disk: Disk) -> str:
        family, kind = socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC
        with socket.socket(family, kind, _NETLINK_KOBJECT_UEVENT) as news:
            news.bind((0, 1))
            self._scan(disk)
            deadline = time.monotonic() + PATIENCE
            while (name := self._look(disk)) is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise Refused(
                        "unavailable",
                        f"disk {disk.channel}:{disk.target}:{disk.lun} with {disk.partitions} partitions"
                        f" did not appear within {PATIENCE:g} seconds",
                    )
                ready, _, _ = select.select([news], [], [], left)
                if ready:
                    with suppress(OSError):  # ENOBUFS: too much news, so look again
                        news.recv(16384)
            return name

    def _host_number(self) -> int:
        if self._host is None:
            hosts = _scsi_hosts()
            if not hosts:
                raise Refused("unavailable", "the machine has no virtio-scsi adapter")
            self._host = hosts[0]
        return self._host

    def _look(self, disk: Disk) -> str | None:
        address = f"{self._host_number()}:{disk.channel}:{disk.target}:{disk.lun}"
        try:
            (name,) = os.listdir(f"{_SYS_DEVICES}/{address}/device/block")
        except (OSError, ValueError):
            return None
        # A node may lag behind the device: devtmpfs makes it before the kernel tells, but not before sysfs.
        wanted = [f"/dev/{name}", *_devices(name, disk)]
        return name if all(os.path.exists(path) for path in wanted) else None

    def _scan(self, disk: Disk) -> None:
        with suppress(OSError):
            write_text(
                f"/sys/class/scsi_host/host{self._host_number()}/scan",
                f"{disk.channel} {disk.target} {disk.lun}",
            )
