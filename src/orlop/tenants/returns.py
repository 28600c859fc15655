"""Blocks of addresses whose nodes are gone are given back, so that others may have them.

A node is gone when the cluster has no Node object of its name. Its block rests: who was taken out by mistake
comes back to its addresses, and what is on its way to them meets nobody.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import Any, Final

from orlop.errors import Aborted, NotFound, OrlopError
from orlop.tenants.api import NETWORKS, NODES, Api

log = logging.getLogger(__name__)

REST: Final = 600.0
"""Seconds for which a node has to be gone."""
PAUSE: Final = 60.0


class BlockReturns:
    """Looks for blocks of nodes that are gone. What it knows of since when, it knows by itself."""

    def __init__(self, api: Api, *, rest: float = REST) -> None:
        self._api, self._rest = api, rest
        self._gone: dict[str, float] = {}

    @property
    def leaving(self) -> frozenset[str]:
        """The nodes that are gone and have blocks still."""
        return frozenset(self._gone)

    async def keep(self) -> None:
        """Do so until cancelled."""
        while True:
            try:
                await self.look()
            except OrlopError as error:
                log.warning("blocks of nodes that are gone: %s", error)
            await asyncio.sleep(PAUSE)

    async def look(self) -> None:
        """Give back the blocks whose nodes have been gone for long enough. Raises OrlopError."""
        # First the networks: a node that joins in between, and claims a block, is there.
        networks = await self._api.list(NETWORKS)
        nodes: set[str] = set()
        await self._api.each(NODES, lambda one: nodes.add(one["metadata"]["name"]))
        holding = {name for one in networks for name in _blocks(one)}
        now = time.monotonic()
        self._gone = {name: self._gone.get(name, now) for name in holding - nodes}
        rested = {name for name, since in self._gone.items() if now - since >= self._rest}
        for one in networks:
            if back := rested & _blocks(one).keys():
                await self._give_back(one, back)

    async def _give_back(self, network: dict[str, Any], nodes: set[str]) -> None:
        about = network["metadata"]
        log.info("network %s has the blocks back of %s", about["name"], ", ".join(sorted(nodes)))
        change = {
            "metadata": {"resourceVersion": about["resourceVersion"]},
            "status": {"blocks": dict.fromkeys(sorted(nodes))},
        }
        # Somebody has written meanwhile: the next look sees what.
        with suppress(Aborted, NotFound):
            await self._api.merge(NETWORKS, about["name"], change, status=True)


def _blocks(network: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = network.get("status", {}).get("blocks", {})
    return found
