"""One operator at a time, by a Lease, as Kubernetes' own controllers agree on who works."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from datetime import UTC, datetime
from typing import Any, Final

from orlop.errors import Aborted, AlreadyExists, OrlopError, Unavailable
from orlop.tenants import names
from orlop.tenants.api import LEASES, Api, Document

log = logging.getLogger(__name__)

DURATION: Final = 15
"""Seconds after which others may take a lease that nobody has renewed."""
DEADLINE: Final = 10.0
"""Seconds after which a holder that cannot renew it stops: before anybody else begins."""
PAUSE: Final = 2.0


class LeaseLost(Unavailable):
    """The lease could not be renewed in time: another operator may have it by now."""


class Leadership:
    """The lease as one operator sees it."""

    def __init__(self, api: Api, identity: str) -> None:
        self._api, self._identity = api, identity
        self._seen: Any = None
        self._since = 0.0

    async def acquire(self) -> None:
        """Wait until it is ours."""
        said = ""
        while True:
            try:
                holder = await self._try()
            except OrlopError as error:
                holder = f"nobody knows: {error}"
            if holder == self._identity:
                log.info("this operator works now: %s", self._identity)
                return
            if holder != said:
                log.info("another operator works: %s", holder)
                said = holder
            await asyncio.sleep(PAUSE)

    async def keep(self) -> None:
        """Renew it until cancelled. Raises LeaseLost."""
        loop = asyncio.get_running_loop()
        renewed = loop.time()
        while True:
            await asyncio.sleep(PAUSE)
            holder = self._identity
            with contextlib.suppress(OrlopError, TimeoutError):
                async with asyncio.timeout_at(renewed + DEADLINE):
                    before = loop.time()
                    holder = await self._try()
                    if holder == self._identity:
                        renewed = before
            if holder != self._identity or loop.time() >= renewed + DEADLINE:
                raise LeaseLost(f"the lease is not {self._identity}'s any more")

    async def release(self) -> None:
        """Give it back, so that the next one need not wait for its end."""
        with contextlib.suppress(OrlopError):
            found = await self._api.find(LEASES, names.OPERATOR, names.SYSTEM)
            if found is not None and found["spec"].get("holderIdentity") == self._identity:
                found["spec"]["holderIdentity"] = ""
                await self._api.replace(found)

    async def _try(self) -> str:
        """Take it or renew it, if that can be; whose it is then."""
        found = await self._api.find(LEASES, names.OPERATOR, names.SYSTEM)
        try:
            if found is None:
                await self._api.create(self._written({"metadata": {}, "spec": {}}))
                return self._identity
            holder = str(found["spec"].get("holderIdentity") or "")
            if holder not in ("", self._identity) and not self._expired(found):
                return holder
            await self._api.replace(self._written(found))
        except (Aborted, AlreadyExists):
            return "somebody else was quicker"
        return self._identity

    def _expired(self, found: Document) -> bool:
        """Whether nobody has renewed it for long enough, by our own clock: nobody else's is trusted."""
        now = asyncio.get_running_loop().time()
        if self._seen != found["spec"]:
            self._seen, self._since = found["spec"], now
        allowed: float = found["spec"].get("leaseDurationSeconds", DURATION)
        return now - self._since > allowed

    def _written(self, found: Document) -> Document:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        before = found["spec"]
        again = before.get("holderIdentity") == self._identity
        spec = {
            **before,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": DURATION,
            "renewTime": now,
            "acquireTime": before.get("acquireTime", now) if again else now,
            "leaseTransitions": before.get("leaseTransitions", 0) + (not again),
        }
        about = {**found["metadata"], "name": names.OPERATOR, "namespace": names.SYSTEM}
        return {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": about, "spec": spec}
