"""Disks that the daemon attaches: found by their address, mounted once, shared by containers.

``scsi:3`` is unit 3 of the virtio-scsi adapter, and the guest removes the device when it is done with
the disk. ``scsi-kept:3`` is a device that was there before the disk and stays when it goes; what is in it
has to be looked at anew. ``scsi:3/2`` is the second partition.

The daemon attaches a disk first and names it in a request then, so the kernel has often found it
already; else a scan makes it look. The kernel tells of each new block device by a netlink message
(uevent), which is what is waited for, and everybody else is served meanwhile.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field

from orlop.guest import paths
from orlop.guest.loop import IN, Loop, Timer
from orlop.guest.paths import read_text, write_text
from orlop.linux import syscalls
from orlop.wire.messages import Refused
from orlop.wire.values import PluggedDisk

_EXT4_RESIZE = 0x40086610
_EXT4_BLOCKS = 1024 + 4
"""Where the lower half of the number of blocks is, in the superblock."""

NOBODY = ""
"""Has a disk that is mounted for the next who asks."""

PATIENCE = 10.0
"""Seconds a disk may take to appear."""

# What a container wrote ends with it, so nothing has to be safe on the disk: no barriers.
_SCRATCH_OPTIONS = "noinit_itable,nobarrier"
# What is freed goes back.
_LASTING_OPTIONS = "noinit_itable,discard"
_NETLINK_KOBJECT_UEVENT = 15
_BLKRRPART = 0x125F  # linux/fs.h
_SYS_DEVICES = "/sys/class/scsi_device"
_SYS_HOSTS = "/sys/class/scsi_host"
_ADDRESS = re.compile(r"(scsi|scsi-kept):([0-9]{1,5})(?:/([0-9]{1,3}))?")
# Between two tries to open a node that is there before the disk behind it.
_SOON = 0.005

Found = Callable[[Refused | None], None]


@dataclass(frozen=True)
class Place:
    """What an address says; ``partition`` 0 is the whole disk."""

    unit: int
    partition: int
    kept: bool


def parse(address: str) -> Place:
    """The place at ``address``. Raises Refused for one that is no disk's."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise Refused("invalid", f"the agent does not know how to find a disk at {address!r}")
    return Place(int(match[2]), int(match[3] or 0), match[1] == "scsi-kept")


@dataclass
class Mounted:
    """A disk in use: where its file systems are, bottom first, by whom it is used, and what goes with it."""

    directories: list[str] = field(default_factory=list)
    baseline: tuple[int, int] = (0, 0)
    users: set[str] = field(default_factory=set)
    devices: set[str] = field(default_factory=set)


class Adapter:
    """The virtio-scsi adapter, and the devices that the kernel found there."""

    def __init__(self) -> None:
        self._host: int | None = None

    def node(self, place: Place) -> str | None:
        """The device node of a place, once it can be opened."""
        name = self.name(place.unit)
        if name is None:
            return None
        if place.partition == 0:
            return f"/dev/{name}"
        separator = "p" if name[-1].isdigit() else ""
        node = f"/dev/{name}{separator}{place.partition}"
        if place.kept and not os.path.exists(node):
            self._read_partitions(name)
        return node

    def name(self, unit: int) -> str | None:
        """What the kernel calls the disk at that unit ("sda"), if it found one."""
        try:
            (name,) = os.listdir(f"{_SYS_DEVICES}/{self._number()}:0:0:{unit}/device/block")
        except (OSError, ValueError):
            return None
        return name

    def scan(self, unit: int) -> None:
        """Have the kernel look for a disk."""
        with suppress(OSError):
            write_text(f"{_SYS_HOSTS}/host{self._number()}/scan", f"0 0 {unit}")

    def _read_partitions(self, name: str) -> None:
        """Have the kernel look at a disk that came into a device it has known for long."""
        with suppress(OSError):  # then there are none, and the search says so
            device = os.open(f"/dev/{name}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(device, _BLKRRPART)
            finally:
                os.close(device)

    def _number(self) -> int:
        if self._host is None:
            hosts = []
            for name in os.listdir(_SYS_HOSTS):
                with suppress(OSError):
                    if read_text(f"{_SYS_HOSTS}/{name}/proc_name").strip() == "virtio_scsi":
                        hosts.append(int(name.removeprefix("host")))
            if not hosts:
                raise Refused("unavailable", "the machine has no virtio-scsi adapter")
            self._host = min(hosts)
        return self._host


class Search:
    """Waits until all of some places can be mounted, or patience is at its end; then calls ``then`` once."""

    def __init__(self, loop: Loop, adapter: Adapter, missing: list[tuple[str, Place]], then: Found) -> None:
        self._loop = loop
        self._adapter = adapter
        self._missing = missing
        self._then = then
        self._soon: Timer | None = None
        family, kind = socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        self._news = socket.socket(family, kind, _NETLINK_KOBJECT_UEVENT)
        self._news.bind((0, 1))
        self._end = loop.call_later(PATIENCE, self._give_up)
        loop.watch(self._news.fileno(), IN, self._on_news)
        for unit in dict.fromkeys(place.unit for _, place in missing):
            adapter.scan(unit)
        self._look()

    def _on_news(self, events: int) -> None:
        with suppress(OSError):  # ENOBUFS: too much news, so look again
            while self._news.recv(16384):
                pass
        self._look()

    def _look(self) -> None:
        self._missing = [one for one in self._missing if not can_be_opened(self._adapter.node(one[1]))]
        if not self._missing:
            self._finish(None)
        elif self._soon is None and any(self._adapter.name(place.unit) for _, place in self._missing):
            # The node can be there a moment before the disk behind it, and no news tells of that.
            self._soon = self._loop.call_later(_SOON, self._again)

    def _again(self) -> None:
        self._soon = None
        self._look()

    def _give_up(self) -> None:
        names = ", ".join(address for address, _ in self._missing)
        self._finish(Refused("unavailable", f"no disk appeared at {names} within {PATIENCE:g} seconds"))

    def _finish(self, problem: Refused | None) -> None:
        self._end.cancel()
        if self._soon is not None:
            self._soon.cancel()
        self._loop.unwatch(self._news.fileno())
        self._news.close()
        self._then(problem)


class MountedDisks:
    """All disks in use. A user is a container's id; the last one to release a disk lets its devices go."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._adapter = Adapter()
        self._mounted: dict[str, Mounted] = {}
        self._made = 0
        self._leaving: list[int] = []

    def find(self, disks: Iterable[PluggedDisk], then: Found) -> None:
        """Call ``then`` when all of ``disks`` can be mounted: at once where nothing has to be waited for.

        With a reason when one is not there within ten seconds or its address means nothing.
        """
        try:
            new = [disk for disk in disks if disk.id not in self._mounted]
            places = [(address, parse(address)) for disk in new for address in disk.at]
            missing = [one for one in places if not self._is_there(one[1])]
        except Refused as refused:
            then(refused)
            return
        if missing:
            Search(self._loop, self._adapter, missing, then)
        else:
            then(None)

    def mount(
        self, disk: PluggedDisk, user: str, *, writable: bool = False, lasting: bool = False
    ) -> Mounted:
        """Mount ``disk`` (EROFS, or ext4 when ``writable``) unless it is, and note its user.

        ``lasting`` says that what is on it outlives the machine. Raises Refused ``unavailable`` when it is
        not there, ``failed_precondition`` when it holds no file system of that kind.
        """
        mounted = self._mounted.get(disk.id)
        if mounted is None:
            mounted = Mounted()
            try:
                for address in disk.at:
                    self._mount_one(mounted, address, *_how(writable=writable, lasting=lasting))
            except BaseException:
                self._unmount(mounted)
                self.forget_devices()
                raise
            if writable:
                use = os.statvfs(mounted.directories[0])
                mounted.baseline = ((use.f_blocks - use.f_bfree) * use.f_frsize, use.f_files - use.f_ffree)
            self._mounted[disk.id] = mounted
        mounted.users.discard(NOBODY)
        mounted.users.add(user)
        return mounted

    def place(self, disk: PluggedDisk) -> tuple[str, str]:
        """The device node of a disk and a new directory to mount it on, for :meth:`adopt`. Raises Refused."""
        (address,) = disk.at
        node = self._adapter.node(parse(address))
        if node is None:
            raise Refused("unavailable", f"there is no disk at {address}")
        return node, self._new_directory()

    def adopt(self, disk: PluggedDisk, user: str, directory: str, *, mounted: bool) -> None:
        """Note what came of a :meth:`place`: ``user`` has the disk now, or it was not ``mounted``."""
        place = parse(disk.at[0])
        name = self._adapter.name(place.unit)
        devices = {name} if name is not None and not place.kept else set()
        found = Mounted([directory], users={user}, devices=devices)
        if mounted:
            self._mounted[disk.id] = found
        else:
            self._unmount(found)
            self.forget_devices()

    def take(self, disk: PluggedDisk, user: str) -> str:
        """The device node of a disk that ``user`` gets as it is, until :meth:`release`. Raises Refused."""
        mounted = self._mounted.setdefault(disk.id, Mounted())
        mounted.users.add(user)
        (address,) = disk.at
        place = parse(address)
        name, node = self._adapter.name(place.unit), self._adapter.node(place)
        if name is None or node is None:
            raise Refused("unavailable", f"there is no disk at {address}")
        if not place.kept:
            mounted.devices.add(name)
        return node

    def get(self, disk_id: str) -> Mounted | None:
        """The disk, if it is mounted."""
        return self._mounted.get(disk_id)

    def release(self, user: str) -> list[str]:
        """``user`` is done with its disks; returns what could not be unmounted. Idempotent.

        The devices of those that nobody uses any more go with :meth:`forget_devices`.
        """
        problems = []
        for disk_id, mounted in list(self._mounted.items()):
            mounted.users.discard(user)
            if not mounted.users:
                del self._mounted[disk_id]
                problems += self._unmount(mounted)
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

    def _is_there(self, place: Place) -> bool:
        node = self._adapter.node(place)
        # What the guest has known since it was saved can be opened.
        return node is not None and ((place.kept and not place.partition) or can_be_opened(node))

    def _mount_one(self, mounted: Mounted, address: str, kind: str, flags: int, options: str) -> None:
        place = parse(address)
        name, node = self._adapter.name(place.unit), self._adapter.node(place)
        if name is None or node is None:
            raise Refused("unavailable", f"there is no disk at {address}")
        if not place.kept:
            mounted.devices.add(name)
        directory = self._new_directory()
        try:
            syscalls.mount(node, directory, kind, flags, options)
        except OSError as error:
            os.rmdir(directory)
            raise Refused(
                "failed_precondition", f"cannot mount {kind} of the disk at {address}: {error.strerror}"
            ) from error
        if options == _LASTING_OPTIONS:
            take_all(node, directory)
        mounted.directories.append(directory)

    def _new_directory(self) -> str:
        self._made += 1
        directory = f"{paths.DISKS}/{self._made}"
        os.makedirs(directory, exist_ok=True)
        return directory

    def _unmount(self, mounted: Mounted) -> list[str]:
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
        for name in mounted.devices:
            with suppress(OSError):
                path = f"/sys/block/{name}/device/delete"
                self._leaving.append(os.open(path, os.O_WRONLY | os.O_CLOEXEC))
        return problems


def _how(*, writable: bool, lasting: bool) -> tuple[str, int, str]:
    """The kind of file system of a disk, and the flags and options to mount it with."""
    if not writable:
        return "erofs", syscalls.MS_RDONLY, ""
    return ("ext4", 0, _LASTING_OPTIONS) if lasting else ("ext4", syscalls.MS_NOATIME, _SCRATCH_OPTIONS)


def take_all(node: str, directory: str) -> None:
    """Let ext4 grow over all of its disk, which may be larger than when it was mounted last."""
    with suppress(OSError):  # it stays as large as it was, then
        device = os.open(node, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = os.lseek(device, 0, os.SEEK_END)
            (known,) = struct.unpack("<I", os.pread(device, 4, _EXT4_BLOCKS))
        finally:
            os.close(device)
        blocks = size // os.statvfs(directory).f_bsize
        if known < blocks < 1 << 32:
            top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.ioctl(top, _EXT4_RESIZE, struct.pack("=Q", blocks))
            finally:
                os.close(top)


def can_be_opened(node: str | None) -> bool:
    """Whether a device node leads to a disk."""
    if node is None:
        return False
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno not in (errno.ENOENT, errno.ENXIO, errno.ENODEV)
    return True
