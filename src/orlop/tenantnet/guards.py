"""What each guard is for, in a sentence: docs/tenants.md has them as a table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

GUARDS: Final[Mapping[str, str]] = {
    "own-address": "a pod sends under its own MAC and its own address",
    "own-arp": "a pod says by ARP nothing but its own MAC and address",
    "only-ipv4": "pods speak IPv4 alone",
    "rp_filter": "a source has to be behind the link that it comes from",
    "tunnel-source": "another node sends from the blocks of nodes",
    "tunnel-destination": "another node sends to this node's block",
    "no-endpoint": "the Service has no endpoint that is ready: a call is refused",
    "source-ranges": "the Service lets others call its address: see its loadBalancerSourceRanges",
    "own-range": "what is of the tenant's own range and in no node's block does not leave the network",
    "nodes": "pods of tenants do not reach addresses of nodes",
    "cluster": "pods of tenants do not reach other pods of the cluster, aliases of others, or its Services",
    "link-local": "pods of tenants reach no metadata service, and nothing that no router forwards",
    "egress-deny": "the tenant denies this address: see network.egress.deny",
    "egress-allow": "the tenant does not allow this address: see network.egress.allow",
    "foreign-pods": "other pods do not reach pods of a tenant",
    "router": "pods do not reach their router itself, but for ping",
    "dns-questions": "one pod asks for no more names in a second than a few hundred",
    "dns-connections": "one pod makes no more connections to ask for names in a second than some dozens",
    "dns-silence": "a pod that asks while no agent listens hears nothing, and asks again",
    "closed": "nothing else is forwarded",
    "invalid": "packets that belong to no connection and begin none",
    "uplink-source": "a router sends under the aliases of its pods alone",
    "uplink-ipv6": "routers speak IPv4 alone",
    "node": "pods of tenants do not reach ports of their node",
    "between-tenants": "routers do not reach one another",
    "vxlan-peers": "VXLAN comes from nodes alone",
    "vxlan-forwarded": "a node forwards nobody's VXLAN to a node",
}
"""By the comment that the rule has in ``nft list ruleset``; ``rp_filter`` is a setting."""
