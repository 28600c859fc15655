"""What pods need of an image store and of named volumes, no more."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Protocol

from orlop.images.model import HealthCheck


class ImageConfigLike(Protocol):
    """The parts of an OCI image configuration that decide what a container runs."""

    @property
    def entrypoint(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def cmd(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def env(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def working_dir(self) -> str: ...  # noqa: D102
    @property
    def user(self) -> str: ...  # noqa: D102
    @property
    def stop_signal(self) -> str: ...  # noqa: D102
    @property
    def healthcheck(self) -> HealthCheck | None: ...  # noqa: D102


class ImageLike(Protocol):
    """An image that was pulled."""

    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def repo_digests(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def config(self) -> ImageConfigLike: ...  # noqa: D102
    @property
    def layers(self) -> tuple[str, ...]: ...  # noqa: D102


class Images(Protocol):
    """The image store."""

    def status(self, reference: str) -> ImageLike | None:
        """The pulled image of that reference or id."""
        ...

    async def use(self, image_id: str, owner: str) -> ImageLike:
        """Keep the image's layers, over restarts, until ``owner`` releases them. NotFound for no image."""
        ...

    async def release(self, owner: str) -> None:
        """``owner`` uses no image any more. Idempotent."""
        ...

    async def reconcile(self, owners: Collection[str]) -> None:
        """Release what belongs to none of ``owners``."""
        ...


class NamedVolumes(Protocol):
    """The named volumes that containers have."""

    def again(self, paths: Collection[str]) -> AbstractAsyncContextManager[None]:
        """Have those of the host's ``paths`` that are named volumes where they were, and there for as long as
        this is entered. Raises FailedPrecondition for one that was removed."""
        ...


class NoNamedVolumes:
    """Where there are none."""

    def again(self, paths: Collection[str]) -> AbstractAsyncContextManager[None]:
        """See ``NamedVolumes``."""
        return nullcontext()
