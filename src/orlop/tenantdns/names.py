"""All tenants' DNS on a node: who opens and closes what each of them has.

A server is open while the tenant's router stands: it holds sockets in the router's namespace, which would
keep that alive, so it goes before the router does. Calls about one tenant are made one after the other.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from orlop.host.tasks import Undo
from orlop.host.turns import Turns
from orlop.tenantdns.answers import Answers
from orlop.tenantdns.cache import Cache
from orlop.tenantdns.forward import PORT, Forwarder
from orlop.tenantdns.limits import TimeShare
from orlop.tenantdns.places import SocketSupply
from orlop.tenantdns.server import NameServer
from orlop.tenantdns.zone import DOMAIN, TenantContents, Zone, parse
from orlop.value import Value

log = logging.getLogger(__name__)

RESOLVERS: Final = 3
"""Of the node, as many as resolv.conf(5) has."""
_AGAIN: Final = 5.0


class Around(Value, frozen=True):
    """What all tenants of a node have in common.

    ``addresses`` are those of the cluster's DNS, at which pods ask, ``domain`` the cluster's. ``node`` is
    the node's own network namespace, ``configuration`` where it names its resolvers; others are asked at
    ``port``.
    """

    addresses: tuple[str, ...]
    domain: str = DOMAIN
    node: Path = Path("/proc/self/ns/net")
    configuration: Path = Path("/etc/resolv.conf")
    port: int = PORT


class NodeResolvers:
    """The resolvers that a node itself asks, read anew every few seconds."""

    def __init__(self, configuration: Path) -> None:
        self._configuration = configuration
        self._found: tuple[str, ...] = ()
        self._until = 0.0

    def __call__(self) -> Sequence[str]:
        """Their addresses; none when the file cannot be read."""
        if time.monotonic() >= self._until:
            self._found = _resolvers(self._configuration)
            self._until = time.monotonic() + _AGAIN
        return self._found


def _resolvers(configuration: Path) -> tuple[str, ...]:
    try:
        lines = configuration.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        log.warning("the node's resolvers cannot be read: %s", error)
        return ()
    words = [line.split() for line in lines]
    found = [one[1] for one in words if len(one) > 1 and one[0] == "nameserver"]
    return tuple(filter(_is_address, found))[:RESOLVERS]


def _is_address(text: str) -> bool:
    try:
        return ip_address(text) is not None
    except ValueError:
        return False


class Served:
    """What one tenant has here: names, resolvers, a server."""

    def __init__(
        self, place: Path, around: Around, forwarders: Sequence[str], resolvers: NodeResolvers
    ) -> None:
        self.forwarders = tuple(forwarders)
        budget = TimeShare()
        # A tenant's own resolvers are asked from its router, whose rules for going out hold there.
        sockets = SocketSupply(place if forwarders else around.node)
        others = (lambda: self.forwarders) if forwarders else resolvers
        self._forwarder = Forwarder(others, sockets, budget, Cache(), around.port)
        self.answers = Answers(None, self._forwarder)
        self._server = NameServer(place, around.addresses, self.answers, budget)

    async def open(self) -> None:
        """Begin to answer. Raises Unavailable."""
        await self._server.open()

    async def close(self) -> None:
        """Let go of all sockets. Idempotent."""
        await self._server.close()
        await self._forwarder.close()


class TenantNames:
    """Every tenant's DNS on this node."""

    def __init__(self, around: Around) -> None:
        parse(around.domain)
        self._around = around
        self._resolvers = NodeResolvers(around.configuration)
        self._tenants: dict[str, Served] = {}
        self._zones: dict[str, Zone] = {}
        self._turns = Turns()

    @property
    def answers(self) -> bool:
        """Whether anybody is answered here at all."""
        return bool(self._around.addresses)

    def zone(self, tenant: str) -> Zone | None:
        """The names of a tenant, if it has any."""
        return self._zones.get(tenant)

    async def stand(self, tenant: str, place: Path, forwarders: Sequence[str] = ()) -> None:
        """The tenant's router stands at ``place``: have its DNS there, and ask these resolvers.

        A tenant whose resolvers change is not answered for a moment. Raises Unavailable.
        """
        if not self.answers:
            return
        async with self._turns.of(tenant):
            if (known := self._tenants.get(tenant)) is not None:
                if known.forwarders == tuple(forwarders):
                    return
                del self._tenants[tenant]
                await known.close()
            made = Served(place, self._around, forwarders, self._resolvers)
            if (zone := self._zones.get(tenant)) is not None:
                made.answers.told(zone)
            await made.open()
            self._tenants[tenant] = made

    async def go(self, tenant: str) -> None:
        """The tenant's router is about to go. Idempotent."""
        async with self._turns.of(tenant):
            if (known := self._tenants.pop(tenant, None)) is not None:
                await known.close()

    def told(self, tenant: str, contents: TenantContents, own: str = "") -> None:
        """These are the tenant's names, also below its ``own`` domain. Raises InvalidArgument for that."""
        zone = Zone(
            contents,
            domain=self._around.domain,
            own=own,
            server=self._around.addresses,
            serial=int(time.time()),
        )
        self._zones[tenant] = zone
        if (known := self._tenants.get(tenant)) is not None:
            known.answers.told(zone)

    def forget(self, tenant: str) -> None:
        """Nobody has these names any more: who still asks hears that there are none. Idempotent."""
        if self._zones.pop(tenant, None) is not None and (known := self._tenants.get(tenant)) is not None:
            known.answers.told(Zone(TenantContents(), domain=self._around.domain))

    async def close(self) -> None:
        """Let go of everything. Raises NotUndone."""
        undo = Undo("the tenants' DNS")
        for tenant in list(self._tenants):
            await undo.step(tenant, self.go(tenant))
        undo.finish()
