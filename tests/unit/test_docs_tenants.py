"""docs/tenants.md and its drawing name every guard that there is."""

from __future__ import annotations

import re
from pathlib import Path

from orlop.tenantnet import rules, tables
from orlop.tenantnet.model import Ground, LocalNetwork

DOCS = Path(__file__).parents[2] / "docs"


def _guards() -> set[str]:
    ground = Ground(address="192.0.2.11", aliases="10.64.1.128/25", dns=("10.96.0.10",))
    network = LocalNetwork(name="blue", vni=42, cidr="10.0.0.0/16", block="10.0.1.0/24")
    text = tables.text(rules.router(network, ground, ()) + rules.node(ground))
    return set(re.findall(r'comment "([^"]+)"', text))


def test_every_guard_is_described() -> None:
    text = (DOCS / "tenants.md").read_text()
    table = text[text.index("### Guards") : text.index("### The agent of a node")]
    assert _guards() <= set(re.findall(r"`([a-z0-9-]+)`", table))


def test_every_guard_is_in_the_drawing() -> None:
    drawn = " ".join(re.findall(r'class="guard"[^>]*>([^<]+)<', (DOCS / "tenants.svg").read_text())).split()
    assert _guards() - {"uplink-ipv6"} <= set(drawn)
