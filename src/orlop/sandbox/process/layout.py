"""Where a pod of this handler keeps what: one directory below ``state``, one below ``root``.

    STATE/process/POD/pod.json            what is needed to find the pod again
                     /ns/{net,ipc,uts,user,pid}   pinned namespaces
                     /etc/{hosts,hostname,resolv.conf}
                     /shm                 the pod's /dev/shm
                     /cpu.ledger          processor time, where the kernel does not count for the pod
                     /exits/CONTAINER     exit codes, written by conmon
                     /c/CONTAINER/        the OCI bundle, container.json, conmon's sockets, volumes
                 /pause               sleep(1)
    ROOT/process/POD/CONTAINER/           the root file system and what was written to it

``state`` may be memory, ``root`` is a disk.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from orlop.errors import InvalidArgument
from orlop.host import files, privacy
from orlop.linux.removal import remove_tree
from orlop.value import UNREADABLE, Value

T = TypeVar("T")


class KnownProcess(Value, frozen=True):
    """A process that can be recognised after a restart of the daemon; pid 0 is none."""

    pid: int = 0
    start_time: int = 0


class PodState(Value, frozen=True):
    """What is recorded of a pod. ``holder`` keeps a shared PID namespace alive."""

    addresses: tuple[str, ...] = ()
    holder: KnownProcess = KnownProcess()
    cgroup: str = ""


class ContainerProcesses(Value, frozen=True):
    """What is recorded of a container; ``started_at`` 0 means created only."""

    init: KnownProcess
    monitor: KnownProcess
    cgroup: str
    started_at: int = 0


@dataclass(frozen=True)
class ContainerPaths:
    """The directories of one container."""

    bundle: Path
    rootfs: Path
    exit_file: Path

    @property
    def record(self) -> Path:
        """The file of :class:`ContainerProcesses`."""
        return self.bundle / "container.json"

    @property
    def document(self) -> Path:
        """What the runtime runs it from (OCI runtime-spec)."""
        return self.bundle / "config.json"

    @property
    def volumes(self) -> Path:
        """Below it, mount points of volumes that are prepared before the container is made."""
        return self.bundle / "volumes"


@dataclass(frozen=True)
class PodPaths:
    """The directories of one pod."""

    state: Path
    root: Path

    def namespace(self, kind: str) -> Path:
        """Where a namespace of the pod is pinned."""
        return self.state / "ns" / kind

    @property
    def holder(self) -> Path:
        """There from before a holder is started: one may run that the record does not name yet."""
        return self.state / "holder"

    @property
    def etc(self) -> Path:
        """The files that containers see in /etc."""
        return self.state / "etc"

    @property
    def shm(self) -> Path:
        """The pod's /dev/shm."""
        return self.state / "shm"

    @property
    def cpu_ledger(self) -> Path:
        """Where processor time is accounted for, if the kernel does not count for the pod."""
        return self.state / "cpu.ledger"

    @property
    def record(self) -> Path:
        """The file of :class:`PodState`."""
        return self.state / "pod.json"

    def container(self, container_id: str) -> ContainerPaths:
        """The directories of a container of the pod."""
        return ContainerPaths(
            bundle=self.state / "c" / container_id,
            rootfs=self.root / container_id,
            exit_file=self.state / "exits" / container_id,
        )

    def containers(self) -> list[str]:
        """Ids of the containers that have a directory of either kind."""
        found: set[str] = set()
        for directory in (self.state / "c", self.root):
            if directory.is_dir():
                found |= {path.name for path in directory.iterdir()}
        return sorted(found)

    def close(self, group: int | None) -> None:
        """Make the pod's directories, which root alone may enter. Idempotent. Raises OSError.

        ``group`` is that of the root user of the pod's user namespace: it must pass through to its file
        system.
        """
        for path in (self.state, self.root, self.state / "c"):
            privacy.make_private(path, group=group)

    def create(self, group: int | None) -> None:
        """Make all directories of the pod, as :meth:`close` does. Raises OSError."""
        self.close(group)
        for path in (self.state / "ns", self.etc, self.shm, self.state / "exits"):
            path.mkdir(mode=0o755, exist_ok=True)

    def remove(self) -> None:
        """Remove both directories; nothing may be mounted in them any more. Idempotent. Raises OSError."""
        for path in (self.root, self.state):
            remove_tree(path)


@dataclass(frozen=True)
class Layout:
    """All pods of the handler."""

    state: Path
    root: Path

    def pod(self, pod_id: str) -> PodPaths:
        """The directories of a pod. Raises InvalidArgument for what is no id."""
        if not pod_id or "/" in pod_id or pod_id.startswith("."):
            raise InvalidArgument(f"{pod_id[:80]!r} is no pod id")
        return PodPaths(self.state / pod_id, self.root / pod_id)

    @property
    def pause(self) -> Path:
        """The program that a shared PID namespace begins with, by the name that users know."""
        return self.state / "pause"

    def close(self) -> None:
        """Make the directories of all pods, and close what an earlier version left open. Raises OSError."""
        for path in (self.state, self.root):
            path.mkdir(mode=privacy.PASSABLE, parents=True, exist_ok=True)
            path.chmod(privacy.PASSABLE)
            privacy.close_all(path)

    def pods(self) -> list[str]:
        """Ids of all pods that have a directory of either kind."""
        found: set[str] = set()
        for directory in (self.state, self.root):
            if directory.is_dir():
                found |= {path.name for path in directory.iterdir() if path.is_dir()}
        return sorted(found)


def save(path: Path, value: Value) -> None:
    """Replace a record. Raises OSError."""
    files.save(path, msgspec.json.encode(value))


def load_pod(path: Path) -> PodState | None:
    """A pod's record, or None when there is none that makes sense. Raises OSError."""
    return _load(path, PodState)


def load_container(path: Path) -> ContainerProcesses | None:
    """A container's record, or None when there is none that makes sense. Raises OSError."""
    return _load(path, ContainerProcesses)


def load_document(path: Path) -> dict[str, Any] | None:
    """A container's OCI document, or None when there is none that makes sense. Raises OSError."""
    return _load(path, dict[str, Any])


def _load(path: Path, kind: type[T]) -> T | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, *UNREADABLE):
        # What cannot be read just now is another matter: it may be of something that runs.
        return None
