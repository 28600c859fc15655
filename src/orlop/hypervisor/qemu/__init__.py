"""The back end that runs QEMU. Its front door is :class:`QemuHypervisor`."""

from orlop.hypervisor.qemu.hypervisor import QemuHypervisor, QemuMachines

__all__ = ["QemuHypervisor", "QemuMachines"]
