"""The values that the network room gives back."""

from __future__ import annotations

from typing import Protocol

from orlop.value import Value
from orlop.wire.values import Route


class PortMappingLike(Protocol):
    """A port of the host that leads to one of the pod."""

    @property
    def protocol(self) -> str:
        """ "tcp", "udp" or "sctp"."""
        ...

    @property
    def container_port(self) -> int:
        """Where the pod listens."""
        ...

    @property
    def host_port(self) -> int:
        """Where the host listens; 0 means no mapping."""
        ...

    @property
    def host_ip(self) -> str:
        """The host address it is limited to, or ""."""
        ...


class CniDns(Value, frozen=True):
    """Name servers that the network itself offers."""

    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    domain: str = ""


class NetworkResult(Value, frozen=True):
    """What attaching a pod gave: ``addresses`` in CIDR form, the primary family first."""

    name: str = "eth0"
    addresses: tuple[str, ...] = ()
    gateway: str = ""
    routes: tuple[Route, ...] = ()
    mac: str = ""
    mtu: int = 0
    dns: CniDns = CniDns()

    @property
    def ips(self) -> tuple[str, ...]:
        """The addresses without their prefix lengths."""
        return tuple(address.partition("/")[0] for address in self.addresses)


class InterfaceCounters(Value, frozen=True):
    """Counters of one interface."""

    name: str
    rx_bytes: int = 0
    rx_errors: int = 0
    tx_bytes: int = 0
    tx_errors: int = 0
    rx_packets: int = 0
    rx_dropped: int = 0
    tx_packets: int = 0
    tx_dropped: int = 0
