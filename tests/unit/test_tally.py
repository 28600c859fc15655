"""The line that CI ends with counts what ran, and a run without tests is no good one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import tally

SUITE = '<testsuites><testsuite tests="{}" failures="{}" errors="{}" skipped="{}"/></testsuites>'


@pytest.mark.parametrize(
    ("suites", "outcomes", "line", "code"),
    [
        (((3, 0, 0, 0), (4, 0, 0, 1)), ("passed", "refused"), "7 passed, 0 failed, 2 skipped", 0),
        (((3, 1, 1, 0),), (), "1 passed, 2 failed, 0 skipped", 1),
        (((3, 0, 0, 0),), ("failed",), "3 passed, 1 failed, 0 skipped", 1),
        ((), (), "0 passed, 0 failed, 0 skipped", 1),
    ],
)
def test_the_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    suites: tuple[tuple[int, ...], ...],
    outcomes: tuple[str, ...],
    line: str,
    code: int,
) -> None:
    for name in ("tests", "conformance"):
        (tmp_path / name).mkdir()
    for number, suite in enumerate(suites):
        (tmp_path / "tests" / f"{number}.xml").write_text(SUITE.format(*suite))
    (tmp_path / "conformance" / "vm.json").write_text(
        json.dumps({"specs": [{"outcome": outcome} for outcome in outcomes]})
    )
    monkeypatch.setattr(tally, "BUILD", tmp_path)
    assert tally.main() == code
    assert capsys.readouterr().out == f"{line}\n"
