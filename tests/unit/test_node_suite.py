"""How the harness of Kubernetes' node suite judges what the suite reports."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.node_e2e import __main__ as harness
from tests.node_e2e import enclosure, judgement
from tests.node_e2e.judgement import Result, Spec

REPORT = """<?xml version="1.0"?>
<testsuites><testsuite name="E2eNode">
<testcase name="[It] one [NodeConformance]" status="passed" time="1.5"></testcase>
<testcase name="[It] two" status="failed" time="2"><failure message="timed
 out">long text</failure></testcase>
<testcase name="[It] host network" status="failed" time="2"><failure message="refused"/></testcase>
<testcase name="[It] left out" status="skipped" time="0"><skipped message="skipped"/></testcase>
<testcase name="[It] no swap" status="skipped" time="0"><skipped message="skipped - no swap here"/></testcase>
<testcase name="[It] late" status="timedout" time="9"><failure message="A suite timeout occurred"/></testcase>
<testcase name="[SynchronizedBeforeSuite]" status="passed" time="3"></testcase>
<testcase name="[SynchronizedAfterSuite]" status="failed" time="3"><failure message="left"/></testcase>
</testsuite></testsuites>
"""
LIST = """
[[exception]]
spec = "host network"
runtimes = ["vm"]
reason = "a VM does not share it"
"""


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "junit.xml"
    path.write_text(REPORT)
    return path


@pytest.fixture
def excuses(tmp_path: Path) -> list[judgement.Excuse]:
    path = tmp_path / "exceptions.toml"
    path.write_text(LIST)
    return judgement.exceptions(path)


def test_a_report_is_read_with_its_reasons(report: Path, excuses: list[judgement.Excuse]) -> None:
    assert judgement.parse(report, "vm", excuses) == (
        Spec("one [NodeConformance]", "passed", "", 1.5),
        Spec("two", "failed", "timed out", 2.0),
        Spec("host network", "excused", "a VM does not share it", 2.0),
        Spec("no swap", "skipped", "no swap here", 0.0),
        Spec("late", "unfinished", "the time for the whole run was over", 9.0),
        Spec("[SynchronizedAfterSuite]", "failed", "left", 0.0),
    )


def test_an_exception_is_for_the_runtimes_it_names(report: Path, excuses: list[judgement.Excuse]) -> None:
    found = {spec.name: spec.outcome for spec in judgement.parse(report, "process", excuses)}
    assert found["host network"] == "failed"


def test_an_exception_without_a_reason_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "exceptions.toml"
    path.write_text('[[exception]]\nspec = "x"\nruntimes = ["vm"]\nreason = " "\n')
    with pytest.raises(ValueError, match="no reason"):
        judgement.exceptions(path)


def test_the_list_of_exceptions_can_be_read() -> None:
    for excuse in judgement.exceptions():
        assert excuse.runtimes <= {"vm", "process", "auto"}


def _result(runtime: str, **outcomes: judgement.Outcome) -> Result:
    return Result(runtime, tuple(Spec(name, outcome, "", 1.0) for name, outcome in outcomes.items()), 9.0)


def test_what_fails_under_the_peer_too_is_the_machines() -> None:
    vm = _result("vm", a="passed", b="failed", c="failed")
    peer = _result("containerd", a="passed", b="passed", c="failed")
    assert judgement.problems([vm, peer], 1) == ["vm: b"]
    assert judgement.problems([vm], 1) == ["vm: b", "vm: c"]


def test_a_run_in_which_nothing_ran_is_a_problem() -> None:
    assert judgement.problems([_result("vm", a="skipped")], 1) == [
        "vm: only 0 specs passed, at least 1 should"
    ]


def test_a_run_that_had_no_time_is_not_whole() -> None:
    assert judgement.problems([_result("vm", a="passed", b="unfinished")], 1) == [
        "vm: 1 specs and those after them had no time"
    ]


def test_a_verdict_is_an_exit_status_and_its_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    assert judgement.verdict("suite", [_result("vm", a="passed")], Path("place")) == 0
    assert capsys.readouterr().out.endswith("suite: 0 problems; reports: place\n")
    assert judgement.verdict("suite", [_result("vm", a="passed", b="failed")], Path("place")) == 1
    assert capsys.readouterr().out.endswith("suite: 1 problems; reports: place\n  vm: b\n")


def test_what_is_not_known_is_not_run() -> None:
    said = judgement.refusal("handler", ["vm", "other"], ("vm", "process"))
    assert said == "no handler other; there are vm, process"


def test_a_spec_is_found_again_by_its_name_without_labels() -> None:
    spec = Spec(
        "[sig-node] Pods (v1) should *not* run [Conformance] [sig-node, Conformance]", "failed", "", 1.0
    )
    expression = re.compile(judgement.only([spec, spec]))
    assert expression.search("[sig-node] Pods (v1) should *not* run [Conformance]")
    assert not expression.search("[sig-node] Pods (v1) should *not* run [Serial]")


@pytest.mark.parametrize("name", ["[SynchronizedBeforeSuite]", "[DeferCleanup (Suite)]", judgement.WHOLE])
def test_what_is_no_spec_does_not_run_again(name: str) -> None:
    assert not Spec(name, "failed", "", 1.0).can_run_alone
    assert Spec(f"[sig-node] {name.strip('[]')} should run", "failed", "", 1.0).can_run_alone


def test_what_passes_when_it_runs_again_is_unsteady() -> None:
    first, second = _result("vm", a="passed", b="failed", c="failed"), _result("vm", b="passed", c="failed")
    judged = judgement.reviewed(first, second)
    assert [spec.outcome for spec in judged.specs] == ["passed", "unsteady", "failed"]
    assert judged.seconds == 18.0
    assert judgement.problems([judged], 1) == ["vm: c"]


def test_failed_specs_run_again_and_then_under_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[str, str]] = []
    second = {
        "vm": _result("vm", b="passed", c="failed"),
        "containerd": _result("containerd", a="passed", c="failed"),
    }

    def run(runtime: str, options: object, only: str) -> Result:
        runs.append((runtime, only))
        return second[runtime]

    monkeypatch.setattr(harness, "one_run", run)
    monkeypatch.setattr(harness.peers, "containerd", lambda: None)
    first = [_result("vm", a="passed", b="failed", c="failed"), _result("process", a="passed")]
    judged = harness.again(first, harness.arguments([]))
    assert runs == [("vm", "b|c"), ("containerd", "c|a")]
    assert judgement.problems(judged[:2], 1) == ["vm: c"]
    assert judgement.problems(judged, 1) == []


def test_the_table_names_each_spec_that_did_not_pass_everywhere() -> None:
    lines = list(judgement.table([_result("vm", a="passed", b="excused"), _result("containerd", b="passed")]))
    assert lines == [
        "| runtime | passed | unsteady | failed | excused | skipped | unfinished | time |",
        "|---|---|---|---|---|---|---|---|",
        "| `vm` | 1 | 0 | 0 | 1 | 0 | 0 | 9 s |",
        "| `containerd` | 1 | 0 | 0 | 0 | 0 | 0 | 9 s |",
        "",
        "| spec | `vm` | `containerd` |",
        "|---|---|---|",
        "| b | excused | passed |",
    ]


def _selection(*options: str) -> tuple[str, str]:
    return harness.selection(harness.arguments(options))


def test_conformance_is_what_runs_unless_told() -> None:
    focus, skip = _selection("--skip", "swap")
    assert focus == harness.CONFORMANCE
    assert skip == f"swap|{harness.LONG}"
    assert _selection("--focus", "Probing") == ("Probing", harness.LONG)
    assert _selection("--all") == ("", "")


def test_the_short_list_is_one_expression_of_its_lines() -> None:
    focus, _ = _selection("--short")
    assert re.compile(focus)
    assert "#" not in focus
    assert "||" not in focus


@pytest.mark.parametrize(("file", "share"), [("cpu.shares", "8192"), ("cpu.weight", "800")])
def test_a_runs_group_weighs_as_much_as_its_processes(tmp_path: Path, file: str, share: str) -> None:
    (tmp_path / file).touch()
    enclosure.weigh(tmp_path, 8)
    assert (tmp_path / file).read_text() == share


def test_a_group_without_the_controller_has_no_weight(tmp_path: Path) -> None:
    enclosure.weigh(tmp_path, 8)
    assert not list(tmp_path.iterdir())
