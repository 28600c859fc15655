"""The text of an id map, with room for root to pass."""

from __future__ import annotations

import pytest

from orlop.errors import InvalidArgument
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
