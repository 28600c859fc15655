"""The back end that runs QEMU. Its front door is :class:`QemuHypervisor`."""

from orlop.hypervisor.qemu.hypervisor import QemuHypervisor

__all__ = ["QemuHypervisor"]
