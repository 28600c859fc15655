"""A pod's directory as a kubelet makes it: where its volumes are, and how it changes them.

The layout and the order of steps are those of the kubelet's volume plug-ins (empty_dir, configmap, secret,
projected, downwardapi), its AtomicWriter and its subpath helper.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from orlop.host import mounts
from tests.conformance import tools

JUDGE = Path(__file__).with_name("judge.c")


def judge() -> Path:
    """The program that tries what a file system is asked for."""
    return tools.compile_c("judge", JUDGE.read_text())


def verdicts(text: str) -> dict[str, str]:
    """What ``judge try`` found, by trial."""
    return dict(line.split("\t", 1) for line in text.splitlines())


class PodDirectory:
    """``<kubelet>/pods/<uid>``."""

    def __init__(self, kubelet: Path, uid: str) -> None:
        self.path = kubelet / "pods" / uid
        self.path.mkdir(parents=True, mode=0o750)
        self._mounted: list[Path] = []

    def empty_dir(self, name: str, *, memory: int = 0, mode: int = 0o777, group: int = 0) -> Path:
        """An emptyDir; with ``memory`` of medium Memory, of so many bytes."""
        path = self.path / "volumes/kubernetes.io~empty-dir" / name
        path.mkdir(parents=True)
        if memory:
            self.in_memory(path, memory)
        path.chmod(mode)
        os.chown(path, 0, group)
        path.chmod(mode)
        return path

    def csi(self, name: str) -> Path:
        """Where a CSI driver has made nothing but the directory."""
        path = self.path / "volumes/kubernetes.io~csi" / name / "mount"
        path.mkdir(parents=True)
        return path

    def in_memory(self, path: Path, size: int = 1 << 20) -> Path:
        """The same directory with a tmpfs of so many bytes mounted on it."""
        mounts.mount("tmpfs", path, "tmpfs", options=f"size={size}")
        self._mounted.append(path)
        return path

    def show(self, source: Path, path: Path) -> None:
        """Bind a directory to another one, which is made."""
        path.mkdir()
        mounts.bind(source, path)
        self._mounted.append(path)

    def atomic(
        self, kind: str, name: str, files: Mapping[str, bytes], *, mode: int = 0o644, group: int = 0
    ) -> Path:
        """A volume of the plug-in ``kind`` ("configmap") with this content: made, or changed."""
        path = self.path / f"volumes/kubernetes.io~{kind}" / name
        path.mkdir(parents=True, exist_ok=True)
        return self.swap(path, files, mode=mode, group=group)

    @staticmethod
    def swap(path: Path, files: Mapping[str, bytes], *, mode: int = 0o644, group: int = 0) -> Path:
        """Have this content in the volume ``path``, all of it at once."""
        path.chmod(0o777)
        stamp = f"..2026_11_21_10_00_00.{secrets.randbelow(10**9)}"
        directory = path / stamp
        directory.mkdir(mode=0o755)
        for name_, content in files.items():
            file = directory / name_
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(content)
            os.chown(file, 0, group)
            file.chmod(mode)
        before = path / "..data"
        old = os.fspath(before.readlink()) if before.is_symlink() else ""
        stale = {one.name for one in path.iterdir() if not one.name.startswith("..")}
        (path / "..data_tmp").symlink_to(stamp)
        (path / "..data_tmp").rename(before)
        wanted = {name_.split("/", 1)[0] for name_ in files}
        for one in wanted - stale:
            (path / one).symlink_to(f"..data/{one}")
        for one in stale - wanted:
            (path / one).unlink()
        if old:
            _remove(path / old)
        return path

    def etc_hosts(self, text: str = "127.0.0.1\tlocalhost\n") -> Path:
        """The file that goes to /etc/hosts."""
        path = self.path / "etc-hosts"
        path.write_text(text)
        return path

    def termination_log(self, container: str) -> Path:
        """The empty file that the kubelet reads after the container's end."""
        path = self.path / "containers" / container / secrets.token_hex(4)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        path.chmod(0o666)
        return path

    def sub_path(self, volume: Path, container: str, index: int, below: str) -> Path:
        """``below`` of a volume, made if it is missing, as the kubelet gives it to a container."""
        source = volume / below
        if not source.exists():
            source.mkdir(parents=True)
            source.chmod(volume.stat().st_mode & 0o7777)
        path = self.path / "volume-subpaths" / volume.name / container / str(index)
        path.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            path.mkdir()
        else:
            path.touch()
        mounts.bind(source, path)
        self._mounted.append(path)
        return path

    def close(self) -> None:
        """Take away what was mounted."""
        while self._mounted:
            mounts.unmount(self._mounted.pop())


@contextmanager
def pod_directory(kubelet: Path, uid: str) -> Iterator[PodDirectory]:
    """One that leaves no mount behind."""
    directory = PodDirectory(kubelet, uid)
    try:
        yield directory
    finally:
        directory.close()


def _remove(directory: Path) -> None:
    for path in sorted(directory.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    directory.rmdir()
