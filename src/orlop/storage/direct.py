"""File systems on block devices that a CSI driver hands over whole, to be mounted in the guest.

The form is the one in which drivers do that for Kata Containers ("direct-assigned volumes"): instead of
mounting anything at the volume's path, the driver writes down what is to be mounted, in
``<top>/<base64url of the path>/mountInfo.json``. Only root may have written that, for it names a device.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from orlop.errors import FailedPrecondition, NotFound
from orlop.host import blockdevices, mounts
from orlop.linux import syscalls
from orlop.value import UNREADABLE, Value

Kind = Literal["ext4", "ext3", "ext2", "xfs"]

_INFO = "mountInfo.json"
_MOST_BYTES = 64 << 10
_MOST_OPTIONS = 32
_KINDS: tuple[Kind, ...] = get_args(Kind)
_TYPES = ("", "block", "directvol")
_POLICIES = {"": False, "Always": False, "OnRootMismatch": True}
_OPTION = re.compile(r"[a-z][a-z0-9_-]{0,31}(=[A-Za-z0-9_.:+-]{1,64})?")
# A driver has them for a mount of its own on the host.
_OF_THE_HOST = frozenset({"bind", "rbind", "rw", "defaults"})
_SUB_PATHS = "volume-subpaths/"
_VOLUMES = "kubernetes.io~csi/*/mount"
_NONE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)


class DirectVolume(Value, frozen=True):
    """A volume that is a device with a file system. ``path`` is the volume's, ``device`` is where the device
    is, without links, or with ``plain`` the file.

    All in it is to be of ``group``, unless ``only_root`` and its root is; -1 leaves it as it is.
    """

    path: str
    device: str
    plain: bool = False
    kind: Kind = "ext4"
    options: tuple[str, ...] = ()
    read_only: bool = False
    group: int = -1
    only_root: bool = False


def find(path: str, uid: str, top: str) -> tuple[DirectVolume, str] | None:
    """The volume that a mount of ``path`` by the pod ``uid`` shows, and which directory below its root; None
    for any other path. ``top`` is where drivers write, "" for nowhere.

    Looks at the host. Raises FailedPrecondition for one that cannot be had so, NotFound without its device.
    """
    if not top:
        return None
    if (said := _said(path, top)) is not None:
        return _volume(path, said), ""
    pod, found, inside = path.rpartition(f"/pods/{uid}/") if uid else ("", "", "")
    if not found or not inside.startswith(_SUB_PATHS):
        return None
    here = mounts.root_of(path)
    for whole in Path(f"{pod}{found}volumes").glob(_VOLUMES):
        there = mounts.root_of(whole)
        if here[0] == there[0] and Path(here[1]).is_relative_to(there[1]):
            said = _said(os.fspath(whole), top)
            if said is not None:
                return _volume(os.fspath(whole), said), os.path.relpath(here[1], there[1])
    return None


def check_not_direct(path: str, uid: str, top: str) -> None:
    """Refuse what only a VM can use: nothing is mounted there. Raises FailedPrecondition, NotFound."""
    if find(path, uid, top) is not None:
        raise FailedPrecondition(
            f"volume {path} is a device that its CSI driver gives to a VM to mount: "
            "its pod needs the handler vm"
        )


def _said(path: str, top: str) -> dict[str, Any] | None:
    """What a driver has written down of a volume, None when it has not."""
    name = base64.urlsafe_b64encode(os.fsencode(path)).decode()
    try:
        data = _read(f"{top}/{name}")
        said = None if data is None else msgspec.json.decode(data, type=dict[str, Any])
    except OSError as error:
        if error.errno in _NONE:
            return None
        raise FailedPrecondition(f"volume {path}: its {_INFO} cannot be read: {error.strerror}") from error
    except (*UNREADABLE, FailedPrecondition) as error:
        raise FailedPrecondition(f"volume {path}: its {_INFO} {error}") from error
    # The parser of those who made the form does not look at the case of keys.
    return None if said is None else {key.lower(): value for key, value in said.items()}


def _read(place: str) -> bytes | None:
    directory = syscalls.open_without_links(place, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file = os.open(_INFO, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            for one in (directory, file):
                found = os.fstat(one)
                if found.st_uid != os.geteuid() or found.st_mode & 0o022:
                    raise FailedPrecondition("may have been written by somebody else than root")
            if not stat.S_ISREG(found.st_mode) or found.st_size > _MOST_BYTES:
                raise FailedPrecondition(f"is not a file of at most {_MOST_BYTES >> 10} KiB")
            return os.read(file, _MOST_BYTES)
        finally:
            os.close(file)
    finally:
        os.close(directory)


def _volume(path: str, said: dict[str, Any]) -> DirectVolume:
    def word(key: str) -> str:
        value = said.get(key) or ""
        if not isinstance(value, str):
            raise FailedPrecondition(f"volume {path}: the {key} in its {_INFO} is not text")
        return value

    kind, volume_type = word("fstype") or _KINDS[0], word("volume-type")
    if volume_type not in _TYPES:
        raise FailedPrecondition(f"volume {path} is of the type {volume_type[:40]!r}; VMs have block devices")
    if kind not in _KINDS:
        raise FailedPrecondition(
            f"volume {path} has the file system {kind[:40]!r}; VMs mount {', '.join(_KINDS)}"
        )
    options = _options(path, said.get("options") or [])
    group, only_root = _group(path, said.get("metadata") or {})
    device, plain, fixed = _device(path, word("device"))
    return DirectVolume(
        path=path,
        device=device,
        plain=plain,
        kind=kind,
        options=tuple(one for one in options if one != "ro"),
        read_only=fixed or "ro" in options,
        group=group,
        only_root=only_root,
    )


def _options(path: str, said: Any) -> tuple[str, ...]:
    if not isinstance(said, list) or len(said) > _MOST_OPTIONS:
        raise FailedPrecondition(
            f"volume {path}: the options in its {_INFO} are not a list of at most {_MOST_OPTIONS}"
        )
    for one in said:
        if not isinstance(one, str) or not _OPTION.fullmatch(one):
            raise FailedPrecondition(f"volume {path}: {str(one)[:40]!r} is not an option to mount it with")
    return tuple(one for one in dict.fromkeys(said) if one not in _OF_THE_HOST)


def _group(path: str, metadata: Any) -> tuple[int, bool]:
    """The group that is to own what is in the volume, and whether only if it does not own the root yet."""
    if not isinstance(metadata, dict):
        raise FailedPrecondition(f"volume {path}: the metadata in its {_INFO} is no object")
    for key in ("encryptionKey", "createFilesystem"):
        if metadata.get(key):
            raise FailedPrecondition(
                f"volume {path} asks for {key}, which its VM does not do; leave that to the driver"
            )
    policy = metadata.get("fsGroupChangePolicy") or ""
    if policy not in _POLICIES:
        raise FailedPrecondition(f"volume {path}: {str(policy)[:40]!r} is not a policy for fsGroup")
    group = str(metadata.get("fsGroup") or "")
    if not group:
        return -1, False
    if not group.isdecimal() or not int(group) < (1 << 32) - 1:
        raise FailedPrecondition(f"volume {path}: {group[:40]!r} is not the number of a group")
    return int(group), _POLICIES[policy]


def _device(path: str, device: str) -> tuple[str, bool, bool]:
    """Where it really is, whether it is a plain file, and whether it can only be read.

    The name of a device often is a link that udev made, to where it is now. A file's must not be one."""
    if not device.startswith("/") or "\0" in device:
        raise FailedPrecondition(f"volume {path} names no device by an absolute path")
    try:
        found = blockdevices.look(device)
        if found is not None:
            return os.path.realpath(device), False, found.read_only
        status = Path(device).lstat()
    except OSError as error:
        kind = NotFound if isinstance(error, FileNotFoundError) else FailedPrecondition
        raise kind(f"volume {path}: its device {device}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode) or os.path.realpath(device) != device:
        raise FailedPrecondition(
            f"volume {path}: {device} is neither a block device nor a file without links in its path"
        )
    return device, True, False
