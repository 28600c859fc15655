"""What the handler ``vm`` can do at a time: nothing new, make pods wait, or run them.

    Absent ──guest image found──► Preparing ──template found or made──► Ready
       ▲                              │
       └──────────a step failed───────┘

Pods that run are found again and removed in each of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from orlop.hypervisor.base import MachineShape
from orlop.sandbox.vm.clone import Clone, Cloner
from orlop.sandbox.vm.pool import Pool


@dataclass(frozen=True)
class Absent:
    """No pod can be run, for ``reason``."""

    reason: str


@dataclass(frozen=True)
class Preparing:
    """A guest image is there; pods wait for the template. ``reason`` says what is being done."""

    cloner: Cloner
    reason: str

    def claim(self, shape: MachineShape) -> Clone | None:
        """There is no pool yet."""
        return None


@dataclass(frozen=True)
class Ready:
    """Pods are run."""

    cloner: Cloner
    pool: Pool
    reason: str = ""

    def claim(self, shape: MachineShape) -> Clone | None:
        """A VM of the pool; see :meth:`Pool.claim`."""
        return self.pool.claim(shape)


State = Absent | Preparing | Ready
