"""A bound on what a pod takes of the host's disk, and the end of a pod that passes it.

A writable layer ends at its own size. That bounds no pod, which may have many containers and writes logs, and
nothing of the host's file system is sure to have quotas. So it is looked at now and then, as a kubelet does
that evicts pods, and a pod that takes too much gets no more containers in between.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from orlop.errors import ResourceExhausted

log = logging.getLogger(__name__)

_EVERY = 10.0
_BLOCK = 512


class Taker(Protocol):
    """A pod."""

    async def check_disk(self) -> None:
        """Raises ResourceExhausted when it takes more than it may."""

    async def fail(self, reason: str) -> None:
        """End it, for that reason."""


async def watch(pods: Callable[[], Iterable[Taker]]) -> None:
    """End each of ``pods`` that takes too much. Never returns."""
    while True:
        await asyncio.sleep(_EVERY)
        for pod in tuple(pods()):
            try:
                await pod.check_disk()
            except ResourceExhausted as error:
                log.warning("%s; its VM is ended", error)
                await pod.fail(str(error))
            except Exception:
                log.exception("the bound of a pod's disk could not be checked")


def taken(layers: Path, logs: Iterable[str]) -> int:
    """Bytes that the files in ``layers`` and the ``logs`` have on the disk."""
    blocks = 0
    with suppress(FileNotFoundError), os.scandir(layers) as entries:
        for entry in entries:
            with suppress(OSError):
                blocks += entry.stat(follow_symlinks=False).st_blocks
    for path in logs:
        with suppress(OSError):
            blocks += Path(path).stat().st_blocks
    return blocks * _BLOCK


def check(pod_id: str, used: int, bound_mib: int) -> None:
    """Raises ResourceExhausted when ``used`` bytes are more than the bound; 0 is none."""
    if bound_mib and used > bound_mib << 20:
        raise ResourceExhausted(
            f"pod {pod_id} takes {used >> 20} MiB of the node's disk with its writable layers and logs, more "
            f"than vm.pod_disk_mib ({bound_mib}) allows"
        )
