"""What went through a router and what its guards have stopped: read when somebody asks, never kept."""

from __future__ import annotations

from pathlib import Path

from orlop.host import netns
from orlop.linux import netlink, nftcounters
from orlop.linux.netlink import Netlink
from orlop.net import links
from orlop.net.model import InterfaceCounters
from orlop.tenantnet.guards import GUARDS
from orlop.tenantnet.model import TUNNEL, UPLINK
from orlop.value import Value

_CONNECTIONS = Path("/proc/sys/net/netfilter/nf_conntrack_count")
_MOST = Path("/proc/sys/net/netfilter/nf_conntrack_max")


class RouterFigures(Value, frozen=True):
    """A router's counters since it was made. ``uplink`` and ``tunnel`` count as the router sees it.

    ``drops`` are packets by guard, since that guard's table was written. ``connections`` of at most ``most``
    are in its table; 0 before its first connection.
    """

    uplink: InterfaceCounters = InterfaceCounters(name=UPLINK)
    tunnel: InterfaceCounters = InterfaceCounters(name=TUNNEL)
    drops: tuple[tuple[str, int], ...] = ()
    connections: int = 0
    most: int = 0


async def of_router(router: Path) -> RouterFigures:
    """Those of the router whose network namespace is there. Raises NotFound, OSError."""
    return await netns.within(router, _figures)


async def drops(place: Path) -> tuple[tuple[str, int], ...]:
    """What the guards in a network namespace have dropped, the node's own for example. Raises OSError."""
    return await netns.within(place, _drops)


def _figures() -> RouterFigures:
    with Netlink() as kernel:
        found = {link.name: link.counters for link in links.links(kernel)}
    return RouterFigures(
        uplink=found.get(UPLINK, InterfaceCounters(name=UPLINK)),
        tunnel=found.get(TUNNEL, InterfaceCounters(name=TUNNEL)),
        drops=_drops(),
        connections=_number(_CONNECTIONS),
        most=_number(_MOST),
    )


def _drops() -> tuple[tuple[str, int], ...]:
    with Netlink(netlink.NETFILTER) as kernel:
        found = nftcounters.counted(kernel)
    return tuple(sorted((one.comment, one.packets) for one in found if one.comment in GUARDS))


def _number(path: Path) -> int:
    try:
        return int(path.read_text())
    except FileNotFoundError:
        return 0
