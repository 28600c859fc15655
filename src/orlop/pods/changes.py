"""What containers have changed in the files of their images, and their files as archives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from orlop.errors import FailedPrecondition, ResourceExhausted
from orlop.linux.changes import Change, mounted_in
from orlop.pods.node import Node
from orlop.sandbox.spec import NamespaceMode

MOST = 1_000_000
"""Changes of one container that are told."""


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
        places = mounted_in(one.container_path for one in record.spec.mounts)
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

    async def archive(self, ref: str, *, changed: bool) -> AsyncGenerator[bytes, None]:
        """The files of a container as a tar archive, in pieces, or the layer of those it has ``changed``.

        Raises FailedPrecondition for one whose pod has ended, or has users of its own, who would be named
        by the numbers that they have outside.
        """
        await self._node.known_of(ref)
        record = self._node.container(ref)
        sandbox = self._node.sandbox(record.pod_id)
        if self._node.pod(record.pod_id).spec.namespaces.user is NamespaceMode.POD:
            raise FailedPrecondition(
                f"container {record.name} ({record.id[:12]}) has a user namespace, from outside of which its "
                "files are not packed: do it with tar in it"
            )
        async with aclosing(sandbox.archive(record.id, changed=changed)) as pieces:
            async for piece in pieces:
                yield piece


def _is_below(path: bytes, places: frozenset[bytes]) -> bool:
    # By its own parts: a container may have thousands of volumes and a million files.
    while path:
        if path in places:
            return True
        path = path.rpartition(b"/")[0]
    return False
