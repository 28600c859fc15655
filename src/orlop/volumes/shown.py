"""Which named volume a path of the host shows, for those who give pods their mounts.

Only a volume whose disk a VM gets whole is shown by a directory with that disk in it (:mod:`.publisher`).
What is mounted there is asked of the kernel: no name that a pod could choose means anything.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.host import mounts
from orlop.value import Value
from orlop.volumes import records
from orlop.volumes.records import DISK, VolumeRecord, VolumeStep

_DATA = re.compile(r".*/volumes/volumes/[^/]+/data")
_SUB_PATH = "/volume-subpaths/"


class ShownVolume(Value, frozen=True):
    """A volume's directory with its disk, and which directory below the volume's root is meant."""

    data: Path
    below: str = ""


def find(path: str, top: Path) -> ShownVolume | None:
    """The volume of those below ``top`` that a mount of ``path`` means, None for any other path.

    Looks at the host. Raises FailedPrecondition for one that is being removed, or is no VM's.
    """
    if not os.path.lexists(f"{path}/{DISK}") and _SUB_PATH not in path:
        return None
    try:
        device, root = mounts.root_of(path)
        own, above = mounts.root_of(top)
    except OSError:
        return None
    parts = Path(root).relative_to(above).parts if Path(root).is_relative_to(above) else ()
    if device != own or len(parts) < 2:
        return None
    data = records.data_of(top / parts[0])
    if data != top.joinpath(*parts[:2]):
        return None
    record = records.load(data.parent, VolumeRecord)
    if record is None or record.step is not VolumeStep.READY or not record.whole:
        raise FailedPrecondition(f"volume {parts[0]} at {path} is not one whose disk a VM can have")
    return ShownVolume(data=data, below="/".join(parts[2:]))


def check_not_whole(path: str) -> None:
    """Refuse what only a VM can use. Raises FailedPrecondition."""
    if os.path.lexists(f"{path}/{DISK}") and _DATA.fullmatch(mounts.root_of(path)[1]):
        raise FailedPrecondition(
            f"volume {path} is one whose disk a VM gets: its pod needs the handler vm, "
            "or the volume to be made with mountedBy host"
        )
