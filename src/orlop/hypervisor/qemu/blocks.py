"""What plugged disks and disks in bays have in common: nodes of QEMU's block layer."""

from __future__ import annotations

import msgspec

from orlop.host.blockdevices import BlockDevice
from orlop.hypervisor.qemu.monitor import CommandFailed, Monitor


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """What a disk holds: one raw file, or with ``stacked`` several that a VMDK strings together, or the
    ``device``. ``name`` is what QEMU opens."""

    name: str
    size: int
    read_only: bool
    stacked: bool = False
    durable: bool = False
    device: BlockDevice | None = None

    @property
    def node(self) -> dict[str, object]:
        """Its node without a name, to be used by a bay."""
        file: dict[str, object] = {
            "driver": "host_device" if self.device else "file",
            "filename": self.name,
            "read-only": self.read_only,
            **policy(read_only=self.read_only, durable=self.durable),
        }
        if self.device:
            # Who may write to it was decided where it was opened; one machine may have it in two ways.
            file["locking"] = "off"
        return {"driver": "vmdk", "read-only": True, "file": file} if self.stacked else file

    @property
    def whole_node(self) -> dict[str, object]:
        """Its node without a name, to be used by a device."""
        if self.stacked:
            return self.node
        own = policy(read_only=self.read_only, durable=self.durable)
        return {"driver": "raw", "read-only": self.read_only, "file": self.node, **own}

    @property
    def sectors(self) -> dict[str, object]:
        """What a device has to say of them: a file system or a partition table was made for those."""
        if self.device is None:
            return {}
        logical = self.device.logical_sector
        return {
            "logical_block_size": logical,
            "physical_block_size": max(logical, self.device.physical_sector),
        }


def policy(*, read_only: bool, durable: bool) -> dict[str, object]:
    """Freed space goes back; and nothing is synced of what ends with its VM, as a writable layer does."""
    return {} if read_only else {"discard": "unmap", "cache": {"no-flush": not durable}}


async def remove(monitor: Monitor, node: str) -> None:
    """Remove a node, which closes its file; one that is not there is no error."""
    try:
        await monitor.execute("blockdev-del", {"node-name": node})
    except CommandFailed as error:
        if "find" not in str(error):
            raise
