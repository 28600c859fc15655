"""The back end that runs QEMU. Its front door is :func:`backend`."""

from orlop.hypervisor.qemu.backend import QemuBackend, backend

__all__ = ["QemuBackend", "backend"]
