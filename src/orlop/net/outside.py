"""Network namespaces that somebody else made: what is in them is used and left as it was."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from orlop.errors import FailedPrecondition, NotFound
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
            f"the network namespace has the interfaces {', '.join(sorted(found))}, and a VM has one"
        )
    return found[0] if found else ""


async def check_free(netns: Path, interface: str) -> None:
    """FailedPrecondition when what arrives at the interface goes elsewhere already."""

    def look() -> bool:
        with Netlink() as netlink:
            return links.has_ingress(netlink, links.find(netlink, interface).index)

    if await namespaces.within(netns, look):
        raise FailedPrecondition(
            f"what arrives at {interface} of the network namespace goes elsewhere already"
        )


async def part(netns: Path, interface: str) -> None:
    """Give an interface that was joined to a tap back to its namespace. Idempotent."""

    def undo() -> None:
        with Netlink() as netlink, suppress(OSError):
            links.unredirect(netlink, links.find(netlink, interface).index)

    with suppress(NotFound):
        await namespaces.within(netns, undo)
