"""What pods were given, on disk before it is in the kernel.

A record is one small file, and all that DEL needs: a pod goes whether or not the API server answers.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

import msgspec

from orlop.errors import ResourceExhausted
from orlop.host import files
from orlop.tenantnet.model import Lease, LocalNetwork
from orlop.value import UNREADABLE, Value

log = logging.getLogger(__name__)

V = TypeVar("V", bound=Value)


class Attempt(Value, frozen=True):
    """The interface that a runtime wants for a pod; ``namespace`` and ``pod`` are Kubernetes' names."""

    container: str
    interface: str
    netns: str
    namespace: str = ""
    pod: str = ""
    uid: str = ""


class LeaseRecords:
    """The leases of a node, and the networks of the routers that stand on it."""

    def __init__(self, directory: Path) -> None:
        self._leases_in, self._networks_in = directory / "leases", directory / "routers"
        for place in (self._leases_in, self._networks_in):
            place.mkdir(parents=True, exist_ok=True)
            # What was being written aside when its writer was killed.
            for aside in place.glob(".*"):
                aside.unlink()
        self._leases = {(one.container, one.interface): one for one in _load(self._leases_in, Lease)}
        self._networks = {one.name: one for one in _load(self._networks_in, LocalNetwork)}
        self._last: dict[str, IPv4Address] = {}

    @property
    def leases(self) -> list[Lease]:
        """All leases."""
        return list(self._leases.values())

    @property
    def networks(self) -> list[LocalNetwork]:
        """The network of each router that may stand here, as it was last wanted."""
        return list(self._networks.values())

    def of(self, tenant: str) -> list[Lease]:
        """Those of a tenant's pods."""
        return [one for one in self._leases.values() if one.tenant == tenant]

    def find(self, container: str, interface: str) -> Lease | None:
        """That of an interface."""
        return self._leases.get((container, interface))

    def network(self, tenant: str) -> LocalNetwork | None:
        """The network of a tenant whose router may stand here."""
        return self._networks.get(tenant)

    def take(self, attempt: Attempt, network: LocalNetwork, aliases: str) -> Lease:
        """Give an interface an address and an alias that no other has. Raises ResourceExhausted, OSError."""
        gateway = IPv4Address(network.gateway)
        lease = Lease(
            container=attempt.container,
            interface=attempt.interface,
            netns=attempt.netns,
            tenant=network.name,
            vni=network.vni,
            address=self._free(
                network.block,
                {gateway, *(IPv4Address(one.address) for one in self.of(network.name))},
                f"{network.name}/{network.block}",
            ),
            alias=self._free(aliases, {IPv4Address(one.alias) for one in self.leases}, aliases),
            namespace=attempt.namespace,
            pod=attempt.pod,
            uid=attempt.uid,
        )
        files.save(self._lease_path(lease), msgspec.json.encode(lease))
        self._leases[lease.container, lease.interface] = lease
        return lease

    def _free(self, block: str, used: set[IPv4Address], key: str) -> str:
        """The next free address after the last one given: what still speaks to an old pod meets nobody."""
        network = IPv4Network(block)
        first, size = int(network.network_address) + 1, max(network.num_addresses - 2, 1)
        begin = int(self._last.get(key, max(used, default=network.network_address))) + 1
        for step in range(size):
            address = IPv4Address(first + (begin - first + step) % size)
            if address not in used:
                self._last[key] = address
                return str(address)
        raise ResourceExhausted(f"all addresses of {block} are taken: the node needs a larger range")

    def forget(self, lease: Lease) -> None:
        """Give it back. Idempotent. Raises OSError."""
        self._lease_path(lease).unlink(missing_ok=True)
        self._leases.pop((lease.container, lease.interface), None)

    def stand(self, network: LocalNetwork) -> None:
        """Remember that the tenant's router may stand here. Raises OSError.

        What changes often is remembered in memory alone: an agent that starts is told of it.
        """
        former = self._networks.get(network.name)
        if former is None or former.frame != network.frame:
            files.save(self._network_path(network.name), msgspec.json.encode(network.frame))
        self._networks[network.name] = network

    def gone(self, tenant: str) -> None:
        """Forget a router. Idempotent. Raises OSError."""
        self._network_path(tenant).unlink(missing_ok=True)
        self._networks.pop(tenant, None)

    def _lease_path(self, lease: Lease) -> Path:
        return self._leases_in / f"{lease.port}.json"

    def _network_path(self, tenant: str) -> Path:
        return self._networks_in / f"{tenant}.json"


def _load(directory: Path, kind: type[V]) -> Iterable[V]:
    """All records of a kind. One that cannot be read is logged: another version made it, or somebody."""
    for path in sorted(directory.glob("[!.]*.json")):
        try:
            with suppress(FileNotFoundError):
                yield msgspec.json.decode(path.read_bytes(), type=kind)
        except UNREADABLE as error:
            log.error("the record %s cannot be read: %s", path, error)
