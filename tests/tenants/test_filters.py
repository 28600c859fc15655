"""Packet filters that are changed by elements: they are what nft(8) would have made of the whole."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from orlop.errors import FailedPrecondition
from orlop.host import process
from orlop.tenantnet.filters import Filters
from orlop.tenantnet.tables import ElementSet, Table
from tests.tenants.agents import Desk, desk, pod_namespace
from tests.tenants.world import Guards, World, command

CHAIN = "  chain forward {\n    type filter hook forward priority filter\n    counter drop\n  }\n"
FORMER = {
    ("ifname", "ether_addr", "ipv4_addr"): {("p-1", "06:6f:0a:00:01:02", "10.0.1.2")},
    ("ipv4_addr",): {("10.0.1.2",), ("10.0.1.3",)},
    ("ipv4_addr", "inet_proto", "inet_service"): {("10.96.0.9", "tcp", "80"), ("10.96.0.9", "udp", "53")},
    ("mark", "inet_service"): {("7", "443")},
}
LATER = {
    ("ifname", "ether_addr", "ipv4_addr"): {("p-" + "f" * 12, "06:6f:0a:00:01:09", "10.0.1.9")},
    ("ipv4_addr",): {(f"10.0.{number // 200}.{number % 200 + 3}",) for number in range(900)},
    ("ipv4_addr", "inet_proto", "inet_service"): {("10.96.0.9", "tcp", "80"), ("10.96.0.9", "sctp", "65535")},
    ("mark", "inet_service"): {("4294967295", "1")},
}
MAPS = (
    (("ipv4_addr",), ("ipv4_addr",), {("10.64.1.3", "10.0.1.3")}, {("10.64.1.3", "10.0.1.4")}),
    (
        ("ipv4_addr", "inet_service"),
        ("ipv4_addr", "inet_service"),
        {("10.96.0.9", "80", "10.0.1.2", "8080")},
        {("10.96.0.9", "80", "10.0.1.2", "8081"), ("10.96.0.10", "80", "10.0.2.2", "1")},
    ),
)


def _tables(*, later: bool, chain: str = CHAIN) -> tuple[Table, ...]:
    found = [
        ElementSet(name=f"set{number}", types=types, elements=frozenset((LATER if later else FORMER)[types]))
        for number, types in enumerate(FORMER)
    ]
    found += [
        ElementSet(name=f"map{number}", types=types, to=to, elements=frozenset(new if later else old))
        for number, (types, to, old, new) in enumerate(MAPS)
    ]
    families = {"ip": found, "inet": found[:1], "bridge": found[:1]}
    return tuple(
        Table(family=family, name="tried", body=chain, sets=tuple(sets)) for family, sets in families.items()
    )


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Path]:
    async with pod_namespace(tmp_path / "place") as one:
        yield one


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command lines of the child processes that the code under test has started."""
    found: list[str] = []
    run = process.run

    async def noted(argv: Any, *args: Any, **more: Any) -> Any:
        found.append(" ".join(map(str, argv)))
        return await run(argv, *args, **more)

    monkeypatch.setattr(process, "run", noted)
    return found


def _listed(place: Path) -> str:
    """The rules, with neither the order of elements nor what nft writes of counters."""
    lines = command(place, "nft", "list", "ruleset").replace(",", "\n").replace("{", "\n").replace("}", "\n")
    return "\n".join(sorted(line.strip() for line in lines.splitlines() if line.strip()))


async def test_elements_of_every_type_are_as_nft_would_write_them(place: Path, started: list[str]) -> None:
    filters = Filters()
    await filters.put(place, _tables(later=False))
    former = _listed(place)
    await filters.put(place, _tables(later=True))
    by_elements = _listed(place)
    await filters.put(place, _tables(later=False))
    assert _listed(place) == former
    assert len(started) == 1
    await Filters().put(place, _tables(later=True))
    assert _listed(place) == by_elements != former
    assert len(started) == 2


async def test_what_is_more_than_elements_is_written_as_a_whole(place: Path, started: list[str]) -> None:
    filters = Filters()
    await filters.put(place, _tables(later=False))
    await filters.put(place, _tables(later=False, chain=CHAIN.replace("drop", "accept")))
    assert len(started) == 2
    assert "accept" in command(place, "nft", "list", "ruleset")


@pytest.mark.parametrize("by_hand", ["flush ruleset", "flush set ip tried set1", "add table ip other"])
async def test_what_somebody_changed_by_hand_is_put_right(
    place: Path, started: list[str], by_hand: str
) -> None:
    filters = Filters()
    await filters.put(place, _tables(later=False))
    former = _listed(place)
    command(place, "nft", *by_hand.split())
    await filters.put(place, _tables(later=False))
    await filters.put(place, _tables(later=True))
    await filters.put(place, _tables(later=False))
    assert [line for line in _listed(place).splitlines() if "other" not in line] == former.splitlines()
    assert len(started) == 2


async def test_a_word_that_is_no_address_never_comes_to_nft(place: Path, started: list[str]) -> None:
    false = ElementSet(
        name="one", types=("ipv4_addr",), elements=frozenset({("10.0.0.1 } } flush ruleset",)})
    )
    with pytest.raises(FailedPrecondition, match="packet filter of place"):
        await Filters().put(place, [Table(family="ip", name="tried", body="", sets=(false,))])
    assert not started


@pytest.fixture
async def one_desk(tmp_path: Path) -> AsyncIterator[Desk]:
    world = World(tmp_path)
    try:
        await world.build_nodes()
        async with desk(world.nodes[1], tmp_path / "one") as one:
            yield one
    finally:
        await world.clear()


async def test_add_and_del_start_no_program(one_desk: Desk, tmp_path: Path, started: list[str]) -> None:
    async with pod_namespace(tmp_path / "a") as a, pod_namespace(tmp_path / "b") as b:
        await one_desk.call("ADD", "a", a)
        assert started, "the router's tables were not written by nft"
        started.clear()
        await one_desk.call("ADD", "b", b)
        await one_desk.agent.renew(one_desk.node.ground, [one_desk.node.networks["blue"]])
        await one_desk.call("DEL", "b", b)
        await one_desk.call("DEL", "a", a)
        assert not started


async def test_a_guard_that_is_gone_is_back_with_the_next_pod(one_desk: Desk, tmp_path: Path) -> None:
    async with pod_namespace(tmp_path / "a") as a, pod_namespace(tmp_path / "b") as b:
        await one_desk.call("ADD", "a", a)
        guards = Guards(one_desk.node.router("blue"))
        guards.take_away("own-address")
        assert "own-address" not in guards.names()
        await one_desk.call("ADD", "b", b)
        assert "own-address" in guards.names()
