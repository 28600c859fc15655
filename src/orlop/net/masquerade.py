"""Let pods of a network reach the world: one nftables table for all of them, made once.

The table is replaced as a whole in one transaction, so doing it again is harmless.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from orlop.errors import FailedPrecondition, NotFound, OrlopError
from orlop.host import process

_PREFIX = "orlop_"
_LOCAL = {4: "224.0.0.0/4", 6: "ff00::/8"}
_FAMILY = {4: "ip", 6: "ip6"}


def table(network: str) -> str:
    """The table of the network of that name."""
    return _PREFIX + "".join(c if c.isascii() and c.isalnum() else "_" for c in network)[:100]


def ruleset(name: str, subnets: Iterable[str]) -> str:
    """The nft(8) commands that masquerade what leaves ``subnets``; none of these clear the table."""
    networks = [ipaddress.ip_network(subnet) for subnet in subnets]
    rules = "".join(
        f"    {_FAMILY[network.version]} saddr {network} {_FAMILY[network.version]} daddr != "
        f"{{ {network}, {_LOCAL[network.version]} }} masquerade\n"
        for network in networks
    )
    chain = f"  chain postrouting {{\n    type nat hook postrouting priority srcnat;\n{rules}  }}\n"
    return f"table inet {name}\ndelete table inet {name}\n" + (
        f"table inet {name} {{\n{chain}}}\n" if networks else ""
    )


async def apply(name: str, subnets: Iterable[str]) -> None:
    """Put the rules of the network called ``name`` in place.

    Raises FailedPrecondition when nft is missing or refuses.

    Where another program has closed the host for forwarded traffic (Docker does), the subnets are
    let through.
    """
    networks = tuple(subnets)
    try:
        await process.run(["nft", "-f", "-"], input=ruleset(table(name), networks).encode(), timeout=20)
        for network in networks:
            await _let_through(network)
    except OrlopError as error:
        raise FailedPrecondition(f"pods cannot be given access to outside networks: {error}") from error


async def _let_through(network: str) -> None:
    """Accept what comes from and goes to ``network`` if everything else that is forwarded is dropped."""
    tool = "iptables" if ipaddress.ip_network(network).version == 4 else "ip6tables"
    try:
        policy = await process.run([tool, "--wait", "--list-rules", "FORWARD"], check=False, timeout=20)
    except NotFound:
        return  # then nobody has used it to close the host either
    if b"--policy FORWARD DROP" not in policy.stdout and b"-P FORWARD DROP" not in policy.stdout:
        return
    for direction in ("--source", "--destination"):
        rule = ["FORWARD", direction, network, "--jump", "ACCEPT", "--match", "comment", "--comment", "orlop"]
        known = await process.run([tool, "--wait", "--check", *rule], check=False, timeout=20)
        if known.returncode != 0:
            await process.run([tool, "--wait", "--insert", *rule], timeout=20)
