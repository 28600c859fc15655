"""What the judges of volumes say, as their programs write it, and what counts as a difference."""

from __future__ import annotations

import re

from tests.volume_judges.__main__ import All, Reason, reasons, report
from tests.volume_judges.judges import FILES, JUDGES, OK, SKIPPED, Place, pjdfstest

SAID = """\
\x1b[34mopen::etxtbsy\x1b[0m                                            \x1b[32mok\x1b[0m
mkfifo::type                                                            FAILED
\tcalled `Result::unwrap()` on an `Err` value: EPERM
\tsomething else
chmod::erofs_named                                                      skipped
\tRemounts (allow_remount) are not allowed

Summary: 1 failed, 1 skipped, 1 passed, 0 expected failures, 3 total
"""


def place(code: int, output: str) -> Place:
    return Place("vm", lambda *_: (code, output), "/judges", "/tmp")


def test_each_case_is_heard() -> None:
    assert pjdfstest(place(1, SAID), "/x", False) == {
        "open::etxtbsy": OK,
        "mkfifo::type": "called `Result::unwrap()` on an `Err` value: EPERM",
        "chmod::erofs_named": SKIPPED,
    }


def test_a_judge_that_ends_early_has_failed() -> None:
    found = pjdfstest(place(137, SAID.split("mkfifo")[0]), "/x", False)
    assert found["the whole"].startswith("ended with 137")


def test_a_program_that_does_not_run_fails_every_trial() -> None:
    for judge in ("fio", "fsx"):
        for device in (False, True):
            found = JUDGES[judge](place(127, "no such program\n"), "/x", device)
            assert found
            assert OK not in found.values()


def test_the_judges_find_their_files() -> None:
    asked: list[str] = []

    def run(*command: str) -> tuple[int, str]:
        asked.extend(word for word in command if word.startswith("/judges/") and word.endswith(".toml"))
        return 0, ""

    for judge in JUDGES.values():
        for device in (False, True):
            judge(Place("vm", run, "/judges", "/tmp"), "/x", device)
    assert {name.removeprefix("/judges/") for name in asked} == set(FILES)


def test_a_difference_needs_a_reason() -> None:
    found: All = {
        ("hostPath", "fsx", "process"): {"a": OK, "b": "no", "c": OK},
        ("hostPath", "fsx", "vm"): {"a": "no", "b": "no", "c": "never"},
    }
    known = [Reason("fsx", ("hostPath",), re.compile("c"), "as written")]
    text, open_ones = report(found, known)
    assert open_ones == 1
    assert "- vm, hostPath, fsx, a: no" in text
    assert "| hostPath | fsx | c | as written |" in text
    assert ", b: no" not in text.split("What fails")[0], "the set-up's"


def test_a_volume_of_vms_alone_is_held_against_the_other_kind() -> None:
    found: All = {
        ("named, by the host", "fio", "process"): {"a": "no"},
        ("named, by the guest", "fio", "vm"): {"a": "no"},
    }
    assert report(found, [])[1] == 0


def test_every_reason_says_something() -> None:
    for one in reasons():
        assert one.text.strip()
        assert one.judge in JUDGES
