"""Which of a kubelet's volumes a host path is.

A kubelet keeps a pod's volumes below ``<kubelet>/pods/<uid>``, each plug-in's in a directory of its name, and
hands a subPath as a bind mount of its own. CRI says nothing of all that but the path, so the path is what
is looked at: it must name the very pod that asks. What is not recognised is a directory of the host like any
other.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Literal

from orlop.errors import FailedPrecondition
from orlop.host import mounts
from orlop.storage.share import HostMount
from orlop.value import Value

Kind = Literal["copy", "file", "log", "disk", "memory", "direct", "sockets"]

_EMPTY_DIR = "kubernetes.io~empty-dir"
_SMALL = (
    "kubernetes.io~configmap",
    "kubernetes.io~secret",
    "kubernetes.io~projected",
    "kubernetes.io~downward-api",
)
_OWN = ("disk", "memory")
_SWAPPED = "..data"
_NAME = r"[^/]+"
_VOLUME = re.compile(rf"volumes/({_NAME})/({_NAME})")
_OF_DRIVER = re.compile(rf"volumes/kubernetes\.io~csi/{_NAME}/mount")
_SUB_PATH = re.compile(rf"volume-subpaths/({_NAME})/{_NAME}/[0-9]+")
_LOG = re.compile(rf"containers/{_NAME}/[0-9a-f]+")


class KubeletVolume(Value, frozen=True):
    """A volume and what a mount shows of it: ``below`` its root.

    ``copy``: a small volume that the host alone changes. ``file``: a single file that a container may change
    for itself and its pod. ``log``: one that the kubelet reads after the container's end. ``disk`` and
    ``memory``: an emptyDir. ``direct``: a device, see :mod:`.direct`. ``sockets``: a directory for
    sockets. ``path`` is where the host has it.
    """

    kind: Kind
    path: str
    below: str = ""


def is_of_driver(path: str) -> bool:
    """Whether a path of the host is where a kubelet has a CSI driver put a volume of some pod."""
    _, found, inside = path.rpartition("/pods/")
    return bool(found) and _OF_DRIVER.fullmatch(inside.partition("/")[2]) is not None


def recognise(mount: HostMount, uid: str) -> KubeletVolume | None:
    """The volume of the pod ``uid`` that a mount shows, None for any other path of the host.

    Looks at the host; a path that is not there is not recognised. Raises FailedPrecondition for one of these
    that leads somewhere else by a symbolic link, which no kubelet makes there.
    """
    if not uid or "/" in uid:
        return None
    pod, found, inside = mount.host_path.rpartition(f"/pods/{uid}/")
    if not found:
        return None
    pod += found.rstrip("/")
    volume = _recognise(mount, pod, inside)
    real = os.path.realpath(mount.host_path)
    if volume is not None and real != f"{os.path.realpath(pod)}/{inside}":
        raise FailedPrecondition(
            f"volume {mount.host_path} is a symbolic link to {real}, and not what a kubelet makes; remove "
            "the link, or name what it leads to as a hostPath"
        )
    return volume


def _recognise(mount: HostMount, pod: str, inside: str) -> KubeletVolume | None:
    """The volume that the path ``inside`` the directory ``pod`` is."""
    try:
        mode = Path(mount.host_path).stat().st_mode
        if match := _VOLUME.fullmatch(inside):
            volume = _volume(mount, match[1], directory=stat.S_ISDIR(mode))
        elif match := _SUB_PATH.fullmatch(inside):
            volume = _sub_path(mount, Path(pod), match[1])
        elif _OF_DRIVER.fullmatch(inside):
            volume = _of_driver(mount)
        else:
            volume = None
    except OSError:
        return None
    if mount.propagation != "private":
        # What is mounted below an emptyDir the pod's own containers mount, below all else the host does.
        return volume if volume is not None and volume.kind in _OWN else None
    if volume is not None:
        return volume
    if stat.S_ISREG(mode) and not mount.read_only:
        if inside == "etc-hosts":
            return KubeletVolume(kind="file", path=mount.host_path)
        if _LOG.fullmatch(inside):
            return KubeletVolume(kind="log", path=mount.host_path)
    return None


def _volume(mount: HostMount, plugin: str, *, directory: bool) -> KubeletVolume | None:
    if not directory:
        return None
    if plugin == _EMPTY_DIR:
        return _empty_dir(mount.host_path)
    if plugin in _SMALL and mount.read_only:
        return KubeletVolume(kind="copy", path=mount.host_path)
    return None


def _of_driver(mount: HostMount) -> KubeletVolume | None:
    """A volume in memory whose driver swaps all that is in it at once, as a kubelet does: secrets, say.

    Who reads those waits for word of the swap, which does not come through the share.
    """
    path = mount.host_path
    if not mount.read_only or not Path(path, _SWAPPED).is_symlink():
        return None
    if not mounts.is_mounted(path) or mounts.kind_of(path) != "tmpfs":
        return None
    return KubeletVolume(kind="copy", path=path)


def _empty_dir(path: str) -> KubeletVolume | None:
    """Of the default medium a directory, of medium Memory a tmpfs; others (huge pages) stay on the host."""
    if not mounts.is_mounted(path):
        return KubeletVolume(kind="disk", path=path)
    return KubeletVolume(kind="memory", path=path) if mounts.kind_of(path) == "tmpfs" else None


def _sub_path(mount: HostMount, pod: Path, name: str) -> KubeletVolume | None:
    for plugin in _SMALL:
        if (pod / "volumes" / plugin / name).is_dir():
            # As on a host: it shows what was there when the container was made.
            return KubeletVolume(kind="copy", path=mount.host_path) if mount.read_only else None
    volume = pod / "volumes" / _EMPTY_DIR / name
    if not volume.is_dir():
        return None
    whole = _empty_dir(os.fspath(volume))
    here, there = mounts.root_of(mount.host_path), mounts.root_of(volume)
    if whole is None or here[0] != there[0] or not (here[1] + "/").startswith(there[1].rstrip("/") + "/"):
        return None
    return KubeletVolume(kind=whole.kind, path=whole.path, below=os.path.relpath(here[1], there[1]))
