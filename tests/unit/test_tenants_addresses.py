"""Who gets which address: ranges, quotas, wishes, and what is said of it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies

from orlop.errors import InvalidArgument
from orlop.tenants import addressbook, addressed
from orlop.tenants.allocation import TOLD, AddressWish, Book, GivenAddress, Refusal, chosen, give
from orlop.tenants.pool import AddressRanges, merged

POOL = merged(["192.0.2.240/30", "192.0.2.250-192.0.2.251"])
ALL = ["192.0.2.240", "192.0.2.241", "192.0.2.242", "192.0.2.243", "192.0.2.250", "192.0.2.251"]


def wish(name: str, tenant: str = "blue", **more: Any) -> AddressWish:
    about = {"tenant": tenant, "kind": "FloatingAddress", "namespace": tenant, "name": name, "uid": name}
    return AddressWish(**{**about, **more})


def who(book: Book) -> dict[str, str]:
    return {address: one.uid for address, one in book.given.items()}


def test_ranges_that_touch_or_overlap_are_one() -> None:
    pool = merged(["192.0.2.5-192.0.2.9", "192.0.2.0/29", "192.0.2.10-192.0.2.10"])
    assert len(pool.ranges) == 1
    assert pool.size == 11
    assert "192.0.2.10" in pool
    assert "192.0.2.11" not in pool


@pytest.mark.parametrize(
    "text", ["", "192.0.2.1/24", "192.0.2.9-192.0.2.1", "fd00::/64", "1-2", "192.0.2.1-"]
)
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        merged([text])


def test_all_addresses_are_given_and_each_rests_as_long_as_it_can() -> None:
    book, refused = give(Book(), [wish(str(number)) for number in range(7)], POOL, {"blue": 9}, ())
    assert sorted(book.given) == ALL
    assert refused["6"].reason == "PoolEmpty"
    book, _ = give(book.without({"0", "3"}), [wish("new")], POOL, {"blue": 9}, ())
    assert who(book)["192.0.2.240"] == "new", "after the last there is the first again"
    book, _ = give(book.without({"new"}), [wish("newer")], POOL, {"blue": 9}, ())
    assert who(book)["192.0.2.243"] == "newer", "the one that was given back at last has to wait"


def test_a_quota_counts_all_of_a_tenant_and_the_oldest_come_first() -> None:
    wishes = [wish("young", created="2026-02-01T00:00:00Z"), wish("old", created="2026-01-01T00:00:00Z")]
    book, refused = give(Book(), [*wishes, wish("other", "green")], POOL, {"blue": 1, "green": 1}, ())
    assert sorted(who(book).values()) == ["old", "other"]
    assert refused.keys() == {"young"}
    assert refused["young"].reason == "OverQuota"
    assert "all 1 floatingIPs" in refused["young"].message
    book, refused = give(book.without({"old"}), wishes[:1], POOL, {"blue": 1}, ())
    assert "young" in who(book).values()
    assert not refused


def test_a_tenant_that_makes_any_number_of_them_keeps_nobody_waiting() -> None:
    """The oldest are told why; the others are looked at when these are gone."""
    many = [wish(f"{number:04}", created=f"{number:04}") for number in range(1000)]
    quotas = {"blue": 1, "green": 1}
    book, refused = give(Book(), [*many, wish("other", "green", created="9")], POOL, quotas, ())
    assert sorted(who(book).values()) == ["0000", "other"]
    assert sorted(refused) == [f"{number:04}" for number in range(1, TOLD + 1)]
    book, refused = give(book.without({"0000"}), many[TOLD + 1 :], POOL, quotas, ())
    assert f"{TOLD + 1:04}" in who(book).values()


def test_a_tenant_without_a_quota_has_none() -> None:
    book, refused = give(Book(), [wish("one")], POOL, {}, ())
    assert not book.given
    assert "has no floatingIPs" in refused["one"].message


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("198.51.100.1", "NotInPool"),
        ("all of them" * 99, "NotInPool"),
        ("::ffff:192.0.2.240", "NotInPool"),
        ("192.0.2.0243", "NotInPool"),
        ("192.0.2.240", "Taken"),
        ("192.0.2.241", "Taken"),
        ("192.0.2.242", "Taken"),
    ],
)
def test_wishes_for_what_is_others_are_refused(address: str, reason: str) -> None:
    """Outside of the pool; another's; a node's; one whose entry in the book somebody has spoilt."""
    book = Book(given={"192.0.2.240": GivenAddress(**_about("green"))}, closed=frozenset({"192.0.2.242"}))
    after, refused = give(book, [wish("one", address=address)], POOL, {"blue": 2}, ["192.0.2.241"])
    assert refused["one"].reason == reason
    assert after.given == book.given


def _about(tenant: str) -> dict[str, Any]:
    return {"tenant": tenant, "kind": "Service", "namespace": tenant, "name": "web", "uid": f"{tenant}-web"}


def test_nobody_is_given_a_nodes_address() -> None:
    book, _ = give(Book(), [wish(str(number)) for number in range(6)], POOL, {"blue": 9}, ALL[1:3])
    assert sorted(book.given) == [ALL[0], *ALL[3:]]


def test_what_is_given_stays_when_pool_and_quota_shrink() -> None:
    book, _ = give(Book(), [wish("one"), wish("two")], POOL, {"blue": 2}, ())
    again, refused = give(book, [wish("one"), wish("two"), wish("three")], AddressRanges(), {"blue": 1}, ())
    assert again.given == book.given
    assert refused.keys() == {"three"}


def test_a_book_that_was_lost_is_made_of_what_objects_have() -> None:
    wishes = [wish("one", had=ALL[4]), wish("two", had=ALL[0]), wish("new", created="2020-01-01T00:00:00Z")]
    book, refused = give(Book(), wishes, POOL, {"blue": 1}, ())
    assert who(book) == {ALL[4]: "one", ALL[0]: "two"}
    assert refused.keys() == {"new"}


def test_what_the_pool_does_not_have_any_more_takes_nothing_from_others_when_the_book_is_lost() -> None:
    wishes = [wish("one", had="198.51.100.1", created="1"), wish("two", had=ALL[0], created="2")]
    book, _ = give(Book(), wishes, merged([ALL[0] + "/32"]), {"blue": 2}, ())
    assert who(book) == {ALL[0]: "two"}


NUMBERS = strategies.integers(0, 5)


@drawn(
    strategies.lists(strategies.tuples(NUMBERS, NUMBERS, strategies.sampled_from(["", *ALL])), max_size=30),
    strategies.sets(NUMBERS),
    NUMBERS,
)
def test_no_address_has_two_and_no_tenant_more_than_its_quota(
    wanted: list[tuple[int, int, str]], gone: set[int], quota: int
) -> None:
    wishes = {
        f"{tenant}-{number}": wish(f"{tenant}-{number}", f"tenant-{tenant}", address=address)
        for tenant, number, address in wanted
    }
    quotas = {f"tenant-{number}": quota for number in range(6)}
    book, _ = give(Book(), wishes.values(), POOL, quotas, ())
    left = {uid: one for uid, one in wishes.items() if int(uid[0]) not in gone}
    book, refused = give(book.without(wishes.keys() - left.keys()), left.values(), POOL, quotas, ())
    holders = [one.uid for one in book.given.values()]
    assert len(holders) == len(set(holders))
    assert set(holders) | refused.keys() == left.keys()
    assert not set(holders) & refused.keys()
    assert all(book.count(tenant) <= quota for tenant in quotas)
    assert book.given.keys() <= set(ALL)


def test_an_address_stays_with_its_node_as_long_as_it_can() -> None:
    nodes = [f"node{number}" for number in range(5)]
    first = {f"192.0.2.{number}": chosen(f"192.0.2.{number}", nodes, "") for number in range(100)}
    assert set(first.values()) == set(nodes), "each has some"
    for address, node in first.items():
        assert chosen(address, [*nodes, "node9"], node) == node
        rest = [one for one in nodes if one != "node0"]
        moved = chosen(address, rest, node)
        assert moved in rest
        assert moved == node or node == "node0"
    assert chosen("192.0.2.1", [], "node1") == ""


def test_the_book_is_read_as_it_was_written_and_spoilt_entries_are_nobodys() -> None:
    data = {
        "192.0.2.240": '{"tenant":"blue","kind":"Service","namespace":"blue","name":"web","uid":"u"}',
        "192.0.2.241": "mine",
        "192.0.2.242": '{"tenant":"blue","kind":"Pod","namespace":"blue","name":"web","uid":"v"}',
        ".latest": "192.0.2.240",
    }
    book = addressbook.parse({"data": data})
    assert book.given.keys() == {"192.0.2.240"}
    assert book.closed == {"192.0.2.241", "192.0.2.242"}
    assert book.latest == "192.0.2.240"
    assert book.count("blue") == 1


def _floating(**status: Any) -> addressed.AddressHolder:
    about = {"name": "web", "namespace": "blue", "uid": "u", "generation": 2}
    return addressed.floating({"metadata": about, "spec": {"pod": "web-0"}, "status": status})


def test_a_status_says_address_and_node_or_why_not() -> None:
    mine = GivenAddress(tenant="blue", kind="FloatingAddress", namespace="blue", name="web", uid="u")
    made = addressed.status(_floating(), "192.0.2.240", mine, None, "now")
    assert made["address"] == "192.0.2.240"
    assert "there is no pod web-0" in made["message"]
    assert {one["type"]: one["status"] for one in made["conditions"]} == {
        "AddressGiven": "True",
        "NodeFound": "False",
    }
    again = addressed.status(_floating(**made), "192.0.2.240", mine, None, "later")
    assert again == made, "what has not changed has its time"
    refusal = Refusal(reason="OverQuota", message="too many")
    made = addressed.status(_floating(**made), "", None, refusal, "later")
    assert made.keys() == {"message", "conditions"}
    assert made["conditions"][0]["lastTransitionTime"] == "later"


def test_kube_proxy_is_told_to_leave_the_address_of_a_service_alone() -> None:
    spec = {"type": "LoadBalancer", "loadBalancerClass": "orlop.dev/tenant"}
    about = {"name": "web", "namespace": "blue", "uid": "blue-web"}
    holder = addressed.balanced({"metadata": about, "spec": spec})
    assert holder is not None
    made = addressed.status(holder, "192.0.2.240", GivenAddress(**_about("blue"), node="node1"), None, "now")
    assert made["loadBalancer"] == {"ingress": [{"ip": "192.0.2.240", "ipMode": "Proxy"}]}
    assert [one["type"] for one in made["conditions"]] == ["orlop.dev/AddressGiven", "orlop.dev/NodeFound"]
    assert addressed.balanced({"metadata": about, "spec": {**spec, "loadBalancerClass": "other"}}) is None
    assert addressed.balanced({"metadata": about, "spec": {"type": "ClusterIP"}}) is None
