"""Root file systems on the host, for pods that run without a VM: EROFS layers under an overlay.

The layers are mounted only while the overlay is put together; it keeps them alive by itself, so that a
container has one mount, and one unmount takes all of it away. The size of the writable layer is not
limited here: overlayfs has no quota of its own, and the file system below may have none either.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Protocol

import msgspec

from orlop.errors import FailedPrecondition, InvalidArgument, NotFound
from orlop.host import mounts, process, threads
from orlop.linux import space
from orlop.linux import syscalls as sys
from orlop.linux.removal import remove_tree

MAX_LINKS = 40

_BELOW = "layers"


class Mapping(Protocol):
    """One range of a user namespace."""

    @property
    def container_id(self) -> int:
        """The first id inside."""

    @property
    def host_id(self) -> int:
        """The first id outside."""

    @property
    def length(self) -> int:
        """How many ids follow one another."""


class Owners(msgspec.Struct, frozen=True):
    """Whose the files are, for a container in a user namespace: its file, and its root seen from outside."""

    userns: Path
    uid: int
    gid: int


def owners(userns: Path, uid_mappings: Sequence[Mapping], gid_mappings: Sequence[Mapping]) -> Owners:
    """The owners for a user namespace with those mappings. Raises InvalidArgument when root is not mapped."""
    return Owners(userns, _root(uid_mappings), _root(gid_mappings))


def _root(mappings: Sequence[Mapping]) -> int:
    for mapping in mappings:
        if mapping.container_id == 0 and mapping.length > 0:
            return mapping.host_id
    raise InvalidArgument("the user namespace does not map root")


async def mount_rootfs(layers: Sequence[str], directory: Path, *, owned_by: Owners | None = None) -> Path:
    """A writable root file system of ``layers``, bottom first, at ``directory/rootfs``. Idempotent.

    What is written stands in ``directory/upper``; of an earlier boot nothing is kept. With ``owned_by``
    the files of the image belong to the same users inside that user namespace (Linux 5.19). Raises
    NotFound for a layer that is gone, FailedPrecondition when the kernel cannot mount them.
    """
    return await _mount(layers, directory, writable=True, owned_by=owned_by)


async def find_directory(directory: str) -> Path:
    """A directory of the host that is a root file system as it is, links in its path followed.

    Raises NotFound when there is none, FailedPrecondition when it is something else.
    """
    return await threads.call(_find_directory, directory)


async def mount_image(
    layers: Sequence[str], directory: Path, sub_path: str = "", *, owned_by: Owners | None = None
) -> Path:
    """An image as a read-only volume; returns the path of ``sub_path`` in it. Idempotent.

    Symbolic links on the way are followed inside the image only. Raises NotFound when there is no
    such path, InvalidArgument when it leads out of the image.
    """
    root = await _mount(layers, directory, writable=False, owned_by=owned_by)
    return await threads.call(resolve_in, root, sub_path)


async def unmount_rootfs(directory: Path) -> None:
    """Undo either of the above and remove ``directory`` with all that was written. Idempotent."""
    await threads.call(_unmount, directory)


def usage(directory: Path) -> tuple[int, int]:
    """Bytes and inodes that a container has written. Takes the longer the more they are: for a thread."""
    return space.taken(os.fspath(directory / "upper"))


async def _mount(layers: Sequence[str], directory: Path, *, writable: bool, owned_by: Owners | None) -> Path:
    target = directory / "rootfs"
    if not layers:
        raise InvalidArgument(f"{directory} is to be mounted without layers")
    if await threads.call(mounts.is_mounted, target):
        return target
    await threads.call(_unmount, directory)
    points = [directory / _BELOW / str(number) for number in range(len(layers))]
    try:
        for path in (target, *points, *((directory / "upper", directory / "work") if writable else ())):
            path.mkdir(parents=True, exist_ok=True)
        for layer, point in zip(layers, points, strict=True):
            await _mount_layer(layer, point)
            if owned_by is not None:
                await threads.call(_map_owners, point, owned_by.userns)
        if writable:
            await threads.call(_prepare_upper, points[-1], directory, owned_by)
        await threads.call(_overlay, points, directory, target, writable)
    except OSError as error:
        raise FailedPrecondition(f"the layers for {directory} cannot be mounted: {error.strerror}") from error
    finally:
        await threads.call(_drop_points, points)
    return target


async def _mount_layer(layer: str, point: Path) -> None:
    if not await threads.call(Path(layer).exists):
        raise NotFound(f"the layer {layer} is gone; pull the image again")
    try:
        await threads.call(mounts.mount, layer, point, "erofs", flags=sys.MS_RDONLY)
    except OSError as error:
        if error.errno not in (errno.ENOTBLK, errno.EINVAL, errno.EACCES):
            raise
        # A kernel before 6.12 mounts no plain files: through a loop device then, which mount(8) sets up.
        await process.run(["mount", "-t", "erofs", "-o", "loop,ro", layer, point])


def _find_directory(directory: str) -> Path:
    try:
        found = Path(directory).resolve(strict=True)
    except FileNotFoundError as error:
        raise NotFound(f"the root directory {directory} does not exist") from error
    except (OSError, RuntimeError) as error:
        raise FailedPrecondition(f"the root directory {directory} cannot be used: {error}") from error
    if not found.is_dir():
        raise FailedPrecondition(f"the root {directory} is no directory")
    return found


def _map_owners(point: Path, userns: Path) -> None:
    """Cover a layer's mount with one of itself whose owners are those of the user namespace."""
    with ExitStack() as stack:
        namespace = os.open(userns, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, namespace)
        tree = sys.open_tree(point, recursive=False)
        stack.callback(os.close, tree)
        sys.mount_setattr(tree, add=sys.MOUNT_ATTR_IDMAP, userns=namespace)
        sys.move_mount(tree, point)


def _prepare_upper(top: Path, directory: Path, owned_by: Owners | None) -> None:
    """The root is of the mode and owner that the image's topmost layer says."""
    if owned_by is not None:
        os.chown(directory / "work", owned_by.uid, owned_by.gid)
    found = top.stat()
    os.chown(directory / "upper", found.st_uid, found.st_gid)
    (directory / "upper").chmod(stat.S_IMODE(found.st_mode))


def _overlay(points: Sequence[Path], directory: Path, target: Path, writable: bool) -> None:
    if len(points) == 1 and not writable:
        mounts.bind(points[0], target, read_only=True)
        return
    with ExitStack() as stack:

        def short(path: Path) -> str:
            # A mount's options must fit one page, and a path may hold the separators ',' and ':'.
            descriptor = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            stack.callback(os.close, descriptor)
            return f"/proc/self/fd/{descriptor}"

        # Overlayfs counts from the top.
        options = "lowerdir=" + ":".join(short(point) for point in reversed(points))
        if writable:
            # Nothing written here outlives the container: spare it and its end the syncs of the disk.
            options += f",upperdir={short(directory / 'upper')},workdir={short(directory / 'work')},volatile"
        mounts.mount("overlay", target, "overlay", flags=0 if writable else sys.MS_RDONLY, options=options)


def _drop_points(points: Sequence[Path]) -> None:
    for point in points:
        mounts.unmount(point)
        with suppress(FileNotFoundError):
            point.rmdir()
    if points:
        with suppress(OSError):
            points[0].parent.rmdir()


def _unmount(directory: Path) -> None:
    mounts.unmount_below(directory)
    remove_tree(directory)


def resolve_in(root: Path, path: str) -> Path:
    """Follow ``path`` below ``root``, symbolic links included, as if ``root`` were the root directory."""
    parts: list[str] = []
    todo = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    if ".." in todo:
        raise InvalidArgument(f"the path {path!r} in an image leads out of it")
    links = 0
    while todo:
        part = todo.pop()
        if part == "..":
            parts = parts[:-1]
            continue
        here = root.joinpath(*parts, part)
        try:
            found = here.lstat()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(f"the image has no {path!r}") from error
        if not stat.S_ISLNK(found.st_mode):
            parts.append(part)
            continue
        links += 1
        if links > MAX_LINKS:
            raise InvalidArgument(f"the path {path!r} in an image leads through too many symbolic links")
        link = os.fspath(here.readlink())
        if link.startswith("/"):
            parts = []
        todo.extend(p for p in reversed(link.split("/")) if p not in ("", "."))
    return root.joinpath(*parts)
