"""What plugged disks and disks in bays have in common: nodes of QEMU's block layer."""

from __future__ import annotations

from orlop.hypervisor.qemu.monitor import CommandFailed, Monitor


def policy(*, read_only: bool) -> dict[str, object]:
    """What a writable layer holds ends with its VM: freed space goes back, and nothing is synced."""
    return {} if read_only else {"discard": "unmap", "cache": {"no-flush": True}}


async def remove(monitor: Monitor, node: str) -> None:
    """Remove a node, which closes its file; one that is not there is no error."""
    try:
        await monitor.execute("blockdev-del", {"node-name": node})
    except CommandFailed as error:
        if "find" not in str(error):
            raise
