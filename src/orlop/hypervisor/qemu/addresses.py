"""How this back end tells the guest where a device is; the guest's ``devices`` read it."""

from __future__ import annotations

from orlop.wire.values import GuestAddress

CHANNEL_NAME = "org.orlop.agent"
SHARE_TAG = "share"
ROOT_LUN = 0
NETWORK_SLOT = 0x5

CHANNEL: GuestAddress = f"virtio:{CHANNEL_NAME}"
SHARE: GuestAddress = f"9p:{SHARE_TAG}"
NETWORK: GuestAddress = f"pci:0000:00:{NETWORK_SLOT:02x}.0"


def disk(lun: int, files: int, *, kept: bool) -> tuple[GuestAddress, ...]:
    """The file systems of the disk at unit ``lun``: it is one itself, or each of its partitions is.

    ``kept`` says that the guest has had the device all along, and keeps it when the disk is gone.
    """
    whole = f"scsi-kept:{lun}" if kept else f"scsi:{lun}"
    return (whole,) if files == 1 else tuple(f"{whole}/{number}" for number in range(1, files + 1))
