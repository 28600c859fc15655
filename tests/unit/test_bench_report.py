"""What the benchmark's report computes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from bench.report import SCALE_HEADS, Report, Scale

SCALE = Scale(
    pods=4,
    parallel=2,
    start_seconds=1.0,
    stop_seconds=0.5,
    ready_ms=[100.0, 120.0, 110.0, 150.0],
    mib_per_pod=2.0,
    daemon_mib=40.0,
    idle_percent_of_core_per_pod=0.1,
)


def test_scale_tells_growth_and_spread() -> None:
    row = dict(zip(SCALE_HEADS, SCALE.row(), strict=True))
    assert row["last/1st"] == "1.50"
    assert row["ready ms, median / p95"] == "115 / 150"


def test_the_document_holds_what_is_computed(tmp_path: Path) -> None:
    Report(scale={"one": [SCALE]}).save(tmp_path)
    found = json.loads((tmp_path / "bench.json").read_text())["scale"]["one"][0]
    assert (found["growth"], found["median_ready_ms"], found["pods"]) == (1.5, 115.0, 4)


def test_figures_are_kept_where_nothing_can_draw_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    Report(samples={"one": {"ready": [1.0, 2.0]}}).save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["bench.json"]
