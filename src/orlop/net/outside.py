"""Network namespaces that somebody else made: what is in them is used and left as it was."""

from __future__ import annotations

from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.host import netns as namespaces
from orlop.linux.netlink import Netlink
from orlop.net import links
from orlop.net.tap import is_local


async def addresses(netns: Path) -> tuple[str, ...]:
    """The addresses of its interfaces but loopback, IPv4 first. Raises NotFound."""

    def look() -> tuple[str, ...]:
        with Netlink() as netlink:
            found = sorted(links.links(netlink), key=lambda link: link.index)
            texts = [
                address.partition("/")[0]
                for link in found
                if not is_local(link)
                for address in links.addresses(netlink, link.index)
            ]
        return tuple(sorted(texts, key=lambda text: ":" in text))

    return await namespaces.within(netns, look)


async def interface(netns: Path) -> str:
    """The name of its one interface besides loopback, "" when it has none. Raises NotFound.

    FailedPrecondition when there are several: a virtual machine has one.
    """

    def look() -> list[str]:
        with Netlink() as netlink:
            return [link.name for link in links.links(netlink) if link.mac and not is_local(link)]

    found = await namespaces.within(netns, look)
    if len(found) > 1:
        raise FailedPrecondition(
            f"the network namespace {netns} has the interfaces {', '.join(sorted(found))}, and a VM has one"
        )
    return found[0] if found else ""
