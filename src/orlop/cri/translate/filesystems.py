"""ImageFsInfo: where images and writable layers lie, and what they take there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from orlop.cri.api import runtime_v1_pb2 as pb
from orlop.cri.translate.stats import filesystem_usage
from orlop.images.model import FsInfo
from orlop.sandbox.figures import LayerUse


def fs_info(images: FsInfo, layers: Sequence[LayerUse]) -> pb.ImageFsInfoResponse:
    """The answer; takes a few stat(2).

    A kubelet compares the mount points of the two as text. If they differ it takes them for two disks, and
    evicts for the wrong one; so what lies on the images' file system bears its name.
    """
    names = {_device(Path(images.mountpoint)): images.mountpoint}
    sums: dict[str, tuple[int, int, int]] = {}
    for one in layers:
        place = _existing(Path(one.mountpoint))
        name = names.setdefault(_device(place), os.fspath(place))
        used, inodes, _ = sums.get(name, (0, 0, 0))
        sums[name] = used + one.used, inodes + one.inodes, one.timestamp
    if not sums:
        sums = {images.mountpoint: (0, 0, images.timestamp)}
    return pb.ImageFsInfoResponse(
        image_filesystems=[
            filesystem_usage(images.mountpoint, images.used_bytes, images.inodes, images.timestamp)
        ],
        container_filesystems=[
            filesystem_usage(name, used, inodes, timestamp)
            for name, (used, inodes, timestamp) in sums.items()
        ],
    )


def _existing(place: Path) -> Path:
    """The directory, or the nearest above it: nothing was written yet."""
    while not place.exists() and place != place.parent:
        place = place.parent
    return place


def _device(place: Path) -> int:
    try:
        return _existing(place).stat().st_dev
    except OSError:
        return -1
