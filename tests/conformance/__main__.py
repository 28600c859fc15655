"""critest against Orlop: ``python -m tests.conformance --help``. Needs root.

Ends with 0 only when no spec failed and as many ran as there should be. Under the handler ``vm`` the
specs that ask for a namespace of the host are listed as refused, with the reason that Orlop gave;
any other failure of theirs counts as one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.conformance import critest, images, tools
from tests.node import base_config, build_guest

# Fewer specs than this passing means that something kept them from running.
LEAST_PASSED = {"process": 100, "auto": 100, "vm": 95}
ALL: tuple[tuple[critest.Handler, critest.Transport, str], ...] = (
    # The longest first, so that none is left to run alone.
    ("vm", "spdy", ""),
    ("auto", "spdy", ""),
    ("process", "spdy", ""),
    ("vm", "websocket", critest.STREAMING),
    ("process", "websocket", critest.STREAMING),
)
APART = Path(__file__).with_name("apart.sh")
SIDE_BY_SIDE = 2
"""Runs of critest at the same time: a run waits more than it computes."""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description="Run critest.")
    parser.add_argument("--handler", choices=("vm", "process", "auto"), default="process")
    parser.add_argument("--transport", choices=("spdy", "websocket"), default="spdy")
    parser.add_argument("--focus", default="", help="only the specs whose name matches this expression")
    parser.add_argument("--all", action="store_true", help="the runs that CI makes")
    parser.add_argument("--again", action="store_true", help="run specs that failed again")
    parser.add_argument("--report", type=Path, default=Path("build/conformance"), help="where reports go")
    parser.add_argument("--minutes", type=int, default=40, help="bound of one run")
    return parser.parse_args()


def problems(result: critest.Result) -> list[str]:
    """Why the run does not count as good."""
    found = [f"{spec.name} failed" for spec in result.of("failed")]
    passed = len(result.of("passed")) + len(result.of("unsteady"))
    least = 1 if result.focus else LEAST_PASSED[result.handler]
    if passed < least:
        found.append(f"only {passed} specs passed, at least {least} should")
    return found


def one_run(options: argparse.Namespace) -> list[str]:
    """Run critest once and say what came of it; the problems."""
    handler, transport, focus = options.handler, options.transport, options.focus
    with images.serve(images.storage(), f"127.0.0.1:{tools.free_port()}") as registry:
        result = critest.run(
            registry, handler, transport, options.report, focus=focus, minutes=options.minutes
        )
        failed = [spec for spec in result.of("failed") if spec.can_run_alone]
        if options.again and failed:
            again = options.report / "again"
            second = critest.run(
                registry, handler, transport, again, focus=critest.only(failed), minutes=options.minutes
            )
            result = critest.reviewed(result, second)
    print("\n".join(critest.lines(result)), flush=True)
    name = f"{handler}-{transport}{'-focus' if focus else ''}.json"
    (options.report / name).write_text(json.dumps(asdict(result), indent=1))
    return [f"{handler}, {transport}: {one}" for one in problems(result)]


def all_runs(options: argparse.Namespace) -> list[str]:
    """The runs of :data:`ALL`, several at a time; the problems.

    Each has a network namespace of its own: critest wants certain ports of the host.
    """
    # Made once, here, where there is a network.
    images.storage()
    tools.cri_tools()
    build_guest(base_config())

    def start(run: tuple[critest.Handler, critest.Transport, str]) -> list[str]:
        handler, transport, focus = run
        argv = [
            "unshare",
            "--mount",
            "--net",
            "sh",
            os.fspath(APART),
            sys.executable,
            "-m",
            "tests.conformance",
        ]
        argv += ["--handler", handler, "--transport", transport, "--focus", focus, "--again"]
        argv += ["--report", os.fspath(options.report), "--minutes", str(options.minutes)]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
        # In one piece, or two runs would speak at once.
        print(done.stdout, end="", flush=True)
        return [] if done.returncode == 0 else [f"{handler}, {transport}: see above"]

    with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
        return [problem for found in threads.map(start, ALL) for problem in found]


def main() -> int:
    """Run what was asked for; 0 when all is well."""
    options = arguments()
    if os.geteuid() != 0:
        print("conformance: critest needs root", file=sys.stderr)
        return 2
    started = time.monotonic()
    try:
        bad = all_runs(options) if options.all else one_run(options)
    except tools.ToolError as error:
        print(f"conformance: {error}", file=sys.stderr)
        return 2
    print(
        f"conformance: {len(bad)} problems in {time.monotonic() - started:.0f} s; reports: {options.report}"
    )
    for one in bad:
        print(f"  {one}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
