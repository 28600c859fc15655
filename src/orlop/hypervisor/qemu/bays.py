"""Drive bays: disks that a machine has from the start, with nothing in them.

A guest needs long to find a disk that is plugged while it runs: it probes the disk, makes devices of
it and looks for partitions. It has found the bays before it was saved as a template. What is in a bay
is exchanged below the device, without the guest's doing (QMP ``blockdev-reopen``).

A bay is used once. A guest that did not let go of a file system would otherwise come upon another one
below it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress

import msgspec

from orlop.hypervisor.qemu import blocks
from orlop.hypervisor.qemu.blocks import Content
from orlop.hypervisor.qemu.monitor import CommandFailed, Monitor

MIB = 1 << 20
SCSI_BUS = "scsi0.0"
_FIRST_LUN = 1
_IMAGES = 12
_SCRATCHES = 5
_VOLUMES = 3
# More than any image has: the guest is not told how large the one is that comes.
_IMAGE_BYTES = 8 << 40


class Bay(msgspec.Struct, frozen=True, kw_only=True):
    """A bay for disks of one kind. A writable one takes files of exactly ``size`` bytes."""

    lun: int
    size: int
    read_only: bool
    durable: bool = False


def bays(scratch_mib: int, volume_mib: int) -> tuple[Bay, ...]:
    """The bays of every machine: some for images, some for writable layers of ``scratch_mib``, and some for
    volumes of ``volume_mib``."""
    kinds = [(_IMAGE_BYTES, True, False)] * _IMAGES + [(scratch_mib * MIB, False, False)] * _SCRATCHES
    kinds += [(volume_mib * MIB, False, True)] * _VOLUMES
    return tuple(
        Bay(lun=lun, size=size, read_only=read_only, durable=durable)
        for lun, (size, read_only, durable) in enumerate(kinds, _FIRST_LUN)
    )


def arguments(every: Iterable[Bay]) -> Sequence[str]:
    """The bays on QEMU's command line."""
    words: list[str] = []
    for bay in every:
        kind = "read-only=on" if bay.read_only else "discard=unmap"
        if not bay.read_only and not bay.durable:
            kind += ",cache.no-flush=on"
        nothing = f"file.driver=null-co,file.size={bay.size},file.read-zeroes=on"
        words += ("-blockdev", f"driver=raw,node-name={_node(bay)},{kind},{nothing}")
        device = (
            f"scsi-hd,bus={SCSI_BUS},channel=0,scsi-id=0,lun={bay.lun},drive={_node(bay)},rotation_rate=1"
        )
        words += ("-device", f"{device},werror=report,rerror=report")
    return words


def left(every: Iterable[Bay], spent: Iterable[int], *, read_only: bool) -> int:
    """How many bays of a kind were never used."""
    return sum(bay.read_only == read_only and bay.lun not in spent for bay in every)


def choose(
    every: Iterable[Bay], spent: Iterable[int], size: int, *, read_only: bool, durable: bool = False
) -> Bay | None:
    """A bay that was never used and fits a disk of ``size`` bytes."""
    for bay in every:
        if bay.lun in spent or bay.read_only != read_only or bay.durable != durable:
            continue
        if bay.read_only or size == bay.size:
            return bay
    return None


async def insert(monitor: Monitor, bay: Bay, content: Content) -> None:
    """Put the disk into the empty bay. A failure leaves the bay empty."""
    node = f"disk{bay.lun}"
    await monitor.execute("blockdev-add", {"node-name": node, **content.node})
    try:
        await _fill(monitor, bay, node)
    except BaseException:
        with suppress(CommandFailed):
            await monitor.execute("blockdev-del", {"node-name": node})
        raise


async def empty(monitor: Monitor, bay: Bay) -> None:
    """Take the disk out; its file is closed when this returns. Idempotent."""
    nothing = f"nothing{bay.lun}"
    try:
        await monitor.execute(
            "blockdev-add",
            {"node-name": nothing, "driver": "null-co", "size": bay.size, "read-zeroes": True},
        )
    except CommandFailed as error:
        if "Duplicate" not in str(error):
            raise
    await _fill(monitor, bay, nothing)
    await blocks.remove(monitor, f"disk{bay.lun}")


async def _fill(monitor: Monitor, bay: Bay, content: str) -> None:
    node = {
        "driver": "raw",
        "node-name": _node(bay),
        "read-only": bay.read_only,
        "file": content,
        **blocks.policy(read_only=bay.read_only, durable=bay.durable),
    }
    await monitor.execute("blockdev-reopen", {"options": [node]})


def _node(bay: Bay) -> str:
    return f"bay{bay.lun}"
