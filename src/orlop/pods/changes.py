"""What containers have changed in the files of their images."""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from orlop.errors import ResourceExhausted
from orlop.linux.changes import Change
from orlop.pods.node import Node
from orlop.pods.records import ContainerRecord

MOST = 1_000_000
"""Changes of one container that are told."""

_OURS = ("/dev", "/proc", "/sys", "/etc/hosts", "/etc/hostname", "/etc/resolv.conf")


class ChangedFiles:
    """Asks the sandboxes of ``node``."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def of(self, ref: str) -> AsyncGenerator[Sequence[Change], None]:
        """The changes of a container, in parts, without the places of volumes and of what Orlop mounts.

        Raises FailedPrecondition for one whose pod has ended: what it wrote has gone with that.
        """
        await self._node.known_of(ref)
        record = self._node.container(ref)
        sandbox = self._node.sandbox(record.pod_id)
        places = _mounted(record)
        count = 0
        async with aclosing(sandbox.changes(record.id)) as parts:
            async for part in parts:
                kept = [one for one in part if not _is_below(one.path, places)]
                count += len(kept)
                if count > MOST:
                    raise ResourceExhausted(
                        f"container {record.name} ({record.id[:12]}) has changed more than {MOST} files: "
                        "look for them with a command in it"
                    )
                if kept:
                    yield kept


def _mounted(record: ContainerRecord) -> frozenset[bytes]:
    mounts = (one.container_path for one in record.spec.mounts)
    return frozenset(os.path.normpath(os.fsencode(place)) for place in (*_OURS, *mounts))


def _is_below(path: bytes, places: frozenset[bytes]) -> bool:
    # By its own parts: a container may have thousands of volumes and a million files.
    while path:
        if path in places:
            return True
        path = path.rpartition(b"/")[0]
    return False
