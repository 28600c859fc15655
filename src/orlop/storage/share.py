"""Volumes from the host, as bind mounts below the one directory that a VM shares with the host.

Whoever has taken a hypervisor over may write wherever that directory is writable to it, so nothing in it is
believed: mount points are made here and nothing there is followed. Names come from the caller alone. A jail
shows the directory read-only, so that a guest can fill its volumes but not the host's /run.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound, OrlopError, PermissionDenied
from orlop.host import filesizes, mounts, threads
from orlop.storage import overlays
from orlop.storage.following import Following

log = logging.getLogger(__name__)

_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,200}")
_CANNOT_MAP = "its file system cannot map users (tmpfs can from Linux 6.3 on)"
_PROPAGATION: dict[str, mounts.Propagation] = {"private": "private", "rslave": "rslave"}


class HostMount(Protocol):
    """What is asked for; see ``Mount`` in the values of the sandbox room."""

    @property
    def host_path(self) -> str:
        """An absolute path on the host; a symbolic link is followed."""

    @property
    def read_only(self) -> bool:
        """Whether the mount itself is read-only."""

    @property
    def recursive_read_only(self) -> bool:
        """Whether all mounts below it are, too."""

    @property
    def propagation(self) -> str:
        """ "private", or "rslave": mounts made later on the host below ``host_path`` appear."""


class Share:
    """The volumes below ``directory``. All methods may be repeated, also by a later daemon.

    With ``process`` the volumes are mounted in that process' mount namespace alone, and end with it: what
    the host unmounts and removes is not held by them. A process in a jail has the directory at ``inside``,
    and its own users: files belong to the same ids in its user namespace, where the file system can do that.
    Where it cannot, they belong to nobody, or with ``only_mapped`` the volume is refused. A process that has
    got a writable volume may make files of any size.
    """

    def __init__(
        self, directory: Path, *, process: int = 0, inside: Path | None = None, only_mapped: bool = False
    ) -> None:
        self._directory = directory
        self._process = process
        self._inside = inside or directory
        self._userns = Path(f"/proc/{process}/ns/user") if inside else None
        self._only_mapped = only_mapped
        self._unmapped: dict[str, str] = {}
        self._anew: set[str] = set()
        self._following = Following(process, self._inside) if inside else None
        self._namespace = Path(f"/proc/{process}/ns/mnt") if process else None
        self._mountinfo = Path(f"/proc/{process}/mountinfo") if process else mounts.MOUNTINFO

    def make_point(self, name: str) -> Path:
        """An empty directory ``name`` in the share that is no volume; returns where it is. Idempotent."""
        _check_key(name)
        (self._directory / name).mkdir(mode=0o755, exist_ok=True)
        return self._directory / name

    async def add(
        self, mount: HostMount, key: str, *, userns: Path | None = None, overlay_owner: int = 0
    ) -> str:
        """Show a path of the host as ``key``; returns its path relative to the share's directory.

        With ``userns`` its files belong to the same users inside that user namespace. With
        ``overlay_owner``, who is root there, it may be the root of an overlay that is this volume's alone,
        which is put together anew with mapped users.

        Raises NotFound when the path does not exist (CRI: a missing host path is an error),
        FailedPrecondition for a propagation that cannot cross into a VM or a kernel that cannot make
        mounts recursively read-only.
        """
        _check_key(key)
        await threads.call(self._add, mount, key, userns, overlay_owner)
        if userns is None:
            self.follow(mount, key)
        return key

    def follow(self, mount: HostMount, key: str) -> None:
        """Let what the host mounts below the volume ``key`` from now on be its users' too, if that is asked
        for. :meth:`add` and :meth:`adopt` do it."""
        if self._following is not None and mount.propagation == "rslave" and mount.host_path:
            self._following.follow(key, mount.host_path)

    def adopt(self, mount: HostMount, key: str) -> None:
        """Take over the volume ``key`` that an earlier daemon added."""
        self.follow(mount, key)
        if self._userns is not None and mount.host_path:
            with suppress(OSError):  # the process has ended, and its mounts with it
                if mounts.is_mapped(self._inside / key, self._mountinfo) is False:
                    self._unmapped[key] = mount.host_path

    def is_own(self, key: str) -> bool:
        """Whether :meth:`add` has put ``key`` together anew: nobody else has that mount."""
        return key in self._anew

    @property
    def unmapped(self) -> list[str]:
        """The volumes, by their host paths, whose files belong to nobody in the process' user namespace."""
        return sorted(set(self._unmapped.values()))

    async def close(self) -> None:
        """Let go of the volumes, which stay. Idempotent."""
        if self._following is not None:
            await self._following.close()

    async def remove(self, key: str) -> None:
        """Take a volume away. Idempotent; what the host has below the path is never touched."""
        _check_key(key)
        if self._following is not None:
            self._following.forget(key)
        self._unmapped.pop(key, None)
        self._anew.discard(key)
        await threads.call(self._remove, key)

    async def release_all(self) -> None:
        """Take all volumes away. Idempotent."""
        await self.close()
        await threads.call(self._release_all)

    def _add(self, mount: HostMount, key: str, userns: Path | None, owner: int) -> None:
        source, target = mount.host_path, self._inside / key
        propagation = _PROPAGATION.get(str(mount.propagation))
        if propagation is None:
            raise FailedPrecondition(
                f"volume {source}: mounts made in a VM cannot appear on the host "
                f"(propagation {mount.propagation})"
            )
        if self._is_mounted(target):
            return
        try:
            directory = stat.S_ISDIR(Path(source).stat().st_mode)
        except OSError as error:
            raise _unusable(source, error) from error
        self._directory.mkdir(mode=0o755, parents=True, exist_ok=True)
        self._remove(key)
        if self._process and _is_writable(mount):
            filesizes.unbound(self._process)
        try:
            _make_point(self._directory / key, directory=directory)
            found = overlays.find(Path(source)) if owner and self._userns is not None else None
            if found is not None and self._bind_anew(mount, found, target, owner):
                self._anew.add(key)
                return
            if not self._bind(mount, target, propagation, userns):
                self._unmapped[key] = source
        except OSError as error:
            self._remove(key)
            raise _unusable(source, error) from error
        except FailedPrecondition:
            self._remove(key)
            raise

    def _bind_anew(self, mount: HostMount, overlay: overlays.Overlay, target: Path, owner: int) -> bool:
        """Whether the overlay could be put together with the users of the process."""
        assert self._userns is not None
        place = self._directory.parent / f"{target.name}.overlay"
        try:
            with overlays.anew(overlay, place, self._userns, owner) as made:
                mounts.bind(made, target, read_only=mount.read_only, namespace=self._namespace)
        except OSError as error:
            log.warning("volume %s cannot be put together anew: %s", mount.host_path, error)
            return False
        return True

    def _bind(
        self, mount: HostMount, target: Path, propagation: mounts.Propagation, userns: Path | None
    ) -> bool:
        """Whether its users are mapped, if the process has users of its own."""

        def bind(users: Path | None) -> None:
            # The target's last component is not followed, were the guest to put a link there just now.
            mounts.bind(
                mount.host_path,
                target,
                read_only=mount.read_only,
                recursive=True,
                recursive_read_only=mount.recursive_read_only,
                propagation=propagation,
                userns=users,
                namespace=self._namespace,
            )

        try:
            bind(userns or self._userns)
        except OSError as error:
            if userns is not None or self._userns is None or error.errno != errno.EINVAL:
                raise
            if self._only_mapped:
                raise FailedPrecondition(
                    f"volume {mount.host_path}: {_CANNOT_MAP}, and vm.unmapped_volumes refuses such volumes"
                ) from error
            # The process has no rights over the host's users, and gets none for it.
            log.warning(
                "volume %s: %s: the VM sees nobody as the owner of its files, and may do what all may",
                mount.host_path,
                _CANNOT_MAP,
            )
            bind(None)
            return False
        return True

    def _is_mounted(self, target: Path) -> bool:
        try:
            return mounts.is_mounted(target, self._mountinfo)
        except OSError:  # the process has ended, and its mounts with it
            return False

    def _remove(self, key: str) -> None:
        target = self._inside / key
        if self._is_mounted(target):
            with suppress(FileNotFoundError):  # the process has just ended, and its mounts with it
                mounts.inside(self._namespace, lambda: mounts.unmount(target))
        _remove_point(self._directory / key)

    def _release_all(self) -> None:
        mounts.unmount_below(self._directory)
        with suppress(FileNotFoundError):
            # Only empty mount points go. Were a mount still there, rmdir and unlink would refuse.
            for path in list(self._directory.iterdir()):
                _remove_point(path)


def _is_writable(mount: HostMount) -> bool:
    """Whether something may be written to it, or to a mount below it that there is or may come."""
    if not mount.read_only:
        return True
    if mount.recursive_read_only:
        return False
    place = os.path.realpath(mount.host_path)
    return mount.propagation == "rslave" or any(
        os.fspath(point) != place for point in mounts.mounts_below(place)
    )


def _make_point(target: Path, *, directory: bool) -> None:
    if directory:
        target.mkdir(mode=0o700)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))


def _remove_point(target: Path) -> None:
    try:
        if stat.S_ISDIR(target.lstat().st_mode):
            target.rmdir()
        else:
            target.unlink()
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EBUSY):
            raise


def _check_key(key: str) -> None:
    if not _KEY.fullmatch(key):
        raise InvalidArgument(f"{key!r} cannot be the name of a volume")


def _unusable(source: str, error: OSError) -> OrlopError:
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return NotFound(f"volume {source}: no such path on the host")
    if error.errno in (errno.EACCES, errno.EPERM):
        return PermissionDenied(f"volume {source}: {error.strerror}")
    return FailedPrecondition(f"volume {source} cannot be mounted: {error.strerror}")
