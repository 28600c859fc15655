"""The root file system of a task, put together of the mounts that containerd's snapshotter names.

They are mounted at the bundle's ``rootfs``, as every shim does. Each is one of a few kinds with a few
options: what containerd was told by others is not handed to mount(2) unread.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Sequence
from pathlib import Path

from orlop.errors import FailedPrecondition, InvalidArgument, of_system
from orlop.host import mounts
from orlop.linux import syscalls as sys
from orlop.value import Value

_FLAGS = {
    "ro": sys.MS_RDONLY,
    "nodev": sys.MS_NODEV,
    "noexec": sys.MS_NOEXEC,
    "nosuid": sys.MS_NOSUID,
    "bind": sys.MS_BIND,
    "rbind": sys.MS_BIND | sys.MS_REC,
    "rw": 0,
    "async": 0,
    "relatime": 0,
    "rprivate": 0,
}
_OVERLAY = re.compile(r"index=(?:on|off)|metacopy=(?:on|off)|redirect_dir=\w+|xino=\w+|userxattr|volatile")
_DIRECTORIES = ("lowerdir", "upperdir", "workdir")
_DISKS = ("erofs", "ext4", "squashfs", "xfs")
_MOST = 8
_MOST_OPTIONS = 64
_LONGEST = 1 << 16


class RootMount(Value, frozen=True):
    """A mount as containerd has it."""

    kind: str
    source: str
    options: tuple[str, ...] = ()


def check(asked: Sequence[RootMount]) -> None:
    """Raise InvalidArgument, or FailedPrecondition for what cannot be mounted here."""
    if len(asked) > _MOST:
        raise InvalidArgument(f"a root file system of {len(asked)} mounts; {_MOST} are the most")
    for mount in asked:
        _prepared(mount)


def mount(asked: Sequence[RootMount], target: Path) -> None:
    """Mount them, one above the other. Blocks; a failure leaves nothing mounted. Raises OrlopError."""
    try:
        for one in asked:
            flags, options = _prepared(one)
            _mount(one, target, flags, options)
    except BaseException:
        mounts.unmount(target)
        raise


def unmount(target: str) -> None:
    """Take all of them away. Blocks. Idempotent. Raises OSError."""
    mounts.unmount(target)


def _prepared(mount: RootMount) -> tuple[int, str]:
    """Flags and text for mount(2)."""
    what = f"the root's mount of type {mount.kind[:40]!r}"
    if len(mount.options) > _MOST_OPTIONS or sum(map(len, mount.options)) > _LONGEST:
        raise InvalidArgument(f"{what} has too many options")
    bind = mount.kind in ("bind", "rbind") or {"bind", "rbind"} & set(mount.options)
    if not bind and mount.kind not in ("overlay", *_DISKS):
        raise FailedPrecondition(
            f"{what} is not known; use a snapshotter whose mounts are overlay, bind or {', '.join(_DISKS)}"
        )
    flags, words = sys.MS_BIND if bind else 0, []
    for option in mount.options:
        name, sign, value = option.partition("=")
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif mount.kind == "overlay" and name in _DIRECTORIES and sign:
            words.append(f"{name}={_directories(what, value, several=name == 'lowerdir')}")
        elif mount.kind == "overlay" and _OVERLAY.fullmatch(option):
            words.append(option)
        else:
            raise InvalidArgument(f"{what} has the option {option[:80]!r}, which is not known")
    if mount.kind != "overlay":
        _absolute(what, mount.source)
    elif not any(word.startswith("lowerdir=") for word in words):
        raise InvalidArgument(f"{what} has no lowerdir")
    return flags, ",".join(words)


def _directories(what: str, value: str, *, several: bool) -> str:
    for path in value.split(":") if several else [value]:
        _absolute(what, path)
    return value


def _absolute(what: str, path: str) -> None:
    strange = {"\0", ","} & set(path) or ".." in path.split("/")
    if not posixpath.isabs(path) or strange or len(path) > _LONGEST:
        raise InvalidArgument(f"{what} names {path[:200]!r}, which is not an absolute path")


def _mount(one: RootMount, target: Path, flags: int, options: str) -> None:
    try:
        if flags & sys.MS_BIND:
            mounts.bind(
                one.source, target, read_only=bool(flags & sys.MS_RDONLY), recursive=bool(flags & sys.MS_REC)
            )
        elif one.kind == "overlay":
            _overlay(target, flags, options)
        else:
            mounts.mount(one.source, target, one.kind, flags=flags)
    except OSError as error:
        raise of_system(
            error, f"the root file system of type {one.kind} cannot be mounted: {error.strerror}"
        ) from error


def _overlay(target: Path, flags: int, options: str) -> None:
    """An overlay. The paths of many layers may be too long together: then they are relative ones."""
    if len(os.fsencode(options)) < os.sysconf("SC_PAGE_SIZE"):
        mounts.mount("overlay", target, "overlay", flags=flags, options=options)
        return
    words = dict(option.partition("=")[::2] for option in options.split(","))
    layers = words["lowerdir"].split(":")
    base = os.path.commonpath(layers)
    words["lowerdir"] = ":".join(os.path.relpath(layer, base) for layer in layers)
    short = ",".join(f"{name}={value}" if value else name for name, value in words.items())
    mounts.mount_in(base, "overlay", target, "overlay", flags=flags, options=short)
