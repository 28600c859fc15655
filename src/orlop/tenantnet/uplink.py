"""Addresses of the world's that a node answers for: it says that they are its own, and routes them on.

The node has none of them on a link, so that no program of it is reached by them. It answers ARP for them as a
proxy (arp(7), the flag of ``ip neighbour add proxy``), on the link on whose network they are.
"""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from orlop.errors import FailedPrecondition
from orlop.linux import netlink
from orlop.linux.netlink import Netlink, attribute, attributes
from orlop.net import announce, links
from orlop.net.links import Link
from orlop.tenantnet.devices import OURS
from orlop.tenantnet.model import UPLINK_PREFIX

log = logging.getLogger(__name__)

_DELNEIGH = 29
_NTF_PROXY = 0x08
_NDA_PROTOCOL = 12

Entry = tuple[int, str]
"""The index of a link, and an address that the node answers for there."""


def answer_for(kernel: Netlink, own: str, addresses: Iterable[str]) -> list[tuple[str, str]]:
    """Have the node answer for these addresses, and for none that we ever answered for besides.

    ``own`` is the node's address: what is on no link's network is answered for on its link. Returns the
    names of links and addresses that are new, which nobody has been told of. Raises OSError, and
    FailedPrecondition when no link has the node's address.
    """
    found = [link for link in links.links(kernel) if not link.name.startswith(UPLINK_PREFIX)]
    names = {link.index: link.name for link in found}
    networks = {
        link.index: [IPv4Interface(one) for one in links.addresses(kernel, link.index) if ":" not in one]
        for link in found
    }
    wanted = {(_link(found, networks, own, one), one) for one in addresses}
    there = _entries(kernel)
    for entry in there - wanted:
        _forget(kernel, entry)
    for index in {index for index, _ in wanted}:
        # Otherwise a proxy waits for up to a second: whoever has the address itself was to answer first.
        Path(f"/proc/sys/net/ipv4/neigh/{names[index]}/proxy_delay").write_text("0", encoding="ascii")
    new = sorted(wanted - there)
    for entry in new:
        kernel.change(netlink.NEWNEIGH, _proxy(entry), netlink.CREATE | netlink.REPLACE)
    return [(names[index], address) for index, address in new]


def _link(found: list[Link], networks: dict[int, list[IPv4Interface]], own: str, address: str) -> int:
    """The link on whose network an address is: that of the longest prefix, or the node's own."""
    best, longest = 0, -1
    for link in found:
        for one in networks[link.index]:
            near = IPv4Address(address) in one.network and one.network.prefixlen < 32
            bits = one.network.prefixlen if near else 0 if str(one.ip) == own else -1
            if bits > longest:
                best, longest = link.index, bits
    if longest < 0:
        raise FailedPrecondition(f"no interface of the node has its address {own}")
    return best


def _entries(kernel: Netlink) -> set[Entry]:
    """Those of ours: others may have some, too."""
    query = netlink.NEIGHBOUR.pack(socket.AF_INET, 0, 0, _NTF_PROXY, 0)
    found = set()
    for _, data in kernel.dump(netlink.GETNEIGH, query):
        _family, index, _state, flags, _kind = netlink.NEIGHBOUR.unpack_from(data)
        fields = attributes(data[netlink.NEIGHBOUR.size :])
        if flags & _NTF_PROXY and fields.get(_NDA_PROTOCOL) == bytes([OURS]):
            found.add((index, str(IPv4Address(fields[netlink.NDA_DST]))))
    return found


def _proxy(entry: Entry) -> bytes:
    index, address = entry
    head = netlink.NEIGHBOUR.pack(socket.AF_INET, index, 0, _NTF_PROXY, 0)
    body = attribute(netlink.NDA_DST, IPv4Address(address).packed)
    return head + body + attribute(_NDA_PROTOCOL, bytes([OURS]))


def _forget(kernel: Netlink, entry: Entry) -> None:
    try:
        kernel.change(_DELNEIGH, _proxy(entry))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


def tell(told: Iterable[tuple[str, str]]) -> None:
    """Say on their links that addresses are ours now: whoever knew them by another's MAC learns this one.

    They are reached without, only later by some: what cannot be said is logged.
    """
    for name, address in told:
        try:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as link:
                link.bind((name, 0))
                *_, mac = link.getsockname()
                if len(mac) == 6:
                    link.send(announce.frame(IPv4Address(address), mac))
        except OSError as error:
            log.info("that %s is here was not said on %s: %s", address, name, error)
