"""A VM's end of a pod's network: a tap, joined to the interface that the CNI plug-ins made.

The tap is made before anything is known of the pod, so that a waiting VM can own it. Once the
plug-ins have run, every frame that arrives at the pod's interface is sent to the tap and back
(tc, ingress redirect): the VM's interface takes the other's MAC, addresses and routes. The
addresses stay on the namespace's interface as well, because the plug-ins' CHECK looks for them
there; its own stack sees no frame any more.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from orlop.errors import FailedPrecondition, Internal
from orlop.host import netns as namespaces
from orlop.linux.netlink import Netlink
from orlop.linux.tap import open_tap
from orlop.net import links
from orlop.net.model import InterfaceCounters
from orlop.wire.values import GuestAddress, Interface


async def create_tap(netns: Path, name: str = "tap0") -> int:
    """Make a tap in the network namespace and return its descriptor, which the caller owns.

    The tap vanishes with the last copy of the descriptor. Raises FailedPrecondition when the
    host has no tun device, OSError otherwise.
    """

    def make() -> int:
        try:
            descriptor = open_tap(name)
        except FileNotFoundError as error:
            raise FailedPrecondition("/dev/net/tun is missing: load the kernel module tun") from error
        try:
            _silence(name)
            with Netlink() as netlink:
                links.set_up(netlink, links.find(netlink, name).index)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    return await namespaces.within(netns, make, unwanted=os.close)


def _silence(name: str) -> None:
    """Keep the namespace's own IPv6 stack from talking to the guest over the tap."""
    with suppress(FileNotFoundError):
        Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1", encoding="ascii")


async def move_tap(netns: Path, target: Path, name: str = "tap0") -> None:
    """Move a tap, in use or not, into another network namespace.

    Raises FailedPrecondition when there is an interface of that name already, OSError otherwise.
    """

    def move() -> None:
        namespace = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with Netlink() as netlink:
                links.move(netlink, links.find(netlink, name).index, namespace)
        except FileExistsError as error:
            raise FailedPrecondition(f"{target} has an interface {name}: another VM is in it") from error
        finally:
            os.close(namespace)

    def set_up() -> None:
        _silence(name)
        with Netlink() as netlink:
            links.set_up(netlink, links.find(netlink, name).index)

    await namespaces.within(netns, move)
    await namespaces.within(target, set_up)


async def described(netns: Path, interface: str, at: GuestAddress) -> Interface:
    """What the VM's own interface, which its guest finds ``at``, must be given to be the pod's ``interface``.

    Raises Internal naming what failed.
    """

    def look() -> Interface:
        with Netlink() as netlink:
            outside = links.find(netlink, interface)
            return Interface(
                at=at,
                name=interface,
                mac=outside.mac,
                mtu=outside.mtu,
                addresses=links.addresses(netlink, outside.index),
                routes=links.routes(netlink, outside.index),
                neighbours=links.neighbours(netlink, outside.index),
            )

    try:
        return await namespaces.within(netns, look)
    except OSError as error:
        raise Internal(f"cannot read what {interface} in {netns} has: {error.strerror}") from error


async def join_tap(netns: Path, interface: str, *, tap: str = "tap0") -> None:
    """Join the pod's ``interface`` to ``tap``, both ways. Raises Internal naming what failed."""

    def join() -> None:
        with Netlink() as netlink:
            outside, inside = links.find(netlink, interface), links.find(netlink, tap)
            links.set_up(netlink, inside.index, mtu=outside.mtu)
            links.redirect(netlink, outside.index, inside.index)
            links.redirect(netlink, inside.index, outside.index)

    try:
        await namespaces.within(netns, join)
    except OSError as error:
        raise Internal(f"cannot join {interface} to {tap} in {netns}: {error.strerror}") from error


async def interfaces(netns: Path) -> tuple[str, ...]:
    """Names of the pod's interfaces, without loopback and taps, in the order they were made."""

    def look() -> tuple[str, ...]:
        with Netlink() as netlink:
            found = sorted(links.links(netlink), key=lambda link: link.index)
        return tuple(link.name for link in found if link.mac and not is_local(link))

    return await namespaces.within(netns, look)


def is_local(link: links.Link) -> bool:
    """Whether an interface is no way out of its namespace: loopback, a tap, or switched off."""
    return link.name == "lo" or link.name.startswith("tap") or not link.up


async def interface_stats(netns: Path, name: str = "") -> tuple[InterfaceCounters, ...]:
    """Counters of the interface named, or of all but loopback and taps.

    Received is what the pod received. Raises NotFound when the namespace is gone.
    """

    def look() -> tuple[InterfaceCounters, ...]:
        with Netlink() as netlink:
            found = links.links(netlink)
        wanted = [link for link in found if (link.name == name if name else not is_local(link))]
        return tuple(link.counters for link in wanted)

    return await namespaces.within(netns, look)
