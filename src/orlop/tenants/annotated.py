"""The annotation of this node's pods with their addresses in their tenants' networks.

Routers of other nodes, Services and names go by it. So it is said until the API has it, and said again when a
member has written something else there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from orlop.errors import Aborted, NotFound, OrlopError
from orlop.tenantnet.model import Lease
from orlop.tenants import names
from orlop.tenants.api import PODS, Api
from orlop.tenants.seen import PodSeen
from orlop.tenants.watching import News

log = logging.getLogger(__name__)

PAUSE: Final = 2.0


@dataclass
class AnnotationWish:
    """What a pod shall be annotated with; whether the API was told, and whether it has told of the pod."""

    lease: Lease
    said: bool = False
    seen: bool = False


class AnnotatedPods:
    """Keeps annotations as leases say. ``find`` knows pods by namespace and name, ``news`` when to look."""

    def __init__(self, api: Api, find: Callable[[str, str], PodSeen | None], news: News) -> None:
        self._api, self._find, self._news = api, find, news
        self._wishes: dict[tuple[str, str], AnnotationWish] = {}

    def wish(self, lease: Lease) -> None:
        """Have a pod annotated for as long as it is there."""
        self._wishes[lease.namespace, lease.pod] = AnnotationWish(lease)
        self._news.tell()

    async def serve(self) -> None:
        """Say what is to be said, until cancelled."""
        told = 0
        while True:
            if await self._look():
                told = await self._news.after(told)
            else:
                await asyncio.sleep(PAUSE)

    async def _look(self) -> bool:
        """Go through all pods once; whether nothing has failed."""
        whole = True
        for place, wish in [*self._wishes.items()]:
            try:
                there = await self._settle(wish)
            except (NotFound, Aborted):
                there = False
            except OrlopError as error:
                log.warning("pod %s/%s has no annotation yet: %s", *place, error)
                there, whole = True, False
            if not there and self._wishes.get(place) is wish:
                del self._wishes[place]
        return whole

    async def _settle(self, wish: AnnotationWish) -> bool:
        """Whether the pod is there still, as far as anybody knows. Raises OrlopError."""
        lease = wish.lease
        pod = self._find(lease.namespace, lease.pod)
        if pod is None and (wish.seen or wish.said):
            return not wish.seen  # gone, or nobody has told of it yet
        if pod is not None:
            wish.seen = True
            if lease.uid and pod.uid != lease.uid:
                return False
            if pod.address == lease.address:
                return True
        about: dict[str, Any] = {"annotations": {names.ADDRESS: lease.address}}
        if lease.uid:
            about["uid"] = lease.uid  # another pod of that name is left alone
        await self._api.merge(PODS, lease.pod, {"metadata": about}, namespace=lease.namespace)
        wish.said = True
        return True
