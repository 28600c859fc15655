"""What the ``vm`` handler remembers of a pod on disk, so that a later daemon finds it again.

``<state>/vm-pods/<pod id>/pod.json`` names the pod's VM; it is written before anything is made for the
pod and removed after all of it is gone. ``<container id>.json`` beside it says what was plugged for a
container. Files are written aside and renamed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from orlop.errors import DataLoss, InvalidArgument, Unavailable
from orlop.host import files
from orlop.sandbox.crilog import LogPosition
from orlop.sandbox.rawoutput import FileMark
from orlop.sandbox.spec import IdMapping
from orlop.sandbox.vm import former
from orlop.storage.direct import DirectVolume
from orlop.storage.kubelet import Kind
from orlop.value import UNREADABLE, Value
from orlop.wire.values import Disks, PluggedDisk

T = TypeVar("T")

_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z_.-]{0,127}")
_POD = "pod.json"
_VOLUMES = "volumes"
_LISTENERS = "listeners"


class PodFile(Value, frozen=True):
    """A pod's VM. ``vm_id`` is "" until one was claimed; ``set_up`` once the pod ran.

    ``cgroup`` is the control group that the VM's process is in, ``interface`` one of a network namespace
    from outside that is the pod's until it ends.
    """

    pod_id: str
    vm_id: str = ""
    cgroup: str = ""
    set_up: bool = False
    addresses: tuple[str, ...] = ()
    kernel: str = ""
    accelerator: str = ""
    interface: str = ""


class HostSocket(Value, frozen=True):
    """A socket of the host that a container has: the guest's word for it, and its path without links."""

    id: str
    path: str


class HostDirectory(Value, frozen=True):
    """A directory of the host that a container shares: its key on the share, and its path without links."""

    key: str
    path: str


class ContainerFile(Value, frozen=True):
    """What a container holds, and where its log begins. ``scratch`` is the file that it writes to.

    Disks that are not attached yet stand there without their places.
    """

    id: str
    disks: Disks = Disks()
    shares: tuple[str, ...] = ()
    sockets: tuple[HostSocket, ...] = ()
    directories: tuple[HostDirectory, ...] = ()
    scratch: str = ""
    stdin: int = 0
    stdout: int = 0
    stderr: int = 0
    log: LogPosition | None = None
    raw: tuple[FileMark, ...] = ()


class HostListener(Value, frozen=True):
    """A socket that the host has for one of a container's; ``inode`` is 0 until it was made.

    ``changed`` is the time of its file's last change (ns): a number is soon given to another file.
    """

    directory: str
    name: str
    device: int = 0
    inode: int = 0
    changed: int = 0

    @property
    def path(self) -> str:
        """Where it is."""
        return f"{self.directory}/{self.name}"


class HeldVolume(Value, frozen=True):
    """A volume that the guest holds for its pod, or with ``shared`` an emptyDir that it cannot.

    ``kind`` and ``path`` are those of a ``KubeletVolume``, ``file`` the name of what is a single file. For
    those that are copied, ``users`` are the containers that mount it, ``sent`` is the digest of what the
    guest has, and ``root`` the device and the number of what it was copied from. ``direct`` is the device
    that the guest has mounted. The mappings are those of the pod's user namespace.
    """

    id: str
    kind: Kind
    path: str
    file: str = ""
    disk: PluggedDisk | None = None
    users: tuple[str, ...] = ()
    sent: str = ""
    root: tuple[int, int] | None = None
    shared: bool = False
    direct: DirectVolume | None = None
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()


class PodFiles:
    """The files of one pod. Reading and writing take tens of microseconds on the tmpfs they are on."""

    def __init__(self, state: Path, pod_id: str) -> None:
        _check(pod_id)
        self.directory = directory(state) / pod_id

    @property
    def cpu_ledger(self) -> Path:
        """Where the pod's processor time is accounted for."""
        return self.directory / "cpu.ledger"

    def read(self) -> PodFile | None:
        """The pod's file, or None. Raises DataLoss when it is damaged, Unavailable when it cannot be read."""
        return _read(self.directory / _POD, PodFile)

    def write(self, pod: PodFile) -> None:
        """Replace the pod's file."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.save(self.directory / _POD, msgspec.json.encode(pod))

    def volumes(self) -> list[HeldVolume]:
        """The volumes that the guest holds. Raises DataLoss when their file is damaged, Unavailable."""
        return list(_read(self.directory / _VOLUMES, tuple[HeldVolume, ...]) or ())

    def write_volumes(self, volumes: Iterable[HeldVolume]) -> None:
        """Replace the file of the volumes."""
        files.save(self.directory / _VOLUMES, msgspec.json.encode(tuple(volumes)))

    def listeners(self) -> tuple[HostListener, ...]:
        """The host's sockets for containers. Raises DataLoss when their file is damaged, Unavailable."""
        return _read(self.directory / _LISTENERS, tuple[HostListener, ...]) or ()

    def write_listeners(self, listeners: Iterable[HostListener]) -> None:
        """Replace the file of the sockets."""
        files.save(self.directory / _LISTENERS, msgspec.json.encode(tuple(listeners)))

    def containers(self) -> list[ContainerFile]:
        """The files of all containers; a damaged one is left out. Raises Unavailable."""
        found = []
        for path in sorted(self.directory.glob("*.json")):
            if path.name != _POD:
                with suppress(DataLoss):
                    container = _read(path, ContainerFile)
                    if container is not None:
                        found.append(container)
        return found

    def write_container(self, container: ContainerFile) -> None:
        """Replace a container's file."""
        _check(container.id)
        files.save(self.directory / f"{container.id}.json", msgspec.json.encode(container))

    def remove_container(self, container_id: str) -> None:
        """Forget a container. Idempotent."""
        (self.directory / f"{container_id}.json").unlink(missing_ok=True)

    def remove(self) -> None:
        """Forget the pod. Idempotent."""
        if not self.directory.is_dir():
            return
        for path in sorted(self.directory.iterdir(), key=lambda path: path.name == _POD):
            path.unlink(missing_ok=True)  # the pod's own file goes last
        self.directory.rmdir()


class HeldTable:
    """The volumes that the guest of one pod holds, by id; each change is on disk when a method returns."""

    def __init__(self, files: PodFiles) -> None:
        self._files = files
        self._held: dict[str, HeldVolume] = {}

    def __contains__(self, volume_id: str) -> bool:
        return volume_id in self._held

    def __getitem__(self, volume_id: str) -> HeldVolume:
        return self._held[volume_id]

    def __len__(self) -> int:
        return len(self._held)

    def get(self, volume_id: str) -> HeldVolume | None:
        """The volume of that id, None if the guest holds none."""
        return self._held.get(volume_id)

    def values(self) -> Collection[HeldVolume]:
        """All of them."""
        return self._held.values()

    def load(self) -> None:
        """Take over what an earlier daemon wrote. Raises DataLoss, Unavailable."""
        self._held = {held.id: held for held in self._files.volumes()}

    def remember(self, *volumes: HeldVolume) -> None:
        """Have these, in place of those of the same ids."""
        new = {held.id: held for held in volumes if self._held.get(held.id) != held}
        if new:
            self._held |= new
            self._files.write_volumes(self._held.values())

    def forget(self, *volume_ids: str) -> None:
        """Have those no more. Idempotent."""
        gone = [volume_id for volume_id in volume_ids if self._held.pop(volume_id, None) is not None]
        if gone:
            self._files.write_volumes(self._held.values())


def directory(state: Path) -> Path:
    """Where the pods' files are."""
    return state / "vm-pods"


def pods_on_disk(state: Path) -> list[str]:
    """Ids of the pods that have a directory."""
    place = directory(state)
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def owned_vms(state: Path) -> set[str]:
    """Ids of the VMs that belong to a pod. One whose pod's file is damaged belongs to nobody any more.

    Raises Unavailable when that cannot be known now."""
    owned = set()
    for path in directory(state).glob(f"*/{_POD}"):
        with suppress(DataLoss):
            pod = _read(path, PodFile)
            if pod is not None:
                owned.add(pod.vm_id)
    return owned


def _check(name: str) -> None:
    if not _ID.fullmatch(name):
        raise InvalidArgument(f"{name!r} cannot be the name of a file")


def _read(path: Path, kind: type[T]) -> T | None:
    try:
        document = msgspec.json.decode(path.read_bytes())
        if isinstance(document, dict) and isinstance(held := document.get("disks"), list):
            document["disks"] = former.disks(held)
        return msgspec.convert(document, kind)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"state file {path} cannot be read now: {error.strerror}") from error
    except UNREADABLE as error:
        raise DataLoss(f"state file {path} cannot be read: {error}") from error
