"""What a guest image needs for these devices: kernel modules, and how its first script finds its root.

Read when the image is built.
"""

from __future__ import annotations

EARLY = ("virtio_pci", "virtio_scsi", "sd_mod")
"""To reach the root disk."""

LATE = (
    "virtio_console",
    "virtio_rng",
    "virtio_net",
    "virtio_balloon",
    "virtio_mem",
    "9p",
    "9pnet_virtio",
)
"""Before the agent starts, in the order of need."""

OPTIONAL = ("pvpanic_pci",)
"""Where the kernel has them."""

FIND_ROOT = """find_root() {
    case $root in
    # By its place: the kernel names disks in the order in which it happens to find them.
    scsi:*|scsi-kept:*) cd "/sys/class/scsi_device/"*":0:0:${root##*:}/device/block" && echo * ;;
    *) return 1 ;;
    esac
}"""
"""A shell function: the kernel's name of the disk at the address ``$root``. It fails until there is one."""
