"""Each attack fails at its guard; with that one taken away at the next; with all taken away it succeeds.

The trace says the same of it beforehand. A guard counts what it drops, so that a test need not wait for what
must not come.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from orlop.tenantnet.model import BRIDGE
from tests.tenants.attacks import (
    ATTACKS,
    EXPERIMENT,
    PAYLOAD,
    REVERSE_PATH,
    Attack,
    Guard,
    attempt,
    ethernet,
    raw,
)
from tests.tenants.test_names import NAMES_GUARDS
from tests.tenants.told import guards_told
from tests.tenants.world import TENANTS, Guards, World, command, eventually, frames, inside, run

_DISCARDED = "IPReversePathFilter"


class Wall:
    """A guard where it stands: what it dropped, and life without it."""

    def __init__(self, world: World, guard: Guard) -> None:
        tenant, number, self.name = guard
        node = world.nodes[number]
        self._place = node.router(tenant) if tenant else node.place
        self._guards = Guards(self._place)

    def dropped(self) -> int:
        if self.name != REVERSE_PATH:
            return self._guards.dropped(self.name)

        def look() -> int:
            names, values = Path("/proc/thread-self/net/netstat").read_text().splitlines()[:2]
            return int(values.split()[names.split().index(_DISCARDED)])

        return inside(self._place, look)

    def take_away(self) -> None:
        if self.name != REVERSE_PATH:
            self._guards.take_away(self.name)
            return

        def off() -> None:
            for setting in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"):
                setting.write_text("0")

        inside(self._place, off)


@contextmanager
def _restored(world: World, attack: Attack | None = None) -> Iterator[None]:
    """With the Service that an attack goes by, until the block ends; then everything as it was."""
    try:
        if attack is not None:
            world.serve(attack.tenant, *attack.services)
            if attack.balanced:
                world.balance(attack.tenant, *attack.balanced)
        yield
    finally:
        for tenant in TENANTS:
            world.serve(tenant)
            world.balance(tenant)
        for node in world.nodes.values():
            run(node.settle())


def _more(wall: Wall, before: int) -> bool:
    return wall.dropped() > before


def _came(heard: socket.socket) -> bool:
    """Whether the payload is among what has come, without waiting."""
    heard.setblocking(False)
    while True:
        try:
            if PAYLOAD in heard.recv(4096):
                return True
        except BlockingIOError:
            return False


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_fails_at_each_of_its_guards(two_nodes: World, name: str) -> None:
    attack: Attack = ATTACKS[name]
    with _restored(two_nodes, attack), attack.listen(two_nodes) as heard:
        assert guards_told(two_nodes, attack) == attack.guards
        for guard in attack.guards:
            wall = Wall(two_nodes, guard)
            dropped = partial(_more, wall, wall.dropped())
            attempt(two_nodes, attack)
            eventually(dropped, f"{name} does not meet {guard}")
            assert not _came(heard), f"{name} has passed {guard}"
            wall.take_away()
        attempt(two_nodes, attack)
        eventually(lambda: _came(heard), f"{name} fails though nobody guards: the test shows nothing")


def test_every_guard_is_tried(two_nodes: World) -> None:
    found = {name for node in two_nodes.nodes.values() for name in node.guards().names()}
    found |= {name for tenant in ("blue", "green") for name in two_nodes.nodes[1].guards(tenant).names()}
    tried = {name for attack in ATTACKS.values() for _, _, name in attack.guards}
    # Nothing but a broken connection tracking makes such packets.
    untried = found - tried - {"invalid", "uplink-ipv6"}
    assert untried == set(NAMES_GUARDS)  # which test_names.py tries
    assert tried - found == {REVERSE_PATH}


def test_what_a_pod_says_to_all_is_heard_by_no_other(two_nodes: World) -> None:
    """Ports of one router are parted, even where the packet filter lets something through."""
    node, one = two_nodes.nodes[1], two_nodes.pods["blue", 1, 2]
    other = two_nodes.pods["blue", 1, 3]
    router = node.router("blue")
    said = ethernet("ff:ff:ff:ff:ff:ff", one.mac, EXPERIMENT, PAYLOAD)
    open_ports = [("isolated", "off"), ("bcast_flood", "on")]

    def shout() -> None:
        inside(Path(one.netns), lambda: raw(said)(two_nodes))

    listening = (frames(Path(other.netns), "eth0", EXPERIMENT), frames(router, BRIDGE, EXPERIMENT))
    with _restored(two_nodes), listening[0] as heard, listening[1] as came:
        node.guards("blue").take_away("only-ipv4")
        shout()
        # The bridge hands it to its ports before it takes it itself.
        assert PAYLOAD in came.recv(4096)
        assert not _came(heard)
        for port in (one.port, other.port):
            for name, value in open_ports:
                command(router, "bridge", "link", "set", "dev", port, name, value)
        shout()
        eventually(lambda: _came(heard), "it is not heard even by an open port")
    for port in (one.port, other.port):
        for name, value in (("isolated", "on"), ("bcast_flood", "off")):
            command(router, "bridge", "link", "set", "dev", port, name, value)
