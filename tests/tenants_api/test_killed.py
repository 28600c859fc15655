"""Operators that end at any point, and several of them."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from collections.abc import AsyncIterator, Iterator
from random import Random
from typing import Any

import pytest

from orlop.errors import Aborted
from orlop.tenants import ledger
from orlop.tenants.api import NETWORKS, TENANTS, Api, connect
from orlop.tenants.settle import settle
from tests.patience import PATIENCE
from tests.tenants_api.conftest import Ship, tenant, works
from tests.tenants_api.plane import eventually

HANDLERS = frozenset({"vm"})
QUOTA = {"pods": 10, "cpu": "4"}
MEMBERS = [{"user": "dev-1", "role": "admin"}]
NONE: dict[str, Any] = {"metadata": {}}


@pytest.fixture
def quiet(installed: Ship) -> Iterator[Ship]:
    """No operator runs."""
    installed.stop()
    yield installed
    installed.stop()


class Killed(BaseException):
    """The operator is not any more."""


class Mortal:
    """An API as an operator sees it that is killed instead of making one call of many."""

    def __init__(self, api: Api, calls: int) -> None:
        self._api, self.left = api, calls

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._api, name)

        async def call(*arguments: Any, **words: Any) -> Any:
            self.left -= 1
            if self.left < 0:
                raise Killed
            return await inner(*arguments, **words)

        return call


@contextlib.asynccontextmanager
async def api(ship: Ship) -> AsyncIterator[Api]:
    async with connect(ship.operator.kubeconfig) as one:
        yield one


async def rounds(one: Api, name: str, until: str) -> None:
    """Rounds of a new operator until a tenant is in a phase, or gone."""
    limit = time.monotonic() + 60 * PATIENCE
    while True:
        with contextlib.suppress(Aborted):
            await settle(one, name, HANDLERS)
        found = await one.find(TENANTS, name)
        if (found or {}).get("status", {}).get("phase", "") == until or (found is None and until == "gone"):
            return
        assert time.monotonic() < limit, found
        await asyncio.sleep(0.05)


async def test_whatever_call_was_its_last_the_next_operator_goes_on(quiet: Ship) -> None:
    """Killed before each single call that a round makes, while a tenant is made and while it goes."""
    quiet.plane.apply(tenant("mortal", ["mortal", "mortal-b"], members=MEMBERS, quota=QUOTA))
    async with api(quiet) as one:
        for phase in ("Active", "gone"):
            calls, died = 0, True
            if phase == "gone":
                quiet.plane.kubectl("delete", "tenant", "mortal", "--wait=false")
            while died:
                died = False
                try:
                    with contextlib.suppress(Aborted):
                        await settle(Mortal(one, calls), "mortal", HANDLERS)  # type: ignore[arg-type]
                except Killed:
                    died, calls = True, calls + 1
            assert calls > (15 if phase == "Active" else 5)
            await rounds(one, "mortal", phase)
            if phase == "Active":
                made = await one.find(NETWORKS, "mortal")
                assert made is not None
                assert made["spec"]["namespaces"] == ["mortal", "mortal-b"]
        assert await one.find(NETWORKS, "mortal") is None
    for place in ("mortal", "mortal-b"):
        assert quiet.plane.json("get", "namespace", place) is None
    assert not quiet.plane.names("clusterroles,clusterrolebindings", "-l", "orlop.dev/tenant=mortal")
    book = quiet.plane.json("get", "configmap", ledger.NAME, "-n", "orlop-system")["data"]
    assert "mortal" not in book


async def test_two_operators_without_a_lease_give_no_number_twice(quiet: Ship) -> None:
    names = [f"number-{each}" for each in range(12)]
    async with api(quiet) as first, api(quiet) as second:
        claims = [ledger.claim(one, name) for name in names for one in (first, second)]
        numbers = await asyncio.gather(*claims)
        assert numbers[::2] == numbers[1::2], "a tenant has one number, whoever gives it"
        assert len(set(numbers)) == len(names)
        # Nobody has these tenants: whoever begins to work drops them.
        await ledger.sweep(first)
    book = quiet.plane.json("get", "configmap", ledger.NAME, "-n", "orlop-system")["data"]
    assert not set(names) & set(book)


async def test_numbers_are_known_again_when_the_ledger_was_lost(quiet: Ship) -> None:
    quiet.start()
    quiet.add(tenant("lost"))
    quiet.stop()
    before = quiet.plane.json("get", "network", "lost")["spec"]["vni"]
    quiet.plane.kubectl("delete", "configmap", ledger.NAME, "-n", "orlop-system")
    async with api(quiet) as one:
        assert await ledger.claim(one, "another") != before
        assert await ledger.claim(one, "lost") == before
        await ledger.sweep(one)
    quiet.start()
    quiet.end("lost")


def test_operators_that_are_killed_in_the_middle_leave_nothing_undone(quiet: Ship) -> None:
    """kill -9 at moments that chance chooses, while tenants come, change and go."""
    chance = Random(14)
    names = [f"storm-{number}" for number in range(5)]
    alive: set[str] = set()
    for _ in range(6):
        quiet.start()
        for name in chance.sample(names, 3):
            if name in alive and chance.random() < 0.5:
                quiet.plane.kubectl("delete", "tenant", name, "--wait=false")
                alive.discard(name)
            elif "deletionTimestamp" not in (quiet.plane.json("get", "tenant", name) or NONE)["metadata"]:
                places = [f"{name}-{part}" for part in chance.sample("abc", 2)]
                quiet.plane.apply(tenant(name, places, quota=QUOTA, members=MEMBERS))
                alive.add(name)
        time.sleep(chance.random() * 1.5)  # no time is the wrong one
        quiet.stop(signal.SIGKILL)
    quiet.start()
    for name in names:
        if name in alive:
            quiet.settled(name)
        else:
            quiet.gone("tenant", name)
    networks = {one["metadata"]["name"]: one["spec"] for one in quiet.plane.json("get", "networks")["items"]}
    mine = {name: spec for name, spec in networks.items() if name in names}
    assert set(mine) == alive
    assert len({spec["vni"] for spec in networks.values()}) == len(networks)
    wanted = {
        place for name in alive for place in quiet.plane.json("get", "tenant", name)["spec"]["namespaces"]
    }

    def places() -> set[str]:
        return {place for place in quiet.plane.names("namespaces") if place.startswith("storm-")}

    eventually(places, wanted.__eq__)
    quiet.end(*alive)
    eventually(places, set().__eq__)


def test_of_two_operators_one_works_and_the_other_takes_over(quiet: Ship) -> None:
    first = quiet.start()
    eventually(first.said, lambda said: "this operator works now" in said)
    second = quiet.start()
    eventually(second.said, lambda said: "another operator works" in said)
    works(quiet, "relay-1")
    assert "this operator works now" not in second.said()

    first.end(signal.SIGKILL)  # its lease has to run out
    works(quiet, "relay-2")
    assert "this operator works now" in second.said()

    third = quiet.start()
    eventually(third.said, lambda said: "another operator works" in said)
    assert second.end(signal.SIGTERM) == 0  # it gives its lease back
    works(quiet, "relay-3")
    assert "this operator works now" in third.said()


def test_an_operator_whose_lease_another_has_stops_and_waits(quiet: Ship) -> None:
    first = quiet.start()
    eventually(first.said, lambda said: "this operator works now" in said)
    change = '{"spec":{"holderIdentity":"somebody-else"}}'
    quiet.plane.kubectl("patch", "lease", "orlop-tenants", "-n", "orlop-system", "--type=merge", "-p", change)
    eventually(first.said, lambda said: "the lease is not ours any more" in said)
    eventually(first.said, lambda said: "another operator works: somebody-else" in said)
    # Nobody renews it: it works again once that lease has run out.
    works(quiet, "second-wind")
    assert first.said().count("this operator works now") == 2
