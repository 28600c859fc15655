"""Specs of Kubernetes' own suite, ``test/e2e``, on a running cluster."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.cluster import layout
from tests.cluster.room import Cluster
from tests.conformance import tools
from tests.node_e2e import judgement, programs, suite

SUITE = "e2e.test"
NEEDED = (SUITE, "ginkgo", "agnhost", "porter")
"""The programs of the suite, and those in the images that its pods run."""


def fresh(reports: Path) -> Path:
    """An empty directory for the reports of one run; its absolute path."""
    reports = reports.resolve()
    shutil.rmtree(reports, ignore_errors=True)
    (reports / "again").mkdir(parents=True)
    return reports


def judged(
    one: Cluster,
    handler: str,
    order: suite.Order,
    reports: Path,
    exceptions: Path,
    more: Sequence[str] = (),
) -> judgement.Result:
    """Run specs, and those that failed once more. ``more`` are arguments for the suite. Raises ToolError."""
    excused = judgement.exceptions(exceptions)

    def run(order: suite.Order, reports: Path) -> judgement.Result:
        started = time.monotonic()
        specs = judgement.parse(_run(one, order, reports, more), handler, excused)
        return judgement.Result(handler, specs, time.monotonic() - started)

    result = run(order, reports)
    if failed := [spec for spec in result.of("failed") if spec.can_run_alone]:
        print("\n".join(judgement.lines(result)), flush=True)
        again = suite.Order(judgement.only(failed), "", order.processes, order.minutes)
        result = judgement.reviewed(result, run(again, reports / "again"))
    (reports / "result.json").write_text(json.dumps(asdict(result), indent=1))
    print("\n".join(judgement.lines(result)), flush=True)
    return result


def _run(one: Cluster, order: suite.Order, reports: Path, more: Sequence[str]) -> Path:
    """The path of the JUnit report. Raises ToolError when there is none."""
    built = programs.build((*programs.CLUSTER, *NEEDED))
    given = [
        "--provider=local",
        f"--kubeconfig={layout.kubeconfig(one.directory)}",
        f"--kubectl-path={built.directory}/kubectl",
        f"--num-nodes={len(one.nodes)}",
        f"--dns-domain={layout.DOMAIN}",
        f"--report-dir={reports}",
        *more,
    ]
    argv = suite.command(built, order, reports, built.directory / SUITE, given)
    shell = ["sh", "-c", 'cd "$0" && exec "$@" >suite.log 2>&1', os.fspath(reports)]
    limit = order.minutes * 60 + 300
    try:
        done = one.run(*shell, *argv, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        message = f"the suite did not end within {limit} seconds: see {reports}/suite.log"
        raise tools.ToolError(message) from None
    if not (reports / suite.REPORT).exists():
        raise tools.ToolError(f"the suite ended with {done.code} and no report: see {reports}/suite.log")
    return reports / suite.REPORT
