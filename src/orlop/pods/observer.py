"""Who hears of each step of pods and containers, and may refuse or change some.

The engine calls the observer; what it does with that is its own business (plug-ins of the node, see
``nri``). Each method here does nothing, which is also the observer of a node that has none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from orlop.pods.records import ContainerRecord, PodRecord
from orlop.sandbox.spec import ContainerSpec, Resources
from orlop.value import Value

Check = Callable[[ContainerSpec], Awaitable[None]]
"""Whether the pod's handler can make such a container; raises what its create would."""


class WantedLimits(Value, frozen=True):
    """Limits that an observer wants for a container; one that is ``optional`` may fail."""

    container_id: str
    resources: Resources
    optional: bool = False


class Adjusted(Value, frozen=True):
    """A container as it shall be made, the CDI devices that it shall have besides, and changes to others."""

    spec: ContainerSpec
    cdi_devices: tuple[str, ...] = ()
    updates: tuple[WantedLimits, ...] = ()


class Updated(Value, frozen=True):
    """The limits that a container shall get, and what shall change in others."""

    resources: Resources
    updates: tuple[WantedLimits, ...] = ()


NO_UPDATES: tuple[WantedLimits, ...] = ()


class Observer:
    """Does nothing. The records are as they are just then; ids are never reused.

    Those that come before a step (``run_pod``, ``create``, ``start``, ``update``, ``update_pod``) may raise,
    which refuses it; the others are news and must not. Methods may be called for several objects at once.
    """

    @property
    def listens(self) -> bool:
        """Whether there is anybody to be told."""
        return False

    async def run_pod(self, pod: PodRecord) -> None:
        """A pod has its sandbox and its addresses, and is about to be shown as ready."""

    async def pod_ready(self, pod: PodRecord) -> None:
        """It is shown as ready."""

    async def update_pod(self, pod: PodRecord, overhead: Resources, resources: Resources) -> None:
        """The limits of a pod are about to change."""

    async def pod_updated(self, pod: PodRecord) -> None:
        """They have."""

    async def pod_stopped(self, pod: PodRecord) -> None:
        """A pod runs no more."""

    async def pod_removed(self, pod: PodRecord) -> None:
        """A pod is gone; or could not be made after all."""

    async def create(self, pod: PodRecord, container: ContainerRecord, check: Check) -> Adjusted:
        """A container is about to be made; it is made as the result says."""
        return Adjusted(spec=container.spec)

    async def created(self, pod: PodRecord, container: ContainerRecord) -> None:
        """It was made."""

    async def start(self, pod: PodRecord, container: ContainerRecord) -> None:
        """Its process is about to be run."""

    async def started(self, pod: PodRecord, container: ContainerRecord) -> None:
        """It runs."""

    async def update(self, pod: PodRecord, container: ContainerRecord, resources: Resources) -> Updated:
        """Its limits are about to change; ``resources`` has those that do."""
        return Updated(resources=resources)

    async def updated(self, pod: PodRecord, container: ContainerRecord) -> None:
        """They have."""

    async def stopped(self, pod: PodRecord, container: ContainerRecord) -> tuple[WantedLimits, ...]:
        """It has ended; or could not be made after all, then it is removed next."""
        return NO_UPDATES

    async def removed(self, pod: PodRecord, container: ContainerRecord) -> None:
        """It is gone."""
