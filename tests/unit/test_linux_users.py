"""Who a container's process becomes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orlop.linux.users import Identity, UnknownName, Wanted, find, parse_group, parse_passwd

PASSWD = """root:x:0:0:root:/root:/bin/sh
# a comment
daemon:x:1:1
broken line
alice:x:1000:1001:Alice,,:/home/alice:/bin/sh
bad:x:-1:0:::
big:x:99999999999:0:::
"""
GROUP = """root:x:0:
alice:x:1001:
audio:x:29:alice, bob
extra:x:50000:alice
malformed
"""


def become(passwd: str = PASSWD, groups: str = GROUP, **wanted: object) -> Identity:
    return find(Wanted(**wanted), passwd, groups)  # type: ignore[arg-type]


def test_nobody_asked_for_is_root() -> None:
    assert become() == Identity(0, 0, (0,), "/root")


def test_a_name_brings_its_groups_and_home() -> None:
    assert become(user="alice") == Identity(1000, 1001, (1001, 29, 50000), "/home/alice")


def test_a_known_number_is_the_same_user() -> None:
    assert become(user="1000") == become(user="alice")


def test_an_unknown_number_needs_no_entry() -> None:
    assert become(user="4242") == Identity(4242, 0, (0,), "/")


@pytest.mark.parametrize(("user", "group"), [("alice:audio", ""), ("alice", "audio"), ("1000:29", "")])
def test_the_group_can_be_chosen(user: str, group: str) -> None:
    assert become(user=user, group=group).gid == 29


def test_strict_groups_ignore_the_image() -> None:
    assert become(user="alice", strict_groups=True, supplemental_groups=(7,)).groups == (1001, 7)


def test_merged_groups_come_from_both() -> None:
    assert become(user="alice", supplemental_groups=(7, 29)).groups == (1001, 7, 29, 50000)


@pytest.mark.parametrize("wrong", [{"user": "eve"}, {"group": "eve"}, {"user": "root:eve"}, {"user": "bad"}])
def test_an_unknown_name_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(UnknownName, match=r"eve|bad"):
        become(**wrong)


def test_without_files_root_is_root() -> None:
    assert become("", "") == Identity(0, 0, (0,), "/")


@given(st.text(max_size=300))
def test_hostile_files_do_not_break_it(text: str) -> None:
    for entry in parse_passwd(text):
        assert 0 <= entry.uid < 1 << 32
    for group in parse_group(text):
        assert 0 <= group.gid < 1 << 32
    assert become(text, text, user="1").uid == 1
