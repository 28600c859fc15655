"""What bats says of podman's tests is read and judged as it is meant."""

from __future__ import annotations

import pytest

from tests.podman_system import judgement, suite, tap
from tests.podman_system.tap import FAILED, PASSED, SKIPPED, Outcome

TEXT = """1..5
ok 1 first
not ok 2 second (odd): "name" # in it
# (in test file x.bats, line 3)
#   `false' failed
stray output
ok 3 third # skip no reason
ok 4 fourth # skip
"""


def test_each_test_of_a_plan_has_an_outcome() -> None:
    found = tap.parse(TEXT)
    words = {name: one.word for name, one in found.items()}
    assert words == {
        "first": PASSED,
        'second (odd): "name" # in it': FAILED,
        "third": SKIPPED,
        "fourth": SKIPPED,
        "(1 not run)": FAILED,
    }
    assert found["third"].said == "no reason"
    assert "`false' failed" in found['second (odd): "name" # in it'].said
    with pytest.raises(ValueError, match="no plan"):
        tap.parse("bats: no such file\n")


def test_a_failure_of_ours_alone_must_be_on_the_list() -> None:
    theirs = {
        name: Outcome(word) for name, word in (("a", PASSED), ("b", PASSED), ("c", FAILED), ("d", PASSED))
    }
    ours = {
        name: Outcome(word) for name, word in (("a", FAILED), ("b", FAILED), ("c", FAILED), ("d", PASSED))
    }
    known = {("f", name): judgement.Entry("f", name, "why") for name in ("b", "d")}
    verdict = judgement.judge("f", theirs, ours, known)
    assert verdict.failures == ("a",) and verdict.surprises == ("d",) and verdict.both == 1
    assert [entry.test for entry in verdict.excused] == ["b"]
    assert judgement.judge("f", theirs, {}, {}).failures == ("a", "b", "d")
    text = judgement.table([verdict], {"f": (1, 2)})
    assert "| `f` | 3 | 1 | 0 | 1 | 3 | 0 | 2 | 1 | 2 |" in text and "**not expected**" in text


def test_the_list_is_of_files_that_are_run() -> None:
    assert {file for file, _ in judgement.entries()} <= set(suite.FILES)
    assert not set(suite.FILES) & set(suite.OTHERS)
