"""The packet filters of a router and of its node.

A guard is a rule that drops something and counts what it drops; its comment is its name, and docs/tenants.md
lists them. What changes with every pod is an :class:`ElementSet`, the rest is text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from ipaddress import IPv4Network, collapse_addresses

from orlop.tenantnet import services
from orlop.tenantnet.model import (
    BRIDGE,
    ROUTERS,
    TUNNEL,
    UPLINK,
    UPLINK_PREFIX,
    Balanced,
    Ground,
    Lease,
    LocalNetwork,
)
from orlop.tenantnet.tables import ElementSet, Table

TABLE = "orlop"
"""Of each family in a router's namespace, where nobody else has tables."""
NODE_TABLE = "orlop_tenants"
"""In the node's own namespace, family inet."""

QUESTIONS = "500/second burst 500 packets"
CALLS = "50/second burst 100 packets"
"""What one pod may ask the tenant's DNS, by datagrams and connections: what is more never wakes the agent."""

_LINK_LOCAL = "169.254.0.0/16"
_NEVER = ("0.0.0.0/8", "127.0.0.0/8", _LINK_LOCAL, "224.0.0.0/3")
"""What is no place to send to beyond a router: this host, its links, groups, and what is reserved."""


def _ranges(name: str, elements: Iterable[str]) -> str:
    members = ", ".join(elements)
    filled = f"    elements = {{ {members} }}\n" if members else ""
    return f"  set {name} {{\n    type ipv4_addr\n    flags interval\n    auto-merge\n{filled}  }}\n"


def _chain(name: str, hook: str, *rules: str) -> str:
    lines = "".join(f"    {rule}\n" for rule in rules)
    return f"  chain {name} {{\n    {hook}\n{lines}  }}\n"


def _guard(match: str, name: str) -> str:
    return f'{match} counter drop comment "{name}"'.lstrip()


def _of_cluster(ground: Ground) -> str:
    """The sets of what is the cluster's own: its nodes, and the ranges that no tenant reaches."""
    nodes = _ranges("nodes", sorted({ground.address, *ground.nodes}))
    return nodes + _ranges("closed", sorted({ground.aliases, *ground.closed}))


def router(network: LocalNetwork, ground: Ground, leases: Sequence[Lease]) -> tuple[Table, ...]:
    """All tables of a tenant's router."""
    return _of_frames(leases), _of_packets(network, ground, leases)


def _of_frames(leases: Sequence[Lease]) -> Table:
    """What a pod may send at all: IPv4 and ARP, under its own MAC and its own address."""
    own = ElementSet(
        name="pods",
        types=("ifname", "ether_addr", "ipv4_addr"),
        elements=frozenset((lease.port, lease.mac, lease.address) for lease in leases),
    )
    body = _chain(
        "prerouting",
        "type filter hook prerouting priority -300",
        "iifname . ether saddr . ip saddr @pods accept",
        "iifname . ether saddr . arp saddr ip @pods iifname . arp saddr ether . arp saddr ip @pods accept",
        _guard("ether type ip", "own-address"),
        _guard("ether type arp", "own-arp"),
        _guard("ether type != { ip, arp }", "only-ipv4"),
    )
    return Table(family="bridge", name=TABLE, body=body, sets=(own,))


def _addresses(name: str, pairs: Iterable[tuple[str, str]]) -> ElementSet:
    """A map of addresses; of pairs with one key the last counts."""
    return ElementSet(
        name=name, types=("ipv4_addr",), to=("ipv4_addr",), elements=frozenset(dict(pairs).items())
    )


def _members(name: str, addresses: Iterable[str]) -> ElementSet:
    """A set of addresses."""
    return ElementSet(name=name, types=("ipv4_addr",), elements=frozenset((one,) for one in addresses))


def _sources(balanced: Iterable[Balanced]) -> str:
    """Who may call which address: no two networks of one address may overlap in such a set."""
    allowed = {one.address: map(IPv4Network, one.sources or ()) for one in balanced}
    elements = ", ".join(
        f"{address} . {network}"
        for address, networks in allowed.items()
        for network in collapse_addresses(networks)
    )
    filled = f"    elements = {{ {elements} }}\n" if elements else ""
    return f"  set sources {{\n    type ipv4_addr . ipv4_addr\n    flags interval\n{filled}  }}\n"


def _of_packets(network: LocalNetwork, ground: Ground, leases: Sequence[Lease]) -> Table:
    here = [(lease.alias, lease.address) for lease in leases]
    by_pod = {lease.uid: lease.address for lease in leases if lease.uid}
    pairs = [(one.address, by_pod[one.pod]) for one in network.floating if one.pod in by_pod]
    by_alias = _addresses("by_alias", [*network.elsewhere, *here, *pairs])
    floating = _addresses("floating", [(address, outside) for outside, address in reversed(pairs)])
    aliases = _addresses("aliases", [(address, alias) for alias, address in here])
    itself = ElementSet(
        name="itself",
        types=("ipv4_addr", "ipv4_addr"),
        to=("ipv4_addr",),
        elements=frozenset((address, address, alias) for alias, address in here),
    )
    balanced = _members("balanced", [one.address for one in network.balanced])
    limited = _members("limited", [one.address for one in network.balanced if one.sources is not None])
    body = _sources(network.balanced)
    body += _ranges("remote", [peer.block for peer in network.peers])
    body += _of_cluster(ground)
    body += _ranges("allow", network.allow)
    body += _ranges("deny", network.deny)
    body += _chain(
        "raw",
        "type filter hook prerouting priority raw",
        _guard(f"iifname {TUNNEL} ip saddr != @remote", "tunnel-source"),
        _guard(f"iifname {TUNNEL} ip daddr != {network.block}", "tunnel-destination"),
        _guard(f"iifname {UPLINK} ip daddr @limited ip daddr . ip saddr != @sources", "source-ranges"),
    )
    body += services.chains()
    body += _chain(
        "prerouting",
        "type nat hook prerouting priority dstnat",
        f"iifname {BRIDGE} jump {services.CHAIN}",
        f"iifname {UPLINK} ip daddr @balanced jump {services.CHAIN}",
        f"iifname {{ {BRIDGE}, {UPLINK} }} dnat to ip daddr map @by_alias",
    )
    body += _chain(
        "postrouting",
        "type nat hook postrouting priority srcnat",
        f"oifname {UPLINK} snat to ip saddr map @floating",
        f"oifname {UPLINK} snat to ip saddr map @aliases",
        # Who calls itself, by its alias or a Service, is seen under its alias: nobody hears from itself.
        f"oifname {BRIDGE} ct status dnat snat to ip saddr . ip daddr map @itself",
        # Who calls from outside and is led to another node is seen as this router: answers come back here.
        f"oifname {TUNNEL} ct status dnat ip saddr != {network.block} snat to {network.gateway}",
    )
    body += _egress(network) + _forward(network) + _own(ground)
    sets = (by_alias, floating, aliases, itself, balanced, limited, *services.sets(network.services))
    return Table(family="ip", name=TABLE, body=body, sets=sets)


def _egress(network: LocalNetwork) -> str:
    """What goes to the node, of pods and of the router itself, which asks the tenant's resolvers."""
    return _chain(
        "egress",
        "",
        _guard(f"ip daddr {network.cidr}", "own-range"),
        _guard("ip daddr @nodes", "nodes"),
        _guard("ip daddr @closed", "cluster"),
        _guard(f"ip daddr {{ {', '.join(_NEVER)} }}", "link-local"),
        _guard("ip daddr @deny", "egress-deny"),
        _guard("ip daddr != @allow", "egress-allow"),
    )


def _own(ground: Ground) -> str:
    """What the router itself gets and sends: questions about names, and those to the tenant's resolvers."""
    dns = f"{{ {', '.join(ground.dns)} }}"
    asked = f"iifname {BRIDGE} ip daddr {dns}"
    into, out, body = [], [], ""
    if ground.dns:
        each = "ip saddr limit rate over"
        body += _callers("askers") + _callers("callers")
        # Without connection tracking: the questions of one pod would fill the table of all.
        body += _chain(
            "questions", "type filter hook prerouting priority raw", f"{asked} udp dport 53 notrack"
        )
        body += _chain(
            "answers", "type filter hook output priority raw", f"ip saddr {dns} udp sport 53 notrack"
        )
        into = [
            _guard(f"{asked} udp dport 53 update @askers {{ {each} {QUESTIONS} }}", "dns-questions"),
            f"{asked} udp dport 53 accept",
            _guard(
                f"{asked} tcp dport 53 ct state new update @callers {{ {each} {CALLS} }}", "dns-connections"
            ),
            f"{asked} tcp dport 53 accept",
        ]
        # While no agent listens a pod hears nothing and asks again, where it would give up at a refusal.
        out = [_guard(f"ip saddr {dns} icmp type destination-unreachable", "dns-silence")]
    body += _chain(
        "input",
        "type filter hook input priority filter",
        *into,
        "ct state established,related accept",
        f"iifname {BRIDGE} icmp type echo-request accept",
        _guard("", "router"),
    )
    body += _chain(
        "output",
        "type filter hook output priority filter",
        *out,
        "ct state established,related accept",
        f"oifname {UPLINK} jump egress",
    )
    return body


def _callers(name: str) -> str:
    """A set that remembers for a while how much each pod has asked."""
    lines = ("type ipv4_addr", "size 65536", "flags dynamic,timeout", "timeout 1m")
    return f"  set {name} {{\n" + "".join(f"    {line}\n" for line in lines) + "  }\n"


def _forward(network: LocalNetwork) -> str:
    out, into = f"iifname {BRIDGE} oifname {UPLINK}", f"iifname {UPLINK} oifname {{ {BRIDGE}, {TUNNEL} }}"
    return _chain(
        "forward",
        "type filter hook forward priority filter",
        "ct state established,related accept",
        _guard("ct state invalid", "invalid"),
        services.REFUSAL,
        f"iifname {BRIDGE} oifname {{ {BRIDGE}, {TUNNEL} }} accept",
        f"iifname {TUNNEL} oifname {BRIDGE} accept",
        f"{out} jump egress",
        f"{out} accept",
        _guard(f"{into} ip saddr @closed", "foreign-pods"),
        f"{into} ct status dnat accept",
        _guard("", "closed"),
    )


def node(ground: Ground, outside: Collection[str] = ()) -> tuple[Table, ...]:
    """The table of the node itself. Which alias is behind which link is in its routes.

    ``outside`` are the addresses of the world's that lead to routers here.
    """
    tenants, to_tenants = f'iifname "{UPLINK_PREFIX}*"', f'oifname "{UPLINK_PREFIX}*"'
    body = _of_cluster(ground)
    body += _chain(
        "raw",
        "type filter hook prerouting priority raw",
        _guard(f"{tenants} meta nfproto ipv6", "uplink-ipv6"),
        _guard(f"{tenants} fib saddr . iif oif missing", "uplink-source"),
    )
    body += _chain(
        "input",
        "type filter hook input priority filter",
        f"{tenants} ct state established,related accept",
        _guard(tenants, "node"),
        _guard(f"udp dport {ground.port} ip saddr != @nodes", "vxlan-peers"),
    )
    body += _chain(
        "forward",
        "type filter hook forward priority filter",
        _guard(
            f"{tenants} {to_tenants} ip daddr != @outside ct state != {{ established, related }}",
            "between-tenants",
        ),
        _guard(f"udp dport {ground.port} ip daddr @nodes", "vxlan-forwarded"),
    )
    body += _chain(
        "postrouting",
        "type nat hook postrouting priority srcnat",
        # Who calls another tenant's address of the world's is seen as from anywhere in the world.
        f"ip saddr {ground.aliases} ip daddr @outside snat ip to {ground.address}",
        f"ip saddr {{ {ground.aliases}, {ROUTERS} }} ip daddr != @closed masquerade",
    )
    return (Table(family="inet", name=NODE_TABLE, body=body, sets=(_members("outside", outside),)),)
