"""QEMU as it is configured: what this folder shows to the outside."""

from __future__ import annotations

from pathlib import Path

from orlop.config import VmConfig
from orlop.hypervisor.base import Backend, GuestFiles, NeededProgram
from orlop.hypervisor.qemu import settings
from orlop.hypervisor.qemu.hypervisor import QemuHypervisor, QemuMachines


class QemuBackend:
    """See :class:`orlop.hypervisor.base.Backend`."""

    def __init__(self, config: VmConfig) -> None:
        self._config = config
        self._settings = settings.read(config)

    @property
    def programs(self) -> tuple[NeededProgram, ...]:
        """See ``Backend``."""
        return (NeededProgram(name=self._settings.binary, package=settings.PACKAGE),)

    @property
    def machines(self) -> QemuMachines:
        """See ``Backend``."""
        return QemuMachines()

    def booting(self, guest: GuestFiles, root: Path) -> QemuHypervisor:
        """See ``Backend``."""
        return QemuHypervisor(self._config, self._settings, guest, root)


def backend(config: VmConfig) -> Backend:
    """QEMU with the configuration's section ``[vm.qemu]``. Raises InvalidArgument."""
    return QemuBackend(config)
