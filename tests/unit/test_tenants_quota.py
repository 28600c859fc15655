"""One quota over many namespaces: at no moment do they use more than the tenant has."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orlop.tenants import quota
from orlop.tenants.model import Quota
from orlop.tenants.quota import Allotment, deal


@dataclasses.dataclass
class Namespace:
    """What the API server knows of one: what was asked, what it counts by, what is used."""

    asked: int = 0
    in_force: int | None = None
    used: int = 0

    def seen(self) -> Allotment:
        return Allotment(asked=self.asked, in_force=self.in_force, used=self.used)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["deal", "killed", "count", "fill", "free"]), st.integers(0, 2), st.integers(1, 9)
    ),
    min_size=10,
    max_size=60,
)


@settings(max_examples=200)
@given(total=st.integers(4, 12), count=st.integers(2, 3), steps=STEPS)
def test_the_namespaces_never_use_more_than_the_tenant_has(
    total: int, count: int, steps: list[tuple[str, int, int]]
) -> None:
    """Deals, kills in the middle of one, the counting and the use of what was given fall in any order."""
    there = [Namespace() for _ in range(count)]
    for what, which, much in steps:
        one = there[which % count]
        if what == "deal":
            for each, amount in zip(there, deal(total, [each.seen() for each in there]), strict=True):
                each.asked = amount
        elif what == "killed":
            one.asked = deal(total, [each.seen() for each in there])[which % count]
        elif what == "count":
            one.in_force = one.asked
        elif what == "fill" and one.in_force is not None:
            one.used = max(one.used, one.in_force)
        elif what == "free":
            one.used = max(0, one.used - much)
        assert sum(each.used for each in there) <= total


@given(total=st.integers(0, 10**6), used=st.lists(st.integers(0, 1000), min_size=1, max_size=6))
def test_all_of_it_is_dealt_out_in_the_end(total: int, used: list[int]) -> None:
    there = [Namespace(used=amount, asked=amount, in_force=amount) for amount in used]
    for _ in range(3):
        for one, amount in zip(there, deal(total, [each.seen() for each in there]), strict=True):
            one.asked = one.in_force = amount
    before = [one.asked for one in there]
    assert deal(total, [one.seen() for one in there]) == before, "nothing is moved for nothing"
    assert sum(before) == max(total, sum(used))
    free = max(0, total - sum(used))
    assert all(one.asked - one.used >= free // len(there) // 2 for one in there)


def test_what_is_taken_is_given_only_once_it_is_counted() -> None:
    full = Namespace(asked=5, in_force=5, used=5)
    empty = Namespace(asked=5, in_force=5, used=0)
    assert deal(10, [full.seen(), empty.seen()]) == [5, 2]
    empty.asked = 2
    assert deal(10, [full.seen(), empty.seen()]) == [5, 2]
    empty.in_force = 2
    assert deal(10, [full.seen(), empty.seen()]) == [8, 2]


def test_what_is_asked_and_not_yet_counted_is_not_given_to_another() -> None:
    """The operator may be killed before it asks for less."""
    growing = Allotment(asked=8, in_force=5, used=0)
    assert deal(10, [growing, Allotment(asked=2, in_force=2)]) == [5, 2]


def test_what_a_namespace_on_its_way_out_uses_is_not_given_yet() -> None:
    assert deal(10, [Allotment()], apart=4) == [6]


def test_nothing_ends_when_a_quota_is_lowered() -> None:
    assert deal(2, [Allotment(asked=5, in_force=5, used=4), Allotment(asked=5, in_force=5)]) == [4, 0]


@pytest.mark.parametrize(
    ("resource", "amount", "text"),
    [("cpu", 1500, "1500m"), ("cpu", 2000, "2"), ("memory", 2**30, "1073741824"), ("pods", 3, "3")],
)
def test_amounts_are_written_as_kubernetes_reads_them(resource: str, amount: int, text: str) -> None:
    assert quota.written(resource, amount) == text
    assert quota.units(resource, text) == amount


@pytest.mark.parametrize(("amount", "text"), [(2**40, "1Ti"), (3 * 2**29, "1.5Gi"), (0, "0"), (5, "5")])
def test_people_see_round_figures(amount: int, text: str) -> None:
    assert quota.shown("memory", amount) == text


def test_a_count_that_has_not_begun_bounds_nothing_and_is_told_apart() -> None:
    document: dict[str, Any] = {"spec": {"hard": {"pods": "5"}}, "status": {}}
    assert quota.share("pods", document) == Allotment(asked=5, in_force=None, used=0)
    document["status"] = {"hard": {"pods": "4"}, "used": {"pods": "3"}}
    assert quota.share("pods", document) == Allotment(asked=5, in_force=4, used=3)


def test_only_what_a_quota_names_is_counted() -> None:
    assert quota.totals(Quota(cpu="1.5", memory="1Ki")) == {"cpu": 1500, "memory": 1024}


def test_the_same_amount_may_be_written_in_two_ways() -> None:
    assert quota.same({"pods": "1k", "limits.cpu": "1500m"}, {"limits.cpu": "1.5", "pods": "1000"})
    assert not quota.same({"pods": "1k"}, {"pods": "999"})
    assert not quota.same({"pods": "1"}, {})
