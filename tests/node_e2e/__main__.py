"""Kubernetes' node suite under Orlop and containerd: ``python -m tests.node_e2e --help``. Needs root.

Ends with 0 only when every spec passed under Orlop that is not in the list of exceptions, or that
failed under containerd in the same run too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from bench import peers

from tests.conformance import tools
from tests.node import base_config, build_guest
from tests.node_e2e import enclosure, images, inside, judgement, programs

RUNTIMES = ("vm", "process", "auto", judgement.PEER)
CONFORMANCE = r"\[NodeConformance\]"
LONG = r"\[Serial\]|\[Slow\]|\[Disruptive\]|\[Flaky\]"
SHORT = Path(__file__).with_name("short.txt")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line, or what is given in its place."""
    parser = argparse.ArgumentParser(prog="python -m tests.node_e2e", description="Kubernetes' node suite.")
    parser.add_argument("--handler", default="vm", help=f"one or more of {', '.join(RUNTIMES)}, with commas")
    parser.add_argument("--focus", default="", help="only the specs whose name matches this expression")
    parser.add_argument("--skip", default="", help="not those whose name matches this one")
    parser.add_argument("--all", action="store_true", help="also serial and slow ones, one by one")
    parser.add_argument("--short", action="store_true", help="the specs of short.txt, as CI runs them")
    parser.add_argument(
        "--again",
        action="store_true",
        help="run specs that failed again, those that fail then under the peer too",
    )
    parser.add_argument("--processes", type=int, default=8, help="specs at a time")
    parser.add_argument("--minutes", type=int, default=90, help="bound of one run")
    parser.add_argument("--report", type=Path, default=Path("build/node-e2e"), help="where reports go")
    return parser.parse_args(given)


def selection(options: argparse.Namespace) -> tuple[str, str]:
    """``(focus, skip)``."""
    if options.short:
        names = [line for line in SHORT.read_text().splitlines() if line and not line.startswith("#")]
        return "|".join(names), "|".join(part for part in (options.skip, LONG) if part)
    focus = options.focus or ("" if options.all else CONFORMANCE)
    return focus, "|".join(part for part in (options.skip, "" if options.all else LONG) if part)


def one_run(runtime: str, options: argparse.Namespace, only: str = "") -> judgement.Result:
    """Run the suite in an enclosure of its own, or ``only`` the specs that match."""
    reports: Path = (options.report / (f"{runtime}-again" if only else runtime)).resolve()
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir(parents=True)
    focus, skip = (only, "") if only else selection(options)
    processes: int = 1 if options.all else options.processes
    started = time.monotonic()
    tools.say(f"node suite under {runtime}")
    with enclosure.scratch() as directory:
        order = {
            "runtime": runtime,
            "reports": os.fspath(reports),
            "focus": focus,
            "skip": skip,
            "processes": processes,
            "minutes": options.minutes,
            "units": options.all,
        }
        (directory / inside.ORDER).write_text(json.dumps(order))
        command = [sys.executable, "-m", inside.__name__, os.fspath(directory)]
        code = enclosure.run(directory, command, reports / "run.log", processes)
    report = reports / "junit.xml"
    if not report.exists():
        tail = (reports / "run.log").read_text(errors="replace")[-3000:]
        raise tools.ToolError(f"the run under {runtime} ended with {code} and without a report:\n{tail}")
    specs = judgement.parse(report, runtime, judgement.exceptions())
    if code != 0:
        # The specs are one thing, what the runtime leaves behind is another.
        said = (reports / "run.log").read_text(errors="replace").strip().splitlines()
        specs += (judgement.Spec(judgement.WHOLE, "failed", " ".join(said[-3:])[-400:], 0.0),)
    result = judgement.Result(runtime, specs, time.monotonic() - started)
    (reports / "result.json").write_text(json.dumps(asdict(result), indent=1))
    print("\n".join(judgement.lines(result)), flush=True)
    return result


def runs(runtimes: Sequence[str], options: argparse.Namespace) -> list[judgement.Result]:
    """One run after the other; short ones at the same time: a run waits more than it computes."""
    with ThreadPoolExecutor(len(runtimes) if options.short else 1) as beside:
        return list(beside.map(lambda runtime: one_run(runtime, options), runtimes))


def again(results: Sequence[judgement.Result], options: argparse.Namespace) -> list[judgement.Result]:
    """The results after a second try of the failed specs, and one of the peer for those that fail twice."""
    judged, twice = [], {}
    for first in results:
        failed = [spec for spec in first.of("failed") if spec.can_run_alone]
        if not failed or first.runtime == judgement.PEER:
            judged.append(first)
            continue
        second = one_run(first.runtime, options, judgement.only(failed))
        judged.append(judgement.reviewed(first, second))
        twice |= {spec.name: spec for spec in judged[-1].of("failed") if spec.can_run_alone}
    if twice and not any(result.runtime == judgement.PEER for result in results):
        peers.containerd()
        # A peer under which nothing passes at all would excuse everything.
        sound = judged[0].of("passed")[:1]
        judged.append(one_run(judgement.PEER, options, judgement.only([*twice.values(), *sound])))
    return judged


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    options = arguments()
    runtimes = options.handler.split(",")
    if why := judgement.refusal("runtime", runtimes, RUNTIMES):
        print(f"node suite: {why}", file=sys.stderr)
        return 2
    try:
        # Made here, where there is a network.
        images.storage(programs.build())
        tools.cri_tools()
        build_guest(base_config())
        if judgement.PEER in runtimes:
            peers.containerd()
        results = runs(runtimes, options)
        if options.again:
            results = again(results, options)
    except tools.ToolError as error:
        print(f"node suite: {error}", file=sys.stderr)
        return 2
    return judgement.verdict("node suite", results, options.report)


if __name__ == "__main__":
    sys.exit(main())
