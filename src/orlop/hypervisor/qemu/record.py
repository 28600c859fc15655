"""What is written down about a running machine, so that a later daemon finds it again."""

from __future__ import annotations

from pathlib import Path

import msgspec

from orlop.errors import DataLoss, NotFound, Unavailable
from orlop.host import files
from orlop.hypervisor.base import MachineShape
from orlop.hypervisor.qemu.bays import Bay
from orlop.value import UNREADABLE

_NAME = "machine.json"


class MachineRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The content of ``machine.json``. ``disks`` are the plugged ones' ids with their logical units;
    ``spent`` the logical units of ``bays`` that were used. ``owner`` is the first id of the jail's range;
    0 for a machine of a daemon that knew no jails.
    """

    pid: int
    start_time: int
    shape: MachineShape
    base_memory_mib: int
    max_memory_mib: int
    disks: tuple[tuple[str, int], ...] = ()
    next_lun: int = 1
    bays: tuple[Bay, ...] = ()
    spent: tuple[int, ...] = ()
    owner: int = 0


def title(directory: Path) -> str:
    """What the machine in ``directory`` is called in messages and by ps(1)."""
    return "/".join(directory.parts[-2:])


def save(directory: Path, record: MachineRecord) -> None:
    """Replace it. Raises OSError."""
    files.save(directory / _NAME, msgspec.json.encode(record))


def load(directory: Path) -> MachineRecord:
    """Read it. Raises NotFound when there is none, DataLoss when it cannot be understood, Unavailable when it
    cannot be read now."""
    path = directory / _NAME
    try:
        return msgspec.json.decode(path.read_bytes(), type=MachineRecord)
    except FileNotFoundError:
        raise NotFound(f"there is no machine in {directory}") from None
    except OSError as error:
        raise Unavailable(f"the machine's record {path} cannot be read now: {error.strerror}") from error
    except UNREADABLE as error:
        raise DataLoss(f"the machine's record {path} cannot be read: {error}") from error
