"""Let pods of a subnet reach the world: one nftables table for all of them, made once.

The table is replaced as a whole in one transaction, so doing it again is harmless.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from orlop.errors import FailedPrecondition, OrlopError
from orlop.host import process

TABLE = "orlop"
_LOCAL = {4: "224.0.0.0/4", 6: "ff00::/8"}
_FAMILY = {4: "ip", 6: "ip6"}


def ruleset(subnets: Iterable[str]) -> str:
    """The nft(8) commands that masquerade what leaves ``subnets``; an empty one clears the table."""
    networks = [ipaddress.ip_network(subnet) for subnet in subnets]
    rules = "".join(
        f"    {_FAMILY[network.version]} saddr {network} {_FAMILY[network.version]} daddr != "
        f"{{ {network}, {_LOCAL[network.version]} }} masquerade\n"
        for network in networks
    )
    chain = f"  chain postrouting {{\n    type nat hook postrouting priority srcnat;\n{rules}  }}\n"
    return f"table inet {TABLE}\ndelete table inet {TABLE}\n" + (
        f"table inet {TABLE} {{\n{chain}}}\n" if networks else ""
    )


async def apply(subnets: Iterable[str]) -> None:
    """Put the rules in place. Raises FailedPrecondition when nft is missing or refuses."""
    try:
        await process.run(["nft", "-f", "-"], input=ruleset(subnets).encode(), timeout=20)
    except OrlopError as error:
        raise FailedPrecondition(f"pods cannot be given access to outside networks: {error}") from error
