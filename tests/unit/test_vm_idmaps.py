"""The text of an id map, with room for root to pass."""

from __future__ import annotations

import pytest

from orlop.errors import InvalidArgument
from orlop.hypervisor.jail import ids
from orlop.sandbox.spec import IdMapping
from orlop.sandbox.vm.idmaps import lines


def test_root_may_pass() -> None:
    mapping = IdMapping(container_id=0, host_id=65536, length=65536)
    assert lines((mapping,)) == "0 65536 65536\n4294967293 0 1\n"


def test_root_is_mapped_already_or_there_is_no_room() -> None:
    assert lines((IdMapping(container_id=0, host_id=0, length=10),)) == "0 0 10\n"
    whole = IdMapping(container_id=0, host_id=1, length=4294967294)
    assert lines((whole,)) == "0 1 4294967294\n"


def test_how_many() -> None:
    with pytest.raises(InvalidArgument):
        lines(())
    with pytest.raises(InvalidArgument):
        lines(tuple(IdMapping(container_id=n, host_id=n, length=1) for n in range(341)))


def test_the_hypervisors_users_are_others_on_the_host() -> None:
    owner = ids.FIRST + ids.LENGTH
    above = IdMapping(container_id=0, host_id=131072, length=65536)
    assert lines((above,), owner) == f"0 131072 65536\n4294967293 {owner} 1\n"
    across = IdMapping(container_id=10, host_id=65000, length=1000)
    assert lines((across,), owner) == (f"10 {owner + 65000} 536\n546 65536 464\n4294967293 {owner} 1\n")


def test_no_id_of_the_host_that_counts_is_in_a_jail() -> None:
    inside = [tuple(map(int, line.split())) for line in ids.id_map(ids.FIRST).splitlines()]
    assert [outer for _, outer, _ in inside] == [ids.FIRST, ids.LENGTH]
    assert all(outer + length <= ids.FIRST + ids.LENGTH for _, outer, length in inside)
    assert ids.outside(range(1), ids.FIRST) == [(range(1), ids.FIRST)]
