"""Tells the neighbours of a pod's addresses that they have a new owner.

Addresses come round: a node that has had a few hundred pods gives the next one an address that the kernel
still knows by the MAC of a pod that is gone. Until it has found out, it sends there: for eight seconds, or
for as long as connections that fail keep the entry alive. A probe of the kubelet then restarts a healthy
container.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from orlop.host import netns as namespaces
from orlop.host import threads
from orlop.linux.netlink import Netlink
from orlop.net import links

log = logging.getLogger(__name__)

_ETHERNET = struct.Struct("!6s6sH")
_ARP = struct.Struct("!HHBBH6s4s6s4s")
_IPV6 = struct.Struct("!IHBB16s16s")
_ADVERTISEMENT = struct.Struct("!BBHI16sBB6s")
_EVERYBODY = b"\xff" * 6
_ALL_NODES, _ALL_NODES_MAC = ipaddress.IPv6Address("ff02::1"), bytes.fromhex("333300000001")
_ICMPV6, _HOP_LIMIT = 58, 255
_OVERRIDE = 1 << 29


def frame(address: IPv4Address | IPv6Address, mac: bytes) -> bytes:
    """The Ethernet frame that says whose an address is.

    An ARP announcement (RFC 5227, 1.1), or an unsolicited neighbour advertisement that overrides what is
    known (RFC 4861, 7.2.6).
    """
    if isinstance(address, IPv4Address):
        own = address.packed
        said = _ARP.pack(1, 0x0800, 6, 4, 1, mac, own, bytes(6), own)
        return _ETHERNET.pack(_EVERYBODY, mac, 0x0806) + said
    own, to = address.packed, _ALL_NODES.packed
    size = _ADVERTISEMENT.size
    # The target's own link-layer address is option 2, in units of eight bytes.
    fields = (_OVERRIDE, own, 2, 1, mac)
    plain = _ADVERTISEMENT.pack(136, 0, 0, *fields)
    said = _ADVERTISEMENT.pack(
        136, 0, _checksum(own + to + struct.pack("!II", size, _ICMPV6) + plain), *fields
    )
    header = _IPV6.pack(6 << 28, size, _ICMPV6, _HOP_LIMIT, own, to)
    return _ETHERNET.pack(_ALL_NODES_MAC, mac, 0x86DD) + header + said


def _checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071) of an even number of bytes."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


async def announce(netns: Path, interface: str, ips: Sequence[str]) -> None:
    """Tell all on the link of a pod's ``interface`` that these addresses are its own.

    A network works without, only later for some: what cannot be said is logged. Raises NotFound when the
    namespace is gone.
    """

    def send() -> None:
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        try:
            link.bind((interface, 0))
            *_, mac = link.getsockname()
            if len(mac) != 6:
                return
            with Netlink() as kernel:
                own = links.addresses(kernel, links.find(kernel, interface).index)
            here = {ipaddress.ip_interface(address).ip for address in own}
            # One that the network translates is on no link.
            for ip in here & {ipaddress.ip_address(ip) for ip in ips}:
                link.send(frame(ip, mac))
        finally:
            # The kernel closes it when no processor can see it any more: a pod need not wait for that.
            threads.unheeded(link.close, name="orlop-announce")

    try:
        await namespaces.within(netns, send)
    except OSError as error:
        log.info("the addresses %s of %s were not announced: %s", ", ".join(ips), netns, error)
