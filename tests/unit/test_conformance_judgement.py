"""When a spec of critest counts as refused or unavailable, and when it is a failure all the same."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conformance.critest import Outcome, Result, Spec, judge, only, parse_report, reviewed

REFUSAL = (
    "rpc error: code = FailedPrecondition desc = pod a/b asks for the host's PID namespace, "
    "which a VM does not share; a RuntimeClass with the handler 'process' can serve it"
)
SPEC = "Security Context NamespaceOption runtime should support HostPID"


def test_a_refusal_counts_only_for_vm_and_for_specs_that_want_the_host() -> None:
    assert judge(SPEC, "failed", REFUSAL, "vm")[0] == "refused"
    assert judge(SPEC, "failed", REFUSAL, "process")[0] == "failed"
    assert judge(SPEC, "failed", "rpc error: code = Internal desc = oops", "vm")[0] == "failed"
    assert judge("runtime should support starting container", "failed", REFUSAL, "vm")[0] == "failed"


def test_an_image_that_is_nowhere() -> None:
    text = f"failed to pull image: gcr.io/k8s-staging-cri-tools/test-image-digest@sha256:{'9' * 64} not found"
    assert judge("public image with digest", "failed", text, "process")[0] == "unavailable"
    text = "reading manifest in 127.0.0.1:1/gcr.io/k8s-staging-cri-tools/test-image-digest: manifest unknown"
    assert judge("public image with digest", "failed", text, "process")[0] == "unavailable"


def test_a_report_is_read(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    path.write_text(
        """<testsuites><testsuite>
        <testcase name="[BeforeSuite]" status="passed" time="0.1"/>
        <testcase name="[It] [k8s.io] One works" status="passed" time="1.5"/>
        <testcase name="[It] [k8s.io] Two waits" status="skipped">
        <skipped message="skipped - no AppArmor"/></testcase>
        <testcase name="[It] [k8s.io] Three fails" status="timedout">
        <failure message="took long">at x</failure></testcase>
        <testcase name="[AfterSuite]" status="failed"><failure message="broken">y</failure></testcase>
        </testsuite></testsuites>"""
    )
    specs = {spec.name: spec for spec in parse_report(path, "vm")}
    assert specs["One works"].outcome == "passed" and specs["One works"].seconds == 1.5
    assert specs["Two waits"].outcome == "skipped" and specs["Two waits"].reason == "no AppArmor"
    assert specs["Three fails"].outcome == "failed" and "took long" in specs["Three fails"].reason
    assert specs["[AfterSuite]"].outcome == "failed"
    assert [name for name, spec in specs.items() if spec.outcome == "failed" and spec.can_run_alone] == [
        "Three fails"
    ]


def test_a_spec_that_passes_when_it_runs_again_is_unsteady() -> None:
    def ran(**outcomes: Outcome) -> Result:
        specs = (Spec(name, outcome, "", 1.0) for name, outcome in outcomes.items())
        return Result("vm", "spdy", "", tuple(specs), 10.0)

    found = reviewed(ran(one="passed", two="failed", three="failed"), ran(two="passed", three="failed"))
    assert {spec.name: spec.outcome for spec in found.specs} == {
        "one": "passed",
        "two": "unsteady",
        "three": "failed",
    }
    assert re.fullmatch(only(found.of("failed")), "three") and not re.search(only(found.of("failed")), "two")
