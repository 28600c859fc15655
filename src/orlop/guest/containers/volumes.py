"""The pod's own volumes: on a disk, in memory, or filled by the daemon. They last as long as the VM.

Each has a directory that nothing but the volume is in. Containers change what is in there, so a path in it
is resolved as if it were /: a link that a container made leads to no other place of the guest.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial

from orlop.guest import paths
from orlop.guest.containers import filesystems
from orlop.guest.containers.entries import bring_to, make, make_directory
from orlop.guest.devices.block import MountedDisks
from orlop.guest.launch import spawn
from orlop.guest.launch.script import ANY, Script
from orlop.guest.streams.bound import BoundSockets
from orlop.linux import syscalls
from orlop.linux.removal import remove_tree
from orlop.wire import messages
from orlop.wire.messages import Refused
from orlop.wire.statistics import VolumeFill
from orlop.wire.values import FileSystem, PluggedDisk, VolumeEntry

_POD = "pod"
"""Who uses the disks of volumes, among containers."""

_ON_DISK = "volume"
"""The directory on a volume's disk that is the volume: beside it the file system has its own."""

_MAX_PARTS = 64 << 20
"""Bytes of content that may wait for its end."""

# A container may write to some of the small ones; its memory is charged for it, up to here.
_SMALL_OPTIONS = "mode=755,size=128m"

# Written volumes are on the host's disk after some seconds: it is there that their use is measured.
_WRITE_BACK = (
    ("/proc/sys/vm/dirty_writeback_centisecs", "300"),
    ("/proc/sys/vm/dirty_expire_centisecs", "600"),
)


@dataclass(frozen=True)
class Work:
    """What may take long: ``do`` is for a process of its own, ``finish`` hears here what came of it, and
    raises Refused."""

    do: Callable[[], None]
    finish: Callable[[Refused | None], None]


class PodVolumes:
    """All volumes that the daemon had this pod hold."""

    def __init__(self, disks: MountedDisks, bound: BoundSockets) -> None:
        self._disks = disks
        self._bound = bound
        self._places: dict[str, str] = {}
        self._filled: set[str] = set()
        self._foreign: set[str] = set()
        self._on_disks: set[str] = set()
        self._parts: dict[str, list[VolumeEntry]] = {}
        self._small = ""

    def place(self, volume: str) -> str:
        """The directory of a volume. Raises Refused ``invalid`` for one that is not held."""
        try:
            return self._places[volume]
        except KeyError:
            raise Refused("invalid", f"this VM does not hold the volume {volume}") from None

    def hold(self, request: messages.Hold) -> Work | None:
        """Have a volume; its disk was found. See :class:`messages.Hold`. Raises Refused.

        What is to be done apart for that comes back, and nothing else is done before it.
        """
        if request.file_system is not None and request.disk is not None:
            return self._work(request, request.disk, request.file_system)
        self._hold(request)
        return None

    def _work(self, request: messages.Hold, disk: PluggedDisk, wanted: FileSystem) -> Work:
        place = self._places.get(request.id)
        node, directory = self._disks.place(disk)
        if place is not None:
            os.rmdir(directory)
            grow = partial(filesystems.grow, wanted.kind, node, place, request.size)
            return Work(grow if request.size else _nothing, partial(self._grown, request))

        def finish(problem: Refused | None) -> None:
            self._disks.adopt(disk, _POD, directory, mounted=problem is None)
            if problem is not None:
                raise problem
            _share_mounts(directory)
            self._places[request.id] = directory
            self._foreign.add(request.id)
            self._on_disks.add(request.id)
            self._hold(request)

        return Work(partial(filesystems.mount, node, directory, wanted), finish)

    def _grown(self, request: messages.Hold, problem: Refused | None) -> None:
        if problem is not None:
            raise problem
        self._hold(request)

    def _hold(self, request: messages.Hold) -> None:
        root, *below = request.directories
        try:
            if request.id not in self._places:
                self._places[request.id] = self._new(request, root)
            with _opened(self._places[request.id]) as top:
                for entry in below:
                    _ensure(top, entry)
        except OSError as error:
            raise Refused("internal", f"the volume {request.id} cannot be made: {error}") from error

    def fill(self, request: messages.Fill) -> None:
        """See :class:`messages.Fill`. Raises Refused."""
        parts = self._parts.setdefault(request.id, [])
        parts += request.entries
        if sum(len(entry.data) for entry in parts) > _MAX_PARTS:
            del self._parts[request.id]
            raise Refused("invalid", f"the volume {request.id} is too large to be filled")
        if request.more:
            return
        del self._parts[request.id]
        place = self._places.get(request.id)
        if place is None:
            self._places[request.id] = self._new_small(request.id, parts)
        else:
            bring_to(place, parts, in_place=request.in_place)
        self._filled.add(request.id)

    def forget_parts(self) -> None:
        """The daemon that was sending something in parts is gone: another one begins anew."""
        self._parts.clear()

    def fetch(self, request: messages.Fetch) -> messages.FetchReply:
        """The end of a file, b"" when there is none."""
        try:
            with _opened(self.place(request.id)) as top:
                fd = syscalls.open_in_root(top, request.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError:
            return messages.FetchReply()
        try:
            size = os.fstat(fd).st_size
            data = os.pread(fd, messages.MAX_FETCH, max(0, size - messages.MAX_FETCH))
        except OSError:
            data = b""
        finally:
            os.close(fd)
        return messages.FetchReply(data=data)

    def drop(self, volume: str) -> None:
        """See :class:`messages.Drop`."""
        if volume in self._filled:
            self._filled.discard(volume)
            remove_tree(self._places.pop(volume))

    def fill_of_disks(self) -> tuple[VolumeFill, ...]:
        """How full the volumes on disks are; one that cannot be asked is left out."""
        found = []
        for volume in self._on_disks:
            with suppress(OSError):
                use = os.statvfs(self._places[volume])
                found.append(
                    VolumeFill(
                        id=volume,
                        total=use.f_blocks * use.f_frsize,
                        free=use.f_bavail * use.f_frsize,
                        inodes=use.f_files,
                        inodes_free=use.f_favail,
                    )
                )
        return tuple(found)

    def flush(self) -> spawn.Spawned | None:
        """A child that writes all volumes on disks out and ends; None when there is nothing to write.

        Writing may take long, and nothing else may wait for it. It ends in the host's cache, which outlives
        the machine that is about to end: the host's disk need not have it yet.
        """
        steps = Script()
        files = []
        for volume, place in self._places.items():
            if volume not in self._filled:
                files.append(os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
                if volume in self._foreign:
                    # Another machine may have it next: all of it is on the device, nothing to recover.
                    steps.add("syncfs", files[-1], tolerate=ANY)
                    flags = syscalls.MS_REMOUNT | syscalls.MS_RDONLY
                    steps.add("mount", "", place, 0, flags, "", tolerate=ANY)
                    continue
                top = os.path.dirname(place)
                steps.add("mount", "", top, 0, syscalls.MS_REMOUNT, "nobarrier", tolerate=ANY)
                steps.add("syncfs", files[-1], tolerate=ANY)
        if not files:
            return None
        steps.add("exit_group", 0)
        try:
            return spawn.start(steps)
        finally:
            # The child has copies of its own.
            for file in files:
                os.close(file)

    def _new(self, request: messages.Hold, root: VolumeEntry) -> str:
        if request.disk is not None:
            mounted = self._disks.mount(request.disk, _POD, writable=True, lasting=True)
            (directory,) = mounted.directories
            place = f"{directory}/{_ON_DISK}"
            _share_mounts(directory)
            self._on_disks.add(request.id)
            if not os.path.isdir(place):
                make_directory(place, root)
            for path, text in _WRITE_BACK:
                with suppress(OSError):
                    paths.write_text(path, text)
            return place
        place = f"{paths.VOLUMES}/{_checked(request.id)}"
        os.makedirs(place, exist_ok=True)
        size = f",size={request.size}" if request.size else ""
        options = f"mode={root.mode:o},uid={root.uid},gid={root.gid}{size}"
        syscalls.mount("tmpfs", place, "tmpfs", 0, options)
        _share_mounts(place)
        if request.listens:
            self._bound.watch(request.id, place)
        return place

    def _new_small(self, volume: str, entries: list[VolumeEntry]) -> str:
        place = f"{self._small_ones()}/{_checked(volume)}"
        try:
            os.mkdir(place, 0o755)
        except FileExistsError:  # an earlier one came half way
            bring_to(place, entries)
        else:
            make(place, entries)
        return place

    def _small_ones(self) -> str:
        if not self._small:
            small = f"{paths.VOLUMES}/.small"
            os.makedirs(small, exist_ok=True)
            syscalls.mount("tmpfs", small, "tmpfs", syscalls.MS_NODEV, _SMALL_OPTIONS)
            self._small = small
        return self._small


def _nothing() -> None:
    """All is done."""


def _share_mounts(directory: str) -> None:
    """Let what one container mounts below a volume reach the others, as far as each of them asks for it."""
    syscalls.mount("", directory, "", syscalls.MS_SHARED)


@contextmanager
def _opened(path: str) -> Iterator[int]:
    fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _checked(volume: str) -> str:
    if "/" in volume or volume.startswith("."):
        raise Refused("invalid", f"{volume!r} cannot be the name of a volume")
    return volume


def _ensure(top: int, entry: VolumeEntry) -> None:
    """Have a directory below a volume whose content containers have made; what is there stays as it is."""
    with suppress(FileNotFoundError):
        os.close(syscalls.open_in_root(top, entry.path, os.O_PATH))
        return
    above, _, name = entry.path.rpartition("/")
    parent = syscalls.open_in_root(top, above, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.mkdir(name, 0o700, dir_fd=parent)
        made = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.fchown(made, entry.uid, entry.gid)
            os.fchmod(made, entry.mode)
        finally:
            os.close(made)
    except OSError as error:
        if error.errno != errno.EEXIST:  # a link that leads nowhere: the mount will say so
            raise
    finally:
        os.close(parent)
