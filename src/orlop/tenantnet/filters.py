"""Puts tables of packet filters in place, in the namespaces of routers and of the node.

Where the rules are those that were put there last, only elements are changed, and no program is started. If
anybody has changed a rule since, by hand or by what came with another agent, the tables are written again.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from orlop.errors import FailedPrecondition
from orlop.host import netns, process, roots
from orlop.linux import netlink, nftables
from orlop.tenantnet import tables
from orlop.tenantnet.tables import Table
from orlop.value import Value

_TIME: Final = 30.0
_MOST_CHANGES: Final = 1000
"""With more, nft(8) is as quick, and its transaction's size no concern."""


class _Standing(Value, frozen=True):
    """What was put in place, and the generation of the namespace's rules that this made."""

    tables: tuple[Table, ...]
    generation: int


class Filters:
    """The packet filters of namespaces. Calls about one namespace must wait for one another.

    nft(8) is the one below ``root``: of what one release writes, an older one may be unable to read anything.
    """

    def __init__(self, root: Path = roots.OWN) -> None:
        self._root = root
        self._standing: dict[Path, _Standing] = {}

    async def put(self, place: Path, wanted: Sequence[Table]) -> None:
        """Have these tables in the namespace at ``place``. Raises FailedPrecondition, NotFound, OSError."""
        # Whatever ends this early leaves the next one to write everything.
        former = self._standing.pop(place, None)
        number = await self._change(place, former, wanted) if former else None
        if number is None:
            number = await self._write(place, wanted)
        if number is not None:
            self._standing[place] = _Standing(tables=tuple(wanted), generation=number)

    def forget(self, place: Path) -> None:
        """The namespace at ``place`` is gone, or going. Idempotent."""
        self._standing.pop(place, None)

    async def _change(self, place: Path, former: _Standing, wanted: Sequence[Table]) -> int | None:
        """Change elements alone; None when that will not do."""
        changes = tables.changes(former.tables, wanted)
        if changes is None or len(changes) > _MOST_CHANGES:
            return None
        try:
            return await netns.ask(
                place,
                lambda kernel: nftables.change(kernel, changes, former.generation),
                netlink.NETFILTER,
            )
        except OSError as error:
            if error.errno not in (errno.ERESTART, errno.ENOENT, errno.EEXIST):
                raise
            return None

    async def _write(self, place: Path, wanted: Sequence[Table]) -> int | None:
        """Replace the tables in one transaction of nft(8); the generation, None if that may be another's."""
        before = await netns.ask(place, nftables.generation, netlink.NETFILTER)
        argv = ["nsenter", f"--net={place}", *roots.entering(self._root), "nft", "-f", "-"]
        try:
            await process.run(argv, input=tables.text(wanted).encode(), timeout=_TIME)
        except (process.ProcessFailed, ValueError) as error:
            raise FailedPrecondition(f"packet filter of {place.name}: {error}") from error
        after = await netns.ask(place, nftables.generation, netlink.NETFILTER)
        return after if after == nftables.following(before) else None
